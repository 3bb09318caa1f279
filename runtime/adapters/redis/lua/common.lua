-- Put before every script.
--
-- Times are ms by the server's clock, rounded up, so that what is due to the ms is due to every reader.
-- Scores:  t - p*2^33 + p/1024   a job that is due          (p: priority 0..1000, higher first)
--          due + p/1024          deferred, leased, retrying (the fraction keeps p, also through arq's ZINCRBY)

local JOB, IN_PROGRESS, RETRY, RESULT = 'arq:job:', 'arq:in-progress:', 'arq:retry:', 'arq:result:'
local OWN, ONCE, LETTER, AWAITED, UNIQUE = 'rt:own:', 'rt:once:', 'rt:dead:', 'rt:awaited:', 'rt:unique:'
-- What a job remembers: its starts, and beside them `own`. Without starts an `own` is of an earlier job of the id: stock
-- arq, which knows nothing of it, has finished that one. (arq itself keeps starts for 88400 s.)
local REMEMBER_S = 691200
-- A flag in `arq:abort` that nobody has obeyed for so long was for a job that is no more. Not sooner: workers may have
-- been asleep, and without its flag a deferred job that stock arq has aborted would run at once.
local FLAG_MS = 1000 * REMEMBER_S

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.ceil(t[2] / 1000), t[1] * 1000000 + t[2]
end

-- Lua's own tostring keeps 14 digits; this keeps all.
local function exact(x)
  return string.format('%.17g', x)
end

local function priority(score)
  local p = (score % 1) * 1024
  return p == math.floor(p) and p or 0 -- somebody else's score may have any fraction, or be -inf
end

local function place(due, p)
  return due - p * 8589934592 + p / 1024
end

-- A key of a wrong type must not stop what is being done for others: the error is kept for the reply, and after an end
-- of line the key.
local trouble = {}
local function try(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    trouble[#trouble + 1] = reply.err .. '\n' .. key
    return nil
  end
  return reply
end

-- `later` remembers, under `token|place|id`, when a leased or deferred job is to get its place back. No token: deferred.
local function member(token, at, id)
  return token .. '|' .. at .. '|' .. id
end

local function parse(entry)
  local token, at, id = string.match(entry, '^([^|]*)|([^|]*)|(.*)$')
  return token, at, id
end

-- The ms for which a queue is paused yet; -1: until somebody resumes it, -2: it is not, as where the key is no string.
local function pause_left(paused)
  return try('GET', paused) and redis.call('PTTL', paused) or -2
end

-- Puts `id` in the queue for `due`, and in `later` if its priority counts only from then on. Nil if the queue is no zset.
local function defer(queue, later, id, due, p)
  local score = exact(due + p / 1024)
  if p > 0 then
    try('ZADD', later, score, member('', exact(place(due, p)), id))
  end
  return try('ZADD', queue, score, id)
end

-- The score is where the lease has left it; or a stock worker, whose own lease had lapsed, came late with a Retry. That
-- adds to whatever the score is what would have been right for its place: p * 2^33 too much, which would be years.
local function left_there(score, when, p)
  return score == when or (p > 0 and math.floor((score - when) / 8589934592) == p)
end

-- Lapsed, and yet nobody has touched it since its last extension: neither its score, nor its count of starts.
local function untouched(queue, later, job)
  local score = try('ZSCORE', queue, job.id)
  local when = try('ZSCORE', later, member(job.token, job.place, job.id))
  return score and when and left_there(tonumber(score), tonumber(when), priority(tonumber(job.place)))
    and try('GET', RETRY .. job.id) == job.starts
end

-- For each of these jobs who holds it, and for which handler it waits: it was given back by a worker that does not know
-- that one. Of jobs that were started, `unknown` tells the truth; of others it may be about an earlier job of the id.
local function held_and_awaited(ids, unknown)
  local names, held, awaited, started, places = {}, {}, {}, {}, {}
  for _, id in ipairs(ids) do
    names[#names + 1] = IN_PROGRESS .. id
    names[#names + 1] = RETRY .. id
  end
  local known = redis.call('MGET', unpack(names))
  for n, id in ipairs(ids) do
    held[n], awaited[n] = known[2 * n - 1], false
    if not held[n] and known[2 * n] then
      started[#started + 1], places[#places + 1] = id, n
    end
  end
  local handlers = #started > 0 and try('HMGET', unknown, unpack(started)) or {}
  for m, n in ipairs(places) do
    awaited[n] = handlers[m] or false
  end
  return held, awaited
end

-- The names of those who wait for the end of a job, as follow.lua has left them. Anybody may have written there: what is
-- beyond so many bytes, eight names, is not looked at, and what is published on begins with `rt:reply:` in any case.
local NAMES = 135
local function waiters(names)
  return string.gmatch(string.sub(names or '', 1, NAMES), '%x+')
end

-- To be called when its end is written: 'length of the id:id' and the result, if it is not too long to be sent unasked.
-- Where the server does not let us publish, who waits looks by itself.
local LONGEST_TOLD = 4096
local function tell(id, names, result)
  for name in waiters(names) do
    redis.pcall('PUBLISH', 'rt:reply:' .. name, #id .. ':' .. id .. (#result <= LONGEST_TOLD and result or ''))
  end
end
