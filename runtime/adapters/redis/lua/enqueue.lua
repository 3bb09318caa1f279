-- Adds jobs to one queue; those that count for a user, only if his quota allows all of them.
--
-- KEYS  1 queue  2 later  3 mark  4 arq:abort  5 paused, then two for each job: its body, its result, then one for each quota
-- ARGV  1 'again' if this call repeats one whose reply was lost, else ''  2 how many quotas
--       3 the channel of which each awake worker of the queue is a subscriber; '' if the caller does not ask who is awake
--       then two for each quota: most jobs of an hour, most jobs pending; '' for no limit
--       then eight for each job:
--         id, body, ttl (ms the body is kept after it is due), delay (ms, or '@' and the ms it is due at),
--         priority, 'fresh' if nobody can know the id yet, else '', number of its quota, else '',
--         how long from now its id is unique (ms), 0 if it does not say
-- Gives for each job 1 (added) or 0 (the id is taken; nothing was changed). It is taken by a job that waits or runs, by
-- one that is unique for some time yet, whatever has become of it, and by a result: not for a job that is to be unique
-- itself, which takes the id over; the result and the steps of the earlier job are gone then. A job without a body, which
-- has expired, is one as long as somebody holds it: who does will end it.
-- For a caller who asks, two numbers more: how many workers are awake (0 if the server does not let the caller ask: they
-- are woken in vain, rather than not; -1: nobody, and nobody is to be woken, for the queue is paused until somebody
-- resumes it. A pause that ends by itself needs a worker that is awake then, or has an alarm); and 1 if there are some,
-- but a job that has been due for 5 s lies there unseen, else 0: a host that vanishes stays subscribed until the server's
-- tcp-keepalive finds out.
-- Or, and then nothing was written, { 'over', number of the quota, 'hourly' or 'pending', jobs that count already,
-- jobs that would be added, ms until they fit into the hour }.
--
-- A user's tally (the key of a quota) holds `sha1 of the body|id` → when it was enqueued. An id may come again within the
-- hour, its body does not. Pending is what has a body. Two quotas may be of one user: their tally is the same.

local queue, later, mark, abort, paused = unpack(KEYS, 1, 5)
local again, quota_count, here = ARGV[1] == 'again', tonumber(ARGV[2]), ARGV[3]
local HOUR_MS, UNSEEN_MS = 3600000, 5000
local now = clock()
local added, reused = {}, {}

local function due_of(text)
  if string.sub(text, 1, 1) == '@' then
    return math.max(tonumber(string.sub(text, 2)), now)
  end
  return now + tonumber(text)
end

local jobs, quotas, tallies = {}, {}, {}
for i = 1, (#KEYS - 5 - quota_count) / 2 do
  local a = 4 + 2 * quota_count + (i - 1) * 8
  jobs[i] = {
    id = ARGV[a], body = ARGV[a + 1], ttl = tonumber(ARGV[a + 2]), due = due_of(ARGV[a + 3]),
    p = tonumber(ARGV[a + 4]), fresh = ARGV[a + 5] == 'fresh', quota = tonumber(ARGV[a + 6]),
    unique = tonumber(ARGV[a + 7]), key = KEYS[4 + 2 * i], result = KEYS[5 + 2 * i],
  }
end

local function is_free(job, ...)
  local unique = UNIQUE .. job.id
  local ended = job.unique > 0 and unique or job.result
  return job.fresh and not again or redis.call('EXISTS', unique, ended, IN_PROGRESS .. job.id, ...) == 0
end

for n = 1, quota_count do
  local key = KEYS[#KEYS - quota_count + n]
  local quota = { hourly = tonumber(ARGV[2 + 2 * n]), pending = tonumber(ARGV[3 + 2 * n]) }
  local tally = tallies[key] or { key = key, new = {}, keep = HOUR_MS }
  tally.hourly, tally.pending = tally.hourly or quota.hourly, tally.pending or quota.pending
  quota.tally, tallies[key], quotas[n] = tally, tally, quota
end

-- What counts: `hour`, latest first, and `live`. `old` is what is beyond the hour, or where no hour counts: all of it.
local function read(tally)
  local since = tally.hourly and now - HOUR_MS or now
  local bodies, seen = {}, {}
  tally.known, tally.hour, tally.old, tally.live = {}, {}, {}, 0
  local flat = redis.call('ZRANGE', tally.key, 0, -1, 'WITHSCORES')
  for i = #flat - 1, 1, -2 do
    local label, when = flat[i], tonumber(flat[i + 1])
    local body = JOB .. string.match(label, '|(.*)$')
    tally.known[label] = true
    if when > since then
      tally.hour[#tally.hour + 1] = when
    else
      tally.old[#tally.old + 1] = label
    end
    if not seen[body] then
      seen[body] = true
      bodies[#bodies + 1] = body
    end
  end
  if tally.pending and #bodies > 0 then
    tally.live = redis.call('EXISTS', unpack(bodies))
  end
end

-- What counts no longer. A tally without a limit on pending jobs has no use for old ones; else it pays to ask for each
-- when half of them have gone.
local function sweep(tally)
  local gone = tally.old
  if tally.live > 0 and #gone <= 2 * tally.live then
    return
  end
  if tally.live > 0 then
    gone = {}
    for _, label in ipairs(tally.old) do
      if redis.call('EXISTS', JOB .. string.match(label, '|(.*)$')) == 0 then
        gone[#gone + 1] = label
      end
    end
  end
  if #gone > 0 then
    redis.call('ZREM', tally.key, unpack(gone))
  end
end

for _, tally in pairs(tallies) do
  read(tally)
end
local taken = {}
for _, job in ipairs(jobs) do
  local quota = quotas[job.quota]
  if quota then
    local tally, label = quota.tally, redis.sha1hex(job.body) .. '|' .. job.id
    job.known = again and tally.known[label] -- the first try went through, whatever has become of the job
    if not job.known and not taken[job.id] and is_free(job, job.key) then
      quota.asks = true
      tally.new[#tally.new + 1] = label
      tally.keep = math.max(tally.keep, tally.pending and job.due - now + job.ttl or 0)
    end
    taken[job.id] = true
  end
end
for n, quota in ipairs(quotas) do
  local tally = quota.tally
  local used, wanted = #tally.hour, #tally.new
  if quota.asks and quota.hourly and used + wanted > quota.hourly then
    local leaves = tally.hour[quota.hourly - wanted + 1] or now -- more than the limit never fit
    return { 'over', n, 'hourly', used, wanted, leaves + HOUR_MS - now }
  end
  if quota.asks and quota.pending and tally.live + wanted > quota.pending then
    return { 'over', n, 'pending', tally.live, wanted, 0 }
  end
end

-- Counted first: should what follows be cut short, a job may have been counted in vain, but none gets in uncounted.
for _, tally in pairs(tallies) do
  if #tally.new > 0 then
    local scored = {}
    for _, label in ipairs(tally.new) do
      scored[#scored + 1] = now
      scored[#scored + 1] = label
    end
    redis.call('ZADD', tally.key, unpack(scored))
    redis.call('PEXPIRE', tally.key, exact(math.max(redis.call('PTTL', tally.key), tally.keep)))
    sweep(tally)
  end
end

-- The id is this job's from now on: what an earlier one has left would be taken for its own.
local function take_over(job)
  local cleared = try('DEL', job.result, ONCE .. job.id)
  return try('SET', UNIQUE .. job.id, redis.sha1hex(job.body), 'PX', exact(job.unique)) and cleared
end

local function is_ours(job)
  return job.unique > 0 and try('GET', UNIQUE .. job.id) == redis.sha1hex(job.body)
end

local written, due, queued = {}, {}, true
for i, job in ipairs(jobs) do
  if not job.known and is_free(job) and redis.call('SET', job.key, job.body, 'PX', exact(job.due - now + job.ttl), 'NX') then
    written[#written + 1] = job.key
    if job.unique > 0 then
      queued = take_over(job) and queued
      written[#written + 1] = UNIQUE .. job.id
    end
    if job.due > now then
      queued = defer(queue, later, job.id, job.due, job.p) and queued
    else
      due[#due + 1] = exact(place(now, job.p))
      due[#due + 1] = job.id
    end
    added[i] = 1
    if not job.fresh then
      reused[#reused + 1] = job.id
    end
  else
    -- The body is unique to the call that made it: ours means that the first try went through. So does a result of a
    -- fresh id: a worker was quick.
    added[i] = again and (job.known or job.fresh or try('GET', job.key) == job.body or is_ours(job)) and 1 or 0
  end
end
if #due > 0 then
  queued = try('ZADD', queue, unpack(due)) and queued
end
if not queued then
  redis.call('DEL', unpack(written))
  for _, tally in pairs(tallies) do
    if #tally.new > 0 then
      redis.call('ZREM', tally.key, unpack(tally.new))
    end
  end
  return redis.error_reply(trouble[#trouble])
end

if #reused > 0 then
  try('ZREM', abort, unpack(reused)) -- a flag was for an earlier job of the id
end
local announced = try('ZADD', mark, 0, 0)

-- The first job of the queue: the oldest of the highest priority.
local function unseen()
  local first = try('ZRANGE', queue, 0, 0, 'WITHSCORES')
  local score = first and tonumber(first[2])
  return score and score + priority(score) * 8589934592 < now - UNSEEN_MS
end

-- Asked when all is written: who goes quiet unsubscribes first, and then looks.
if here ~= '' then
  local counted = try('PUBSUB', 'NUMSUB', here)
  local awake = counted and counted[2] or 0
  if awake == 0 and pause_left(paused) == -1 then
    awake = -1
  end
  added[#added + 1] = awake
  added[#added + 1] = awake > 0 and announced == 0 and unseen() and pause_left(paused) == -2 and 1 or 0
end
return added
