-- Corrects buckets by what is known better now.
--
-- KEYS  the buckets, then as many keys with what operators have set
-- ARGV  1 number of buckets, then four for each: rule, what, and two numbers of it:
--         'settle'  tokens used beyond what was taken (below zero: not used), and when they were granted (us)
--         'lower'   tokens that the provider has left, 0
--         'close'   us for which nothing is to be given, 0
-- Gives what was refunded of each, in tokens

local count = tonumber(ARGV[1])
local now = clock()
local values = redis.call('MGET', unpack(KEYS))

-- A use that was smaller than thought is made smaller, so far as that leaves the bucket no fuller than what was used
-- after it allows. The mark before it tells as much, or a little less; without a mark, nobody knows.
local function refund(bucket, n, granted)
  local rule, marks, mark, least = bucket.rule, bucket.marks, #bucket.marks + 1, 0
  if granted < bucket.last then
    repeat
      mark = mark - 1
      if mark == 0 then
        return 0
      end
    until marks[mark].t <= granted
    least = marks[mark].full
    n = math.min(n, (divide(math.max(0, bucket.full - least) * rule.count, rule.period)))
  end
  for i = 1, mark - 1 do
    marks[i].full = math.max(least, marks[i].full - (add(rule, 0, 0, n)))
  end
  bucket.full, bucket.parts = add(rule, bucket.full, bucket.parts, -n)
  if bucket.full < now then
    bucket.full, bucket.parts = now, 0
  end
  return n
end

local function settle(bucket, more, granted)
  if more < 0 then
    return refund(bucket, -more, granted)
  end
  spend(bucket, now, more)
  return 0
end

-- As if everything but n tokens had been used by t.
local function leave_only(bucket, n, t)
  local full, parts = add(bucket.rule, t, 0, math.max(0, bucket.rule.burst - n))
  if full > bucket.full or (full == bucket.full and parts > bucket.parts) then
    bucket.full, bucket.parts = full, parts
    forget(bucket, t)
  end
end

-- Who has a reservation is to ask again: all at once would be a stampede. One comes first, the others by the rate.
-- What is sure will be used in spite of it.
local function close(bucket, us)
  bucket.closed = math.max(bucket.closed, now + us)
  local sure = {}
  for _, one in ipairs(bucket.reserved) do
    sure[#sure + 1] = one.sure and one or nil
  end
  bucket.reserved = sure
  leave_only(bucket, 1, bucket.closed)
  forget(bucket, bucket.closed)
end

local refunded = {}
for i = 1, count do
  local a = 4 * i - 2
  local bucket = read(KEYS[i], values[i], rule_of(ARGV[a], values[count + i]), now)
  local what, x, y = ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  refunded[i] = 0
  if what == 'settle' then
    refunded[i] = settle(bucket, x, y)
  elseif what == 'lower' then
    leave_only(bucket, x, now)
  else
    close(bucket, x)
  end
  write(bucket, now)
end
return refunded
