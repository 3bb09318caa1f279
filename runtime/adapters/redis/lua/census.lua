-- Counts the jobs of one queue. Writes nothing.
--
-- KEYS  1 queue  2 later  3 count  4 dead  5 unknown
-- Gives { waiting, active, deferred, dead, waiting for a worker that knows their handler, completed, failed,
--         ms that the oldest waiting job has been due (-1: none) }
--
-- A job held by stock arq keeps its old score: it is found among the first due ones, beyond which nobody looks.

local queue, later, count, dead, unknown = unpack(KEYS)
local SEE, BANDS, BAND = 1000, 32, 8589934592

local now = clock()
local due = redis.call('ZCOUNT', queue, '-inf', now)
local future = redis.call('ZCARD', queue) - due

local active = 0
for _, entry in ipairs(try('ZRANGEBYSCORE', later, '(' .. exact(now), '+inf', 'LIMIT', 0, 8 * SEE) or {}) do
  if string.sub(entry, 1, 1) ~= '|' then
    active = active + 1
  end
end

local held = {}
local ids = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, SEE)
if #ids > 0 then
  local names = {}
  for n, id in ipairs(ids) do
    names[n] = IN_PROGRESS .. id
  end
  for n, owner in ipairs(redis.call('MGET', unpack(names))) do
    held[ids[n]] = owner
  end
end
local others = 0
for _, owner in pairs(held) do
  others = others + (owner and 1 or 0)
end

-- The oldest of each priority is the first of its band. A score below every band (stock arq's abort gives 1, somebody
-- else -inf) says nothing of an age.
local oldest, from = -1, '-inf'
for _ = 1, BANDS do
  local first = redis.call('ZRANGEBYSCORE', queue, from, now, 'WITHSCORES', 'LIMIT', 0, others + 1)
  if #first == 0 then
    break
  end
  local score = tonumber(first[2])
  local p = priority(score)
  local ceiling = now - p * BAND + p / 1024
  if ceiling - score > BAND then
    from = '(' .. exact(score)
  else
    for n = 1, #first, 2 do
      local at = tonumber(first[n + 1])
      if not held[first[n]] and at <= ceiling then
        oldest = math.max(oldest, ceiling - at)
        break
      end
    end
    from = '(' .. exact(math.max(ceiling, score))
  end
end

local ended = try('HMGET', count, 'completed', 'failed') or {}
return {
  due - others, active + others, future - active, try('ZCARD', dead) or 0, try('HLEN', unknown) or 0,
  tonumber(ended[1] or 0) or 0, tonumber(ended[2] or 0) or 0, exact(oldest),
}
