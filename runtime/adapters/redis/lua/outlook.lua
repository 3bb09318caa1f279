-- The last look before a worker goes quiet. A script, so that the primary answers, in its order.
--
-- KEYS  queues
-- Gives the ms until the first of their jobs is due, or a lease on one; rounded up; '-' if there is none
-- (a job that is held has the end of its lease for a score)

local now = clock()
local first
for _, queue in ipairs(KEYS) do
  local head = try('ZRANGE', queue, 0, 0, 'WITHSCORES') or {}
  local score = tonumber(head[2])
  if score and (not first or score < first) then
    first = score
  end
end
return first and exact(math.ceil(first - now)) or '-'
