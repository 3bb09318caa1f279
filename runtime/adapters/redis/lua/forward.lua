-- Brings jobs forward whose handler was unknown and is known now; and forgets old abort flags, as it runs rarely.
--
-- KEYS  1 queue  2 unknown  3 mark  4 arq:abort
-- ARGV  ids
-- Gives how many were brought forward. One that somebody holds is left alone, and so is one that was never started: it
-- is a later job of the id.

local queue, unknown, mark, abort = unpack(KEYS)
local now, moved = clock(), 0

for _, id in ipairs(ARGV) do
  local score = redis.call('ZSCORE', queue, id)
  local held, starts = unpack(redis.call('MGET', IN_PROGRESS .. id, RETRY .. id))
  if not (score and starts) then
    redis.call('HDEL', unknown, id)
  elseif not held then
    redis.call('ZADD', queue, 'XX', exact(place(now, priority(tonumber(score)))), id)
    redis.call('HDEL', unknown, id)
    moved = moved + 1
  end
end
try('ZREMRANGEBYSCORE', abort, '-inf', exact(now - FLAG_MS))
if moved > 0 then
  try('ZADD', mark, 0, 0)
end
return moved
