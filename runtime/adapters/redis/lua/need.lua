-- Tells of each queue whether a job waits there for workers that sleep. Writes nothing; as a script it is asked of the
-- primary, whose answer is never older than what a producer was told.
--
-- KEYS  three for each queue: queue, unknown, paused
-- ARGV  for each queue the channel of which each awake worker is a subscriber
-- Gives three for each queue: due (0|1), how many workers are awake (0 if the server does not let the caller ask: they
-- are woken in vain, rather than not), ms until the next job comes due (-1: none)
--
-- Due is not what somebody holds, which is a stock worker: its jobs keep their scores. Nor what has been given back to wait
-- for a worker that knows its handler: to wake one that does not would not help, and one that does brings it forward when
-- it starts, and does not go quiet on it. Nor anything in a queue that is paused: that comes due with the end of the
-- pause, or when somebody ends it, who wakes workers then.

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

-- Whether a job is due, and the ms until the next one is.
local function of_queue(queue, unknown, paused)
  local first = try('ZRANGEBYSCORE', queue, '(' .. exact(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1) or {}
  local next_in, due = first[2] and tonumber(first[2]) - now or -1, is_due(queue, unknown)
  local left = (due or first[2]) and pause_left(paused) or -2
  if left == -2 then
    return due, next_in
  end
  return false, left > 0 and math.max(left, due and 0 or next_in) or -1
end

local out = {}
for n, here in ipairs(ARGV) do
  local due, next_in = of_queue(unpack(KEYS, 3 * n - 2, 3 * n))
  local awake = try('PUBSUB', 'NUMSUB', here) or { here, 0 }
  out[#out + 1] = due and 1 or 0
  out[#out + 1] = awake[2]
  out[#out + 1] = exact(next_in)
end
return out
