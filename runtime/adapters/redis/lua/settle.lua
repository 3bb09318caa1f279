-- Records the outcomes of jobs of one queue, each only if its token still owns the job.
--
-- KEYS  1 queue  2 later  3 arq:abort  4 last batch  5 count  6 dead  7 unknown  8 mark
-- ARGV  1 number of this batch  2 most dead letters kept  3 how long they are kept (ms)
--       then thirteen for each outcome:
--         id, token, place, starts, what ('end', 'again' after a delay, 'back' to its place),
--         starts to keep, delay (ms), own, result, result's ttl (ms; '' for ever), letter, body, flags
--       own, result, letter and body may be ''. Flags: c completed, f failed, a clear the abort flag,
--       u no longer unknown, n unknown (`letter` is then the handler's name), x cancelled, b the letter's body is the one
--       that is there.
-- Gives { a string with one digit for each outcome, { ids of dead letters dropped for room }, { trouble } }
--   1 settled, 0 refused (not ours), 2 the body is gone: send again with it
-- A batch that is sent again under its number gets the answer of the first time.
--
-- There is no rollback: reads first, then a DEL (after which a server that is out of memory lets the rest through),
-- and after that nothing that can fail but under `try`: an error would cost the other jobs their outcomes.

local queue, later, abort, batch, count, dead, unknown, mark = unpack(KEYS)
local seq, most_dead, letters_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local jobs, held = {}, {}
for a = 4, #ARGV, 13 do
  jobs[#jobs + 1] = {
    id = ARGV[a], token = ARGV[a + 1], place = ARGV[a + 2], starts = ARGV[a + 3], what = ARGV[a + 4],
    keep = tonumber(ARGV[a + 5]), delay = tonumber(ARGV[a + 6]), own = ARGV[a + 7],
    result = ARGV[a + 8], ttl = ARGV[a + 9], letter = ARGV[a + 10], body = ARGV[a + 11], flags = ARGV[a + 12],
  }
  held[#held + 1] = IN_PROGRESS .. ARGV[a]
end
for n, job in ipairs(jobs) do
  held[#jobs + n] = AWAITED .. job.id -- in the same command: for jobs that nobody waits for it costs none
end
held = redis.call('MGET', unpack(held))

local function flagged(job, flag)
  return string.find(job.flags, flag, 1, true) ~= nil
end

local verdicts, refused = {}, false
for n, job in ipairs(jobs) do
  local mine = held[n] == job.token or (not held[n] and untouched(queue, later, job))
  verdicts[n] = mine and 1 or 0
  refused = refused or not mine
end
if refused then
  local number, answer = string.match(try('GET', batch) or '', '^(%d+):(%d+)$')
  if number == seq and #answer == #jobs then
    return { answer, {}, trouble }
  end
end

-- What must be known before the first write.
local now
local function keep_body(job)
  local left = redis.call('PTTL', JOB .. job.id)
  if left == -2 and job.body == '' then
    return false
  end
  now = now or clock()
  local p = priority(tonumber(job.place))
  local since = tonumber(job.place) + p * 8589934592 -- when it was due: with arq's own expiry, 24 h before the body's end
  local arqs = math.abs(now + left - since - 86400000) <= 60000
  -- Nobody stays awake for a job whose handler is unknown, or is woken for it, before its starts are forgotten: a day
  -- at most after the first of them, for then it is a dead letter, if anybody is awake.
  local asleep = flagged(job, 'n') and 1000 * REMEMBER_S + 86400000 or 0
  job.ttl_wanted = (left == -2 or arqs) and job.delay + asleep + 86400000 or nil
  job.missing = left == -2
  return true
end

local drop, awaited = {}, {}
for n, job in ipairs(jobs) do
  if verdicts[n] == 1 and job.what ~= 'end' and not keep_body(job) then
    verdicts[n] = 2
  end
  if verdicts[n] == 1 then
    drop[#drop + 1] = IN_PROGRESS .. job.id
    if job.what == 'end' then
      drop[#drop + 1] = RETRY .. job.id
      drop[#drop + 1] = OWN .. job.id
      if flagged(job, 'c') then
        drop[#drop + 1] = ONCE .. job.id
      end
      if flagged(job, 'x') then
        drop[#drop + 1] = UNIQUE .. job.id -- who cancels may enqueue it again
      end
      if held[#jobs + n] then
        drop[#drop + 1] = AWAITED .. job.id
        awaited[job] = held[#jobs + n]
      end
      if flagged(job, 'b') then
        job.body = try('GET', JOB .. job.id) or ''
      end
      -- A body of a wrong type is no string to keep in a letter: it goes there as it is.
      if job.letter ~= '' and job.body == '' and redis.call('TYPE', JOB .. job.id).ok ~= 'none' then
        job.moved = true
      else
        drop[#drop + 1] = JOB .. job.id
      end
    end
  end
end
if #drop > 0 then
  redis.call('DEL', unpack(drop))
end

local out, forget, settled_aborts, known = {}, {}, {}, {}
local completed, failed, wake = 0, 0, false

local function write_end(job)
  if job.result ~= '' then
    try('SET', RESULT .. job.id, job.result, unpack(job.ttl ~= '' and { 'PX', job.ttl } or {}))
  end
  out[#out + 1] = job.id
  completed = completed + (flagged(job, 'c') and 1 or 0)
  failed = failed + (flagged(job, 'f') and 1 or 0)
end

local function write_again(job)
  local remember_s = exact(REMEMBER_S + math.ceil(job.delay / 1000))
  try('SET', RETRY .. job.id, math.max(job.keep, 0), 'EX', remember_s) -- also 0: it vouches for `own`
  if job.own ~= '' then
    try('SET', OWN .. job.id, job.own, 'EX', remember_s)
  end
  if job.missing then
    try('SET', JOB .. job.id, job.body, 'PX', exact(job.ttl_wanted))
  elseif job.ttl_wanted then
    try('PEXPIRE', JOB .. job.id, exact(job.ttl_wanted))
  end
end

local function put_back(job)
  if job.what == 'back' then
    try('ZADD', queue, 'XX', job.place, job.id)
  else
    defer(queue, later, job.id, now + job.delay, priority(tonumber(job.place)))
  end
  if flagged(job, 'n') then
    try('HSET', unknown, job.id, job.letter)
  end
  wake = true
end

for n, job in ipairs(jobs) do
  if verdicts[n] == 1 then
    if job.what == 'end' then
      write_end(job)
    else
      write_again(job)
    end
    forget[#forget + 1] = member(job.token, job.place, job.id)
    if flagged(job, 'a') then
      settled_aborts[#settled_aborts + 1] = job.id
    end
    if flagged(job, 'u') then
      known[#known + 1] = job.id
    end
  end
end
local answer = table.concat(verdicts)
if #drop > 0 then
  try('SET', batch, seq .. ':' .. answer, 'EX', 600)
end

if #out > 0 then
  try('ZREM', queue, unpack(out))
end
if #forget > 0 then
  try('ZREM', later, unpack(forget))
end
if #settled_aborts > 0 then
  now = now or clock()
  try('ZREM', abort, unpack(settled_aborts))
  try('ZREMRANGEBYSCORE', abort, '-inf', exact(now - FLAG_MS))
end
if #known > 0 then
  try('HDEL', unknown, unpack(known))
end

local letters = false
for n, job in ipairs(jobs) do
  if verdicts[n] == 1 then
    if job.what ~= 'end' then
      put_back(job)
    elseif job.letter ~= '' then
      now = now or clock()
      letters = true
      try('DEL', LETTER .. job.id)
      try('HSET', LETTER .. job.id, 'letter', job.letter, 'body', job.body)
      try('PEXPIRE', LETTER .. job.id, letters_ms)
      if job.moved then
        try('RENAME', JOB .. job.id, LETTER .. job.id .. ':original')
        try('PEXPIRE', LETTER .. job.id .. ':original', letters_ms)
      end
      try('ZADD', dead, now, job.id)
    end
  end
end

local dropped = {}
if letters then
  try('ZREMRANGEBYSCORE', dead, '-inf', exact(now - letters_ms))
  local over = (try('ZCARD', dead) or 0) - most_dead
  if over > 0 then
    local oldest = try('ZPOPMIN', dead, math.min(over, 500)) or {}
    for i = 1, #oldest, 2 do
      dropped[#dropped + 1] = oldest[i]
      try('DEL', LETTER .. oldest[i], LETTER .. oldest[i] .. ':original')
    end
  end
end
if completed > 0 then
  try('HINCRBY', count, 'completed', completed)
end
if failed > 0 then
  try('HINCRBY', count, 'failed', failed)
end
if wake then
  try('ZADD', mark, 0, 0)
end
for job, names in pairs(awaited) do
  tell(job.id, names, job.result)
end
return { answer, dropped, trouble }
