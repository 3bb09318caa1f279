-- Notes that a step of a job begins, or what it gave; only for the token that owns the job.
--
-- KEYS  1 arq:in-progress:<id>  2 rt:once:<id>
-- ARGV  1 token  2 step  3 'begin', 'begin-again' (the reply was lost) or 'finish'  4 value (finish)
--       5 how long the steps are kept (s)
-- Gives { 'lost' (another owner) | 'lapsed' (nobody's, for now) | 'new' | 'begun' | 'done', value or nil }

local lease, steps = KEYS[1], KEYS[2]
local token, step, what, value, keep = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local owner = redis.call('GET', lease)
if owner ~= token then
  return { owner and 'lost' or 'lapsed', false }
end
if what == 'finish' then
  redis.call('HSET', steps, step, 'd' .. value)
  redis.call('EXPIRE', steps, keep)
  return { 'done', false }
end
local known = redis.call('HGET', steps, step)
if not known or (what == 'begin-again' and known == 'b' .. token) then
  redis.call('HSET', steps, step, 'b' .. token)
  redis.call('EXPIRE', steps, keep)
  return { 'new', false }
end
if string.sub(known, 1, 1) == 'd' then
  return { 'done', string.sub(known, 2) }
end
return { 'begun', false }
