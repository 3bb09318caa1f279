-- Puts a dead letter's job back into its queue, as new.
--
-- KEYS  1 queue  2 mark  3 dead  4 rt:dead:<id>  5 arq:job:<id>  6 arq:result:<id>  7 arq:retry:<id>  8 rt:own:<id>
--       9 arq:abort
-- ARGV  1 id  2 how long the body is kept (ms)  3 priority
-- Gives 'done', 'gone' (no such letter), 'empty' (it has no body) or 'exists' (a job of this id waits or runs).

local queue, mark, dead, letter, job, result, retry, own, abort = unpack(KEYS)
local id, ttl, p = ARGV[1], ARGV[2], tonumber(ARGV[3])

local body = redis.call('HGET', letter, 'body')
if not body then
  try('ZREM', dead, id)
  return 'gone'
end
if body == '' then
  return 'empty'
end
if redis.call('EXISTS', job) == 1 then
  return 'exists'
end
redis.call('SET', job, body, 'PX', ttl)
if not try('ZADD', queue, exact(place(clock(), p)), id) then
  redis.call('DEL', job)
  return redis.error_reply(trouble[#trouble])
end
redis.call('DEL', letter, result, retry, own)
try('ZREM', dead, id)
try('ZREM', abort, id) -- an abort that came too late the first time
try('ZADD', mark, 0, 0)
return 'done'
