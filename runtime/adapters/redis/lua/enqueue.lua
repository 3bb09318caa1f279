-- Adds jobs to one queue.
--
-- KEYS  1 queue  2 later  3 mark  4 arq:abort, then two for each job: its body, its result
-- ARGV  1 'again' if this call repeats one whose reply was lost, else ''
--       then six for each job:
--         id, body, ttl (ms the body is kept after it is due), delay (ms, or '@' and the ms it is due at),
--         priority, 'fresh' if nobody can know the id yet, else ''
-- Gives for each job 1 (added) or 0 (the id has a job or a result already; nothing was changed). A job without a body,
-- which has expired, is one as long as somebody holds it: who does will end it.

local queue, later, mark, abort = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local again = ARGV[1] == 'again'
local now = clock()
local added, reused = {}, {}

local function due_of(text)
  if string.sub(text, 1, 1) == '@' then
    return math.max(tonumber(string.sub(text, 2)), now)
  end
  return now + tonumber(text)
end

for i = 1, (#KEYS - 4) / 2 do
  local a = 2 + (i - 1) * 6
  local id, body, ttl, p = ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 4])
  local fresh = ARGV[a + 5] == 'fresh'
  local job, result = KEYS[3 + 2 * i], KEYS[4 + 2 * i]
  local due = due_of(ARGV[a + 3])
  if (fresh and not again or redis.call('EXISTS', result, IN_PROGRESS .. id) == 0)
      and redis.call('SET', job, body, 'PX', exact(due - now + ttl), 'NX') then
    local queued
    if due > now then
      queued = defer(queue, later, id, due, p)
    else
      queued = try('ZADD', queue, exact(place(now, p)), id)
    end
    if not queued then
      redis.call('DEL', job)
      return redis.error_reply(trouble[#trouble])
    end
    added[i] = 1
    if not fresh then
      reused[#reused + 1] = id
    end
  else
    -- The body is unique to the call that made it: ours means that the first try went through. So does a result of a
    -- fresh id: a worker was quick.
    added[i] = again and (fresh or try('GET', job) == body) and 1 or 0
  end
end

if #reused > 0 then
  try('ZREM', abort, unpack(reused)) -- a flag was for an earlier job of the id
end
try('ZADD', mark, 0, 0)
return added
