-- Notes how far jobs are, each only for the token that owns the job; and tells those who wait for it that there is news.
--
-- KEYS  three for each job: arq:in-progress:<id>, rt:progress:<id>, rt:awaited:<id>
-- ARGV  1 how long it is kept (ms)
--       then three for each job: id, token, progress; '': what was noted before is to be kept for as long again
-- Gives one for each: 1 noted, 0 not (its lease is another's, or nobody's for now, or nothing can be written, or kept).
--
-- What is noted is `token|ms|progress`: it counts only while that token owns the job.

local ttl = ARGV[1]
local looked_up = {}
for n = 1, #KEYS, 3 do
  looked_up[#looked_up + 1], looked_up[#looked_up + 2] = KEYS[n], KEYS[n + 2]
end
looked_up = redis.call('MGET', unpack(looked_up))

local now = exact(clock())
local reply = {}
for n = 1, #KEYS / 3 do
  local id, token, said = ARGV[3 * n - 1], ARGV[3 * n], ARGV[3 * n + 1]
  local key, noted = KEYS[3 * n - 1], false
  if looked_up[2 * n - 1] == token then
    if said == '' then
      noted = try('PEXPIRE', key, ttl) == 1
    else
      noted = try('SET', key, token .. '|' .. now .. '|' .. said, 'PX', ttl)
    end
  end
  if noted and said ~= '' then
    for name in waiters(looked_up[2 * n]) do
      redis.pcall('PUBLISH', 'rt:reply:' .. name, 'p' .. #id .. ':' .. id)
    end
  end
  reply[n] = noted and 1 or 0
end
return reply
