-- Looks for the result of a job. If there is none yet, leaves the name of who waits for it: it will be told on the channel
-- of that name (`tell`, in common.lua).
--
-- KEYS  1 queue  2 arq:result:<id>  3 arq:job:<id>  4 rt:awaited:<id>
-- ARGV  1 id  2 name: hex digits  3 how long it is kept (ms)
-- Gives { 'ended', result }, { 'gone' } (neither a result nor a job), { 'noted' } (the name is left), or { 'there' }: so
--       many wait for this job, or nothing can be written; who waits has to look.

local queue, result, job, awaited = unpack(KEYS)
local id, name, ttl = unpack(ARGV)

local found = redis.call('GET', result)
if found then
  return { 'ended', found }
end
if not redis.call('ZSCORE', queue, id) and redis.call('EXISTS', job) == 0 then
  return { 'gone' }
end
local names = try('GET', awaited)
local known = false
for one in waiters(names) do
  known = known or one == name
end
if not known then
  names = names and names .. ' ' .. name or name
end
if #names > NAMES then
  return { 'there' }
end
return { try('SET', awaited, names, 'PX', ttl) and 'noted' or 'there' }
