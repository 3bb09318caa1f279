-- Extends the leases of jobs that a worker holds, all in one queue.
--
-- KEYS  1 queue  2 later  3 arq:abort
-- ARGV  1 lease (ms)
--       then five for each job: id, token, place, starts, 'renew' if its body is to be kept from expiring, else ''
-- Gives two for each job: 1 (ours) or 0 (lost), and the ms of an abort flag or nil.

local queue, later, abort = KEYS[1], KEYS[2], KEYS[3]
local lease = tonumber(ARGV[1])
local now = clock()

local jobs, held, ids = {}, {}, {}
for a = 2, #ARGV, 5 do
  jobs[#jobs + 1] = { id = ARGV[a], token = ARGV[a + 1], place = ARGV[a + 2], starts = ARGV[a + 3], renew = ARGV[a + 4] == 'renew' }
  held[#held + 1] = IN_PROGRESS .. ARGV[a]
  ids[#ids + 1] = ARGV[a]
end
held = redis.call('MGET', unpack(held))
local flags = try('ZMSCORE', abort, unpack(ids)) or {}

-- Living leases first, scores last: out of memory, a server lets an expiry be set, and after that everything else.
local ours = {}
for n, job in ipairs(jobs) do
  ours[n] = held[n] == job.token
  if ours[n] then
    redis.call('PEXPIRE', IN_PROGRESS .. job.id, lease)
  end
end
for n, job in ipairs(jobs) do
  if not held[n] and untouched(queue, later, job) then
    redis.call('SET', IN_PROGRESS .. job.id, job.token, 'PX', lease)
    ours[n] = true
  end
end

local scores, entries, reply = {}, {}, {}
for n, job in ipairs(jobs) do
  if ours[n] and job.renew then
    local left = redis.call('PTTL', JOB .. job.id)
    if left > 0 and left < 3600000 then
      redis.call('PEXPIRE', JOB .. job.id, 86400000)
    end
    redis.call('EXPIRE', RETRY .. job.id, REMEMBER_S)
  end
  if ours[n] then
    local score = exact(now + lease + 1 + priority(tonumber(job.place)) / 1024)
    scores[#scores + 1], scores[#scores + 2] = score, job.id
    entries[#entries + 1], entries[#entries + 2] = score, member(job.token, job.place, job.id)
  end
  reply[2 * n - 1], reply[2 * n] = ours[n] and 1 or 0, flags[n] or false
end
if #scores > 0 then
  redis.call('ZADD', queue, 'XX', unpack(scores))
  try('ZADD', later, 'XX', unpack(entries))
end
return reply
