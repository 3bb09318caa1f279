-- The last look before a worker goes quiet. A script, so that the primary answers, in its order.
--
-- KEYS  four for each queue: queue, unknown, schedule, paused
-- ARGV  1 how many handlers the worker knows, then those, then two for each schedule that it fires: number of its queue, name
-- Gives { the ms until the first of their jobs is due, a lease on one, or a schedule; rounded up; '-' if there is none,
--         the name of the schedule if it is one, else '' }
-- (a job that is held has the end of its lease for a score)
--
-- A job that waits for a worker which knows its handler counts for such a worker only. Another one would be kept awake
-- by it for a day, to claim it every few minutes in vain; the one that is to do it brings it forward when it starts.
-- Schedules count likewise: one that this worker does not fire there is another's, or nobody's any more (its handler has
-- lost it, or has moved to another queue).
-- Jobs of a queue that is paused are due when the pause is over: there are none, if somebody has to end it, who wakes
-- workers then. So are lapsed leases, and with them the leases that may lapse.

local SEE, PAGE = 1000, 50
local now = clock()
local knows, fires = {}, {}
local count = tonumber(ARGV[1])
for i = 2, count + 1 do
  knows[ARGV[i]] = true
end
for i = count + 2, #ARGV, 2 do
  fires[ARGV[i] .. '|' .. ARGV[i + 1]] = true
end

local function head(queue, offset, size)
  local page, ids, scores = try('ZRANGE', queue, offset, offset + size - 1, 'WITHSCORES') or {}, {}, {}
  for i = 1, #page, 2 do
    ids[#ids + 1], scores[#scores + 1] = page[i], tonumber(page[i + 1])
  end
  return ids, scores
end

local function first_of(queue, unknown)
  for offset = 0, SEE - 1, PAGE do
    local ids, scores = head(queue, offset, PAGE)
    if #ids == 0 then
      return nil
    end
    local _, awaited = held_and_awaited(ids, unknown)
    for n, score in ipairs(scores) do
      if not awaited[n] or knows[awaited[n]] then
        return score
      end
    end
  end
  local _, scores = head(queue, SEE, 1)
  return scores[1] -- behind so many, somebody has to look
end

-- One that is paused is never due.
local function next_scheduled(schedule, number)
  local all = try('ZRANGEBYSCORE', schedule, '-inf', '(inf', 'WITHSCORES') or {}
  for i = 1, #all, 2 do
    if fires[number .. '|' .. all[i]] then
      return tonumber(all[i + 1]), all[i]
    end
  end
end

-- When the first of a queue is due, and whose occurrence that is, if it is a schedule's.
local function of_queue(number, queue, unknown, schedule, paused)
  local score, scheduled = first_of(queue, unknown), ''
  local at, name = next_scheduled(schedule, number)
  if at and (not score or at < score) then
    score, scheduled = at, name
  end
  local left = score and pause_left(paused) or -2
  if left == -1 then
    return nil
  end
  return left > 0 and math.max(score, now + left) or score, scheduled
end

local first, scheduled = nil, ''
for i = 1, #KEYS, 4 do
  local score, name = of_queue((i + 3) / 4, unpack(KEYS, i, i + 3))
  if score and (not first or score < first) then
    first, scheduled = score, name
  end
end
return { first and exact(math.ceil(first - now)) or '-', scheduled }
