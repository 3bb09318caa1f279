-- Brings jobs forward whose handler was unknown and is known now.
--
-- KEYS  1 queue  2 unknown  3 mark
-- ARGV  ids
-- Gives how many were brought forward. One that somebody holds is left alone.

local queue, unknown, mark = KEYS[1], KEYS[2], KEYS[3]
local now, moved = clock(), 0

for _, id in ipairs(ARGV) do
  local score = redis.call('ZSCORE', queue, id)
  if not score then
    redis.call('HDEL', unknown, id)
  elseif redis.call('EXISTS', IN_PROGRESS .. id) == 0 then
    redis.call('ZADD', queue, 'XX', exact(place(now, priority(tonumber(score)))), id)
    redis.call('HDEL', unknown, id)
    moved = moved + 1
  end
end
if moved > 0 then
  try('ZADD', mark, 0, 0)
end
return moved
