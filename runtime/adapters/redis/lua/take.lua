-- Takes tokens from several buckets, all or none, or reserves them for the first moment at which all have them.
--
-- KEYS  the buckets, then as many keys with what operators have set, then the breaker if there is one
-- ARGV  1 number of buckets  2 id of this call  3 id of the reservation whose time has come, else ''
--       4 the longest wait (us)  5 how long a probe may take (us)
--       then two for each bucket: rule ('count:period:burst'), tokens
-- Gives { what, us, now (us), n, whether it is the probe (0|1), whether the breaker is to hear of a success (0|1), id }
--   'granted'   in `us`: 0, or a little more or less (below zero) where it was reserved; under this id
--   'reserved'  for `us` from now, under this id; bucket n has them latest
--   'dry'       nothing was taken; come back in `us`; because of bucket n
--   'open'      nothing was taken; come back in `us`; because of the breaker

local EARLY = 250000 -- whoever comes so long before its time may wait the rest by itself
local SPREAD = 60000000

local count, id, held = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local patience, probe_us = math.max(0, tonumber(ARGV[4])), tonumber(ARGV[5])
local now = clock()
local values = redis.call('MGET', unpack(KEYS))

local buckets, n = {}, {}
for i = 1, count do
  local rule = rule_of(ARGV[4 + 2 * i], values[count + i])
  buckets[i], n[i] = read(KEYS[i], values[i], rule, now), tonumber(ARGV[5 + 2 * i])
end

local function save()
  for _, bucket in ipairs(buckets) do
    write(bucket, now)
  end
end

local breaker_key = KEYS[2 * count + 1]
local breaker = breaker_key and breaker_of(values[2 * count + 1])

-- How long the breaker keeps this call back; nil if it does not. Half-open, it lets one through: the probe.
local function kept_back()
  if not breaker then
    return nil
  end
  if breaker.open > now then
    return breaker.open - now
  end
  if breaker.probe > now and breaker.id ~= held then
    return math.min(breaker.probe - now, 5000000)
  end
end

local function is_probe()
  return breaker ~= nil and breaker.open > 0
end

local function begin_probe(its_id, wait)
  if is_probe() then
    local until_us = whole(now + wait + probe_us)
    local head = table.concat({ whole(breaker.open), until_us, whole(breaker.failures), its_id }, ' ')
    redis.call('SET', breaker_key, head .. ' ' .. breaker.reason, 'KEEPTTL')
  end
end

local function answer(what, us, which, its_id)
  return { what, whole(us), whole(now), which or 0, is_probe() and 1 or 0, breaker and 1 or 0, its_id or '' }
end

-- From now to the time of what is held (us), which is used then; nil if it is not there in time.
local function due()
  local mine, left = {}, count > 0 and -LATE or 0
  for i, bucket in ipairs(buckets) do
    mine[i] = find(bucket, held)
    if not mine[i] or mine[i].t < now - LATE or mine[i].t > now + EARLY then
      return nil
    end
    left = math.max(left, mine[i].t - now)
  end
  for _, one in ipairs(mine) do
    one.sure = true
  end
  return left
end

local function let_go()
  for _, bucket in ipairs(buckets) do
    find(bucket, held, true)
  end
end

local keep_back = kept_back()
if keep_back then
  if held ~= '' then
    let_go()
    save()
  end
  return answer('open', keep_back)
end
if held ~= '' then
  local left = due()
  if left then
    save()
    begin_probe(held, left)
    return answer('granted', left, 0, held)
  end
  let_go()
end

local t, latest = now, 0
repeat
  local before = t
  for i, bucket in ipairs(buckets) do
    local first = earliest(bucket, t, n[i])
    if first > t then
      t, latest = first, i
    end
  end
until t == before

local crowded = false
for _, bucket in ipairs(buckets) do
  crowded = crowded or #bucket.reserved >= MOST_RESERVED
end
if t - now > patience or (crowded and t > now) then
  -- Those who are refused come back one after the other, as far as the next minute goes.
  local bucket = buckets[latest]
  local back = math.max(t, bucket.cursor)
  if back > t + SPREAD then
    back = t
  end
  bucket.cursor = add(bucket.rule, back, 0, n[latest])
  save()
  if breaker and breaker.id == held then
    end_probe(breaker_key, breaker)
  end
  return answer('dry', back - now, latest)
end

local sure = t == now
for i, bucket in ipairs(buckets) do
  reserve(bucket, id, t, n[i], sure)
  if sure then
    settle_past(bucket, now)
  end
end
save()
begin_probe(id, t - now)
return answer(sure and 'granted' or 'reserved', t - now, latest, id)
