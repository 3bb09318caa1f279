-- Moves one schedule on to its next occurrence, and adds the jobs of those that are due: once, whoever asks how often.
--
-- KEYS  1 queue  2 mark  3 arq:abort  4 schedule  5 timetable, then two for each job: its body, its result
-- ARGV  1 name of the schedule
--       2 its next occurrence (ms; 'inf': it is paused)  3 its declaration: as the caller knows them; '' for none
--       4 its next occurrence from now on; '' if it is to stay  5 its declaration from now on
--       6 the last occurrence that is fired here; '' for none  7 priority of the jobs  8 ms that their bodies are kept
--       then two for each job: id, body
-- Gives 1 (added) or 0 (the id has a job or a result already) for each job; or { 'moved' } if it does not stand as the
-- caller knows it, and nothing was done: somebody else was first, or this very call, whose reply was lost.
--
-- A job without a body is one as long as somebody holds it. So stock arq holds the ids of its cron jobs, for a minute.

local queue, mark, abort, schedule, timetable = unpack(KEYS)
local name, known_next, known_said, next_due, said, fired = unpack(ARGV)
local p, ttl = tonumber(ARGV[7]), ARGV[8]

local stands = redis.call('ZSCORE', schedule, name)
if tonumber(stands or nil) ~= tonumber(known_next) or (redis.call('HGET', timetable, 'said|' .. name) or '') ~= known_said then
  return { 'moved' }
end

local now = clock()
local added, written, ids, due = {}, {}, {}, {}
for i = 1, (#KEYS - 5) / 2 do
  local key, result, id, body = KEYS[4 + 2 * i], KEYS[5 + 2 * i], ARGV[7 + 2 * i], ARGV[8 + 2 * i]
  added[i] = 0
  if redis.call('EXISTS', result, IN_PROGRESS .. id) == 0 and redis.call('SET', key, body, 'PX', ttl, 'NX') then
    added[i] = 1
    written[#written + 1], ids[#ids + 1] = key, id
    due[#due + 1], due[#due + 2] = exact(place(now, p)), id
  end
end
if #due > 0 then
  if not try('ZADD', queue, unpack(due)) then
    redis.call('DEL', unpack(written))
    return redis.error_reply(trouble[#trouble])
  end
  try('ZREM', abort, unpack(ids)) -- a flag was for an earlier job of the id
  try('ZADD', mark, 0, 0)
end

if next_due ~= '' then
  redis.call('ZADD', schedule, next_due, name)
end
local told = {}
if said ~= known_said then
  told[#told + 1], told[#told + 2] = 'said|' .. name, said
end
if fired ~= '' then
  told[#told + 1], told[#told + 2] = 'fired|' .. name, fired
end
if #told > 0 then
  redis.call('HSET', timetable, unpack(told))
end
return added
