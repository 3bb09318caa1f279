-- Tells of each queue whether a job waits there for workers that sleep. Writes nothing; as a script it is asked of the
-- primary, whose answer is never older than what a producer was told.
--
-- KEYS  four for each queue: queue, unknown, schedule, paused
-- ARGV  for each queue the channel of which each awake worker is a subscriber
-- Gives three for each queue: due (0|1), how many workers are awake (0 if the server does not let the caller ask: they
-- are woken in vain, rather than not), ms until the next job comes due (-1: none)
--
-- Due is not what somebody holds, which is a stock worker: its jobs keep their scores. Nor what has been given back to wait
-- for a worker that knows its handler: to wake one that does not would not help, and one that does brings it forward when
-- it starts, and does not go quiet on it. A schedule is due at its next occurrence, and nobody's who could be woken if
-- nobody has fired it for a day after that. Nothing is due in a queue that is paused: that comes due with the end of the
-- pause, or when somebody ends it, who wakes workers then.

local SEE, PAGE, NOBODYS_MS = 1000, 250, 86400000
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

local function first_between(zset, from, to)
  local first = try('ZRANGEBYSCORE', zset, from, to, 'WITHSCORES', 'LIMIT', 0, 1)
  return first and tonumber(first[2]) or math.huge
end

-- Whether something is due, and the ms until the next is.
local function of_queue(queue, unknown, schedule, paused)
  local scheduled = first_between(schedule, exact(now - NOBODYS_MS), '+inf')
  local first = first_between(queue, '(' .. exact(now), '+inf')
  local due = scheduled <= now or is_due(queue, unknown)
  if scheduled > now then
    first = math.min(first, scheduled)
  end
  local left = (due or first < math.huge) and pause_left(paused) or -2
  if left ~= -2 then
    due, first = false, left >= 0 and math.max(now + left, due and now or first) or math.huge
  end
  return due, first < math.huge and first - now or -1
end

local out = {}
for n, here in ipairs(ARGV) do
  local due, next_in = of_queue(unpack(KEYS, 4 * n - 3, 4 * n))
  local awake = try('PUBSUB', 'NUMSUB', here) or { here, 0 }
  out[#out + 1] = due and 1 or 0
  out[#out + 1] = awake[2]
  out[#out + 1] = exact(next_in)
end
return out
