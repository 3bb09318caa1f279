-- Tells when schedules of one queue are due next. Writes nothing; as a script it is asked of the primary.
--
-- KEYS  1 schedule  2 timetable
-- ARGV  the names of the schedules
-- Gives { now (ms), { for each: its next occurrence (ms; 'inf': it is paused) or nil }, { for each: its declaration or nil } }

local schedule, timetable = KEYS[1], KEYS[2]
local fields = {}
for n, name in ipairs(ARGV) do
  fields[n] = 'said|' .. name
end
local now = clock()
return { exact(now), redis.call('ZMSCORE', schedule, unpack(ARGV)), redis.call('HMGET', timetable, unpack(fields)) }
