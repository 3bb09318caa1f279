-- The last look before a worker goes quiet. A script, so that the primary answers, in its order.
--
-- KEYS  two for each queue: queue, unknown
-- ARGV  the handlers that the worker knows
-- Gives the ms until the first of their jobs is due, or a lease on one; rounded up; '-' if there is none
-- (a job that is held has the end of its lease for a score)
--
-- A job that waits for a worker which knows its handler counts for such a worker only. Another one would be kept awake
-- by it for a day, to claim it every few minutes in vain; the one that is to do it brings it forward when it starts.

local SEE, PAGE = 1000, 50
local now = clock()
local knows = {}
for _, handler in ipairs(ARGV) do
  knows[handler] = true
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

local first
for i = 1, #KEYS, 2 do
  local score = first_of(KEYS[i], KEYS[i + 1])
  if score and (not first or score < first) then
    first = score
  end
end
return first and exact(math.ceil(first - now)) or '-'
