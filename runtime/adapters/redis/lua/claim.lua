-- Leases up to `room` due jobs of one queue to a worker. Of a queue that is paused: none.
--
-- KEYS  1 queue  2 later  3 mark  4 arq:abort  5 paused; and so on, five for each further queue: then it is the first of
--       them in which something is due that may be taken, or the last
-- ARGV  1 room  2 lease (ms)  3 incarnation of the worker  4 number of this claim
--       5 'again' if the claim of this number was made before and its reply lost; 'new' if it may take nothing that has
--         been started: where there is such a job it says that there is more; else ''
--       6 offset in the queue to start from (behind ids that others hold)
--       7 until when it is waited for (ms, of this clock; 0: unknown): one that is read later takes nothing
--       then tokens of this worker that it holds no longer
-- Gives { now (ms), more (0|1), next due (ms from now, -1: none), offset to go on from, seen held by others,
--         { eight for each job: id, token, place, starts, body or nil, own or nil, abort or nil, kind of the body },
--         { tokens of ours that have lapsed }, { trouble }, which of the queues it was (from 0),
--         paused (0|1): something is due, and nobody may take it; `next due` is then the end of the pause }
--
-- The score of a leased job is the end of its lease: a dead worker's jobs come due by themselves. `later` tells them
-- from other due jobs, and gives them their place back.

local room, lease, incarnation, seq = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local again, only_new, start = ARGV[5] == 'again', ARGV[5] == 'new', tonumber(ARGV[6])

local SEE, PAGE, SWEEP = 1000, 250, 500
local MAX_BODY, MAX_REPLY = 8388608, 8388608 -- a larger body is not handed out, a larger reply takes no further job
local ABORTED = 1 -- stock arq's abort gives this score to a job that it takes for deferred, and flags it after that
local UNTIL_FLAGGED = 1000
local CRASH_DELAY = { 0, 10000 } -- after the third crash it is claimed at once: to be a dead letter

local now, now_us = clock()

local LAST = #KEYS / 5 - 1
local which, queue, later, mark, abort, pause

-- Turns to the first queue from `n` on in which something is due, or to the last.
local function turn_to(n)
  for m = n, LAST - 1 do
    local first = try('ZRANGE', KEYS[5 * m + 1], 0, 0, 'WITHSCORES')
    n = m + 1
    if first and first[2] and tonumber(first[2]) <= now then
      n = m
      break
    end
  end
  which = n
  queue, later, mark, abort, pause = unpack(KEYS, 5 * n + 1, 5 * n + 5)
end

turn_to(0)
local disowned, lapsed_of_ours, skip = {}, {}, {}
for i = 8, #ARGV do
  disowned[ARGV[i]] = true
end

-- It lay about while the server was stopped, or the network: leases may have lapsed, and their owners must come first.
if tonumber(ARGV[7]) > 0 and now > tonumber(ARGV[7]) then
  return { exact(now), 1, '-1', 0, 0, {}, {}, trouble, which, 0 }
end

local function incarnation_of(token)
  return string.match(token, '^%d+:([^:]*):')
end

-- Counts a crash: the job comes back later after each. Says whether it could be written.
local function recover(id, at)
  local own = try('GET', OWN .. id) or '0|'
  local crashes, history = string.match(own, '^(%d+)|(.*)$')
  crashes = (tonumber(crashes) or 0) + 1
  try('SET', OWN .. id, crashes .. '|' .. (history or ''), 'EX', REMEMBER_S)
  local delay = CRASH_DELAY[crashes] or 0
  if delay > 0 then
    return defer(queue, later, id, now + delay, priority(tonumber(at)))
  end
  return try('ZADD', queue, 'XX', at, id)
end

local retired = {}

-- Whether the worker of this token had been told to stop: its death is the end of a deploy then, and no fault of its jobs.
local function was_retired(token)
  local worker = incarnation_of(token) or ''
  if retired[worker] == nil then
    retired[worker] = redis.call('EXISTS', 'rt:retired:' .. worker) == 1
  end
  return retired[worker]
end

-- Gives the job of a due entry its place back. Says whether it could be written.
local function give_back(id, token, at)
  if token ~= '' and not disowned[token] then
    if not was_retired(token) then
      return recover(id, at)
    end
    -- As if the worker had given it back, for which it had no time.
    local starts = tonumber(try('GET', RETRY .. id)) or 0
    try('SET', RETRY .. id, math.max(starts - 1, 0), 'EX', REMEMBER_S)
  end
  -- A lost one is no crash. Its start counts all the same, lest a job that cannot be handed over is tried for ever.
  return try('ZADD', queue, 'XX', at, id)
end

-- Gives back what is due in `later`. Says whether the queue changed, and whether all was seen.
local function sweep()
  local due = try('ZRANGEBYSCORE', later, '-inf', now, 'WITHSCORES', 'LIMIT', 0, SWEEP) or {}
  if #due == 0 then
    return false, true
  end
  local held, ids = {}, {}
  for i = 1, #due, 2 do
    local _, _, id = parse(due[i])
    ids[#ids + 1] = id or ''
    held[#held + 1] = IN_PROGRESS .. (id or '')
  end
  held = redis.call('MGET', unpack(held))
  local scores = redis.call('ZMSCORE', queue, unpack(ids))
  local gone, changed = {}, false
  for n, id in ipairs(ids) do
    local entry, when = due[2 * n - 1], tonumber(due[2 * n])
    local token, at = parse(entry)
    local leave = held[n] == token
    if token and not held[n] and scores[n] and left_there(tonumber(scores[n]), when, priority(tonumber(at))) then
      if incarnation_of(token) == incarnation and not disowned[token] then
        -- Still run by this very worker: its keeper takes the lease again.
        leave = true
        lapsed_of_ours[#lapsed_of_ours + 1] = token
      else
        leave = not give_back(id, token, at)
        changed = changed or not leave
      end
      skip[id] = leave
    end
    if not leave then
      gone[#gone + 1] = entry
    end
  end
  if #gone > 0 then
    redis.call('ZREM', later, unpack(gone))
  end
  return changed, #due < 2 * SWEEP
end

-- What is known of these ids, in one call: held by whom, body, starts, own. And, with it, whether the queue is paused.
local function facts(ids)
  local names = {}
  for _, id in ipairs(ids) do
    names[#names + 1] = IN_PROGRESS .. id
    names[#names + 1] = JOB .. id
    names[#names + 1] = RETRY .. id
    names[#names + 1] = OWN .. id
  end
  names[#names + 1] = pause
  local known = redis.call('MGET', unpack(names))
  return known, table.remove(known)
end

local taken, handed_out, awaits_flag = {}, 0, false

-- A body as it is handed out, and its kind: the type of its key, or 'oversized'.
local function checked(id, body)
  if not body then
    return false, redis.call('TYPE', JOB .. id).ok
  end
  if #body > MAX_BODY then
    return false, 'oversized'
  end
  handed_out = handed_out + #body
  return body, 'string'
end

-- Takes a job that nobody holds. False: it was none, and has left the queue.
local function take(id, score, known, n)
  local starts, own = known[4 * n - 1], known[4 * n]
  local body, kind = checked(id, known[4 * n - 2])
  if kind == 'none' and (redis.call('EXISTS', RESULT .. id) == 1 or score == ABORTED and try('ZSCORE', abort, id)) then
    -- Settled already, and put back into the queue by an abort that came too late.
    redis.call('ZREM', queue, id)
    redis.call('DEL', RETRY .. id, OWN .. id)
    try('ZREM', abort, id)
    return false
  end
  if score == ABORTED and body and not starts and not try('ZSCORE', abort, id) then
    redis.call('ZADD', queue, 'XX', exact(now + UNTIL_FLAGGED), id)
    awaits_flag = true
    return false
  end
  if own and not starts then
    redis.call('DEL', OWN .. id)
    own = false
  end
  local p = priority(score)
  if p > 0 and now - score < 8589934592 then
    score = place(score - p / 1024, p) -- deferred, and claimed before it was given the place of its priority
  end
  taken[#taken + 1] = {
    id = id, place = exact(score), p = p, body = body, kind = kind, starts = (tonumber(starts) or 0) + 1, own = own,
  }
  return true
end

-- The due ids from `offset` on, with their facts; the ms until the first one that is not due; whether the page was full.
local function look(offset, size)
  local page = redis.call('ZRANGE', queue, offset, offset + size - 1, 'WITHSCORES')
  local ids, scores = {}, {}
  for i = 1, #page, 2 do
    local score = tonumber(page[i + 1])
    if score > now then
      return ids, scores, score - now, false
    end
    ids[#ids + 1], scores[#scores + 1] = page[i], score
  end
  return ids, scores, -1, #page == 2 * size
end

local function any_started(known)
  for n = 3, #known, 4 do
    if known[n] then
      return true
    end
  end
  return false
end

local function any_left(known)
  for n = 1, #known, 4 do
    if known[n + 2] and not known[n] then
      return true
    end
  end
  return false
end

-- What lies before `start` was seen, and is held by others.
local more, next_due, others, offset, paused = false, -1, start, start, false

local function scan()
  local size, seen, swept = math.min(room + 1, PAGE), 0, only_new
  while true do
    local ids, scores, due_in, full = look(offset, size)
    local known = {}
    if #ids > 0 then
      known, paused = facts(ids)
    end
    if paused then
      next_due, offset, others = redis.call('PTTL', pause), 0, 0
      return
    end
    if only_new and any_left(known) then
      more = true
      return
    end
    -- A lapsed lease has been started, and hides only behind a full page.
    if not swept and (full or any_started(known)) then
      swept = true
      local changed, all = sweep()
      if not all then
        more = true
        return
      end
      if changed then
        offset = start
        ids, scores, due_in, full = look(offset, size)
        known = #ids > 0 and (facts(ids)) or {}
      end
    end
    for n, id in ipairs(ids) do
      if #taken == room or handed_out > MAX_REPLY then
        more = true
        return
      end
      if known[4 * n - 3] then
        others = others + 1
        offset = offset + 1
      elseif skip[id] or take(id, scores[n], known, n) then
        offset = offset + 1
      end
    end
    seen = seen + #ids
    next_due = due_in
    if not full then
      offset = 0
      if awaits_flag then
        next_due = next_due < 0 and UNTIL_FLAGGED or math.min(next_due, UNTIL_FLAGGED)
      end
      return
    end
    if #taken == room or seen >= SEE then
      more = true
      return
    end
    size = PAGE
  end
end

local function lease_taken()
  local scores, entries, ids = {}, {}, {}
  for i, job in ipairs(taken) do
    job.token = job.token or exact(now_us + i) .. ':' .. incarnation .. ':' .. seq
    redis.call('SET', IN_PROGRESS .. job.id, job.token, 'PX', lease)
    redis.call('SET', RETRY .. job.id, job.starts, 'EX', REMEMBER_S)
    local score = exact(now + lease + 1 + job.p / 1024)
    scores[#scores + 1], scores[#scores + 2] = score, job.id
    entries[#entries + 1], entries[#entries + 2] = score, member(job.token, job.place, job.id)
    ids[i] = job.id
  end
  redis.call('ZADD', queue, 'XX', unpack(scores))
  try('ZADD', later, unpack(entries))
  local flags = try('ZMSCORE', abort, unpack(ids)) or {}
  for i, job in ipairs(taken) do
    job.abort = flags[i]
  end
end

-- Takes the jobs of a claim whose reply was lost, for as long again: their tokens carry its number.
local function repeat_claim()
  local mine = ':' .. incarnation .. ':' .. seq .. '|'
  local entries = try('ZREVRANGEBYSCORE', later, now + lease + 2, now, 'LIMIT', 0, SEE) or {}
  for n = #entries, 1, -1 do
    if string.find(entries[n], mine, 1, true) then
      local token, at, id = parse(entries[n])
      local known = facts({ id })
      if known[1] == token then
        local body, kind = checked(id, known[2])
        taken[#taken + 1] = {
          id = id, token = token, place = at, p = priority(tonumber(at)), body = body, kind = kind,
          starts = tonumber(known[3]) or 1, own = known[4],
        }
      end
    end
  end
  more = #taken > 0
  return more
end

if not (again and repeat_claim()) then
  scan()
  while paused and which < LAST do
    turn_to(which + 1)
    paused = false -- where nothing is due, nobody asks
    scan()
  end
end
if #taken > 0 then
  lease_taken()
  if more then
    try('ZADD', mark, 0, 0)
  end
end

local jobs = {}
for _, job in ipairs(taken) do
  local a = #jobs
  jobs[a + 1], jobs[a + 2], jobs[a + 3], jobs[a + 4] = job.id, job.token, job.place, job.starts
  jobs[a + 5], jobs[a + 6], jobs[a + 7], jobs[a + 8] = job.body or false, job.own or false, job.abort or false, job.kind
end
-- The jobs taken lay before `offset`, and have left for the ends of their leases.
return {
  exact(now), more and 1 or 0, exact(next_due), math.max(offset - #taken, 0), others, jobs, lapsed_of_ours, trouble, which,
  paused and 1 or 0,
}
