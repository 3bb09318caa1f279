-- Tells of each queue whether a job waits there for workers that sleep. Writes nothing; as a script it is asked of the
-- primary, whose answer is never older than what a producer was told.
--
-- KEYS  two for each queue: queue, unknown
-- ARGV  for each queue the channel of which each awake worker is a subscriber
-- Gives three for each queue: due (0|1), how many workers are awake (0 if the server does not let the caller ask: they
-- are woken in vain, rather than not), ms until the next job comes due (-1: none)
--
-- Due is not what somebody holds, which is a stock worker: its jobs keep their scores. Nor what has been given back to wait
-- for a worker that knows its handler: to wake one that does not would not help, and one that does brings it forward when
-- it starts, and does not go quiet on it.

local SEE, PAGE = 1000, 250
local now = clock()

local function waits_for_us(ids, unknown)
  local held, awaited = held_and_awaited(ids, unknown)
  for n = 1, #ids do
    if not held[n] and not awaited[n] then
      return true
    end
  end
  return false
end

local function is_due(queue, unknown)
  for offset = 0, SEE - 1, PAGE do
    local ids = try('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', offset, PAGE) or {}
    if #ids > 0 and waits_for_us(ids, unknown) then
      return true
    elseif #ids < PAGE then
      return false
    end
  end
  return true -- behind so many, somebody has to look
end

local out = {}
for n, here in ipairs(ARGV) do
  local queue, unknown = KEYS[2 * n - 1], KEYS[2 * n]
  local awake = try('PUBSUB', 'NUMSUB', here) or { here, 0 }
  local first = try('ZRANGEBYSCORE', queue, '(' .. exact(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1) or {}
  out[#out + 1] = is_due(queue, unknown) and 1 or 0
  out[#out + 1] = awake[2]
  out[#out + 1] = first[2] and exact(tonumber(first[2]) - now) or '-1'
end
return out
