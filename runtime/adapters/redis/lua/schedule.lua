-- Put before every script that deals with buckets.
--
-- A bucket is a schedule: what was used, as the moment at which the bucket will be full again, and what is reserved for
-- moments to come. Both together are a list of uses in time, and a use is possible at t if the bucket, followed through
-- the whole list, never holds less than nothing. Times are whole microseconds by the server's clock. `full` is exact: a
-- whole number of microseconds, and so many parts of one of which `count` make it.
--
-- The value of a bucket's key:
--   at full parts rule closed cursor last|[t:full] ...|[id:t:n:sure] ...
--     at      the time of the last write                     closed  nothing is given before
--     rule    'count:period:burst', by which that was        last    the last use
--     cursor  up to here those who were refused are told to come back
--     t:full  marks, for refunds: when the bucket would be full again if it had been full at t
--     sure    1: it was asked for at its time, and is used. Who never asks (it died) has used nothing.

local LATE = 50000    -- so long after its time a reservation may be asked for; else its use would be too near to others
local SLACK = 1000000 -- so long after it nobody has asked for it, and it is taken for dead
local MOST_PAST = 100 -- but when so many wait for it to be seen whether one before them is dead, it is once it is late
local MOST_RESERVED = 500
local MOST_MARKS = 4
local LONGEST = 2251799813685248 -- us; no debt is longer, so that moments stay below 2^53

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local function whole(x)
  return string.format('%.0f', x)
end

-- x / y, rounded down, and the rest: exact for whole numbers up to 2^53, unlike floor(x / y).
local function divide(x, y)
  local rest = math.fmod(x, y) + 0 -- for fmod gives -0 too, which is written with its sign
  if rest < 0 then
    rest = rest + y
  end
  return (x - rest) / y, rest
end

-- The moment (full, parts), n tokens later; or earlier.
local function add(rule, full, parts, n)
  local micros, rest = divide(n * rule.period + parts, rule.count)
  return full + micros, rest
end

-- When the bucket will be full, after n tokens more are used at t.
local function use(rule, full, parts, t, n)
  if full < t then
    full, parts = t, 0
  end
  return add(rule, full, parts, n)
end

-- By how many microseconds a use of n at t comes too early (above zero: it does), if the bucket will be full at (full,
-- parts) after it. What is more than the bucket holds (somebody has made it smaller) is given when it is full.
local function early(rule, full, parts, t, n)
  local span, rest = divide(math.max(rule.burst, n) * rule.period, rule.count)
  return full - t - span + (parts > rest and 1 or 0)
end

-- `given` is 'count:period:burst', as declared; `set` the same, as an operator has set it for now.
local function rule_of(given, set)
  local pattern = '^([1-9]%d*):([1-9]%d*):([1-9]%d*)'
  local count, period, burst = string.match(set or '', pattern)
  if not count then
    count, period, burst = string.match(given, pattern)
  end
  return { count = tonumber(count), period = tonumber(period), burst = tonumber(burst) }
end

local function said(rule)
  return whole(rule.count) .. ':' .. whole(rule.period) .. ':' .. whole(rule.burst)
end

-- Nothing that was used until t is refunded any more.
local function forget(bucket, t)
  bucket.last, bucket.marks = math.max(bucket.last, t), {}
end

-- As if no time had gone by since `at`, by a clock that was turned back to `now`.
local function shift(bucket, at, now)
  for _, name in ipairs({ 'full', 'closed', 'cursor' }) do
    bucket[name] = math.max(0, bucket[name] - (at - now))
  end
  for _, one in ipairs(bucket.reserved) do
    one.t = one.t - (at - now)
  end
  forget(bucket, at + 1) -- moments of the one clock and of the other cannot be told apart
end

-- The rule has been `was` until now, or until the bucket will be open. As many tokens are in it then as there would have
-- been, as far as they fit: a change gives none, and takes none that could be used.
local function obey(bucket, was, now)
  local rule, from = bucket.rule, math.max(now, bucket.closed)
  local used = math.max(0, (bucket.full - from) * was.count + bucket.parts) / was.period
  local missing = math.max(0, used + rule.burst - was.burst)
  bucket.full, bucket.parts = from + math.min(LONGEST, math.ceil(missing * rule.period / rule.count)), 0
  forget(bucket, now)
end

-- n tokens are used at t. A bucket that is full by then begins anew.
local function spend(bucket, t, n)
  local rule, marks = bucket.rule, bucket.full > t and bucket.marks or {}
  local newest = marks[#marks]
  if t >= bucket.last and (not newest or t - newest.t >= rule.burst * rule.period / rule.count / 2) then
    if #marks == MOST_MARKS then
      table.remove(marks, 1)
    end
    marks[#marks + 1] = { t = t, full = t }
  end
  for _, mark in ipairs(marks) do
    local full, parts = use(rule, mark.full, 0, t, n)
    mark.full = full + (parts > 0 and 1 or 0)
  end
  bucket.full, bucket.parts = use(rule, bucket.full, bucket.parts, t, n)
  bucket.last, bucket.marks = math.max(bucket.last, t), marks
end

-- What is past becomes part of what was used, in its order; what nobody came for is dropped.
local function settle_past(bucket, now)
  local reserved, left = bucket.reserved, {}
  local slack = reserved[MOST_PAST] and reserved[MOST_PAST].t <= now and LATE or SLACK
  for _, one in ipairs(reserved) do
    if one.sure and one.t <= now and #left == 0 then
      spend(bucket, one.t, one.n)
    elseif one.t >= now - slack then
      left[#left + 1] = one
    end
  end
  bucket.reserved = left
end

local function read(key, value, rule, now)
  local bucket = { key = key, rule = rule, full = 0, parts = 0, closed = 0, cursor = 0, last = 0, marks = {}, reserved = {} }
  local at, full, parts, was, closed, cursor, last, marks, reserved =
    string.match(value or '', '^(%d+) (%d+) (%d+) (%d+:%d+:%d+) (%d+) (%d+) (%d+)|([^|]*)|(.*)$')
  if at then
    bucket.full, bucket.parts, bucket.closed = tonumber(full), tonumber(parts), tonumber(closed)
    bucket.cursor, bucket.last = tonumber(cursor), tonumber(last)
    for t, would_be_full in string.gmatch(marks, '(%d+):(%d+)') do
      bucket.marks[#bucket.marks + 1] = { t = tonumber(t), full = tonumber(would_be_full) }
    end
    for id, t, n, sure in string.gmatch(reserved, '([^ :]+):(%d+):(%d+):(%d)') do
      bucket.reserved[#bucket.reserved + 1] = { id = id, t = tonumber(t), n = tonumber(n), sure = sure == '1' }
    end
    if tonumber(at) > now then
      shift(bucket, tonumber(at), now)
    end
    if was ~= said(rule) then
      obey(bucket, rule_of(was), now)
    end
  end
  settle_past(bucket, now)
  return bucket
end

-- Writes the bucket; its key lives until it would be full and nothing is reserved, when it says nothing any more.
local function write(bucket, now)
  local head = {
    whole(now), whole(bucket.full), whole(bucket.parts), said(bucket.rule),
    whole(bucket.closed), whole(bucket.cursor), whole(bucket.last),
  }
  local full, parts, marks, out = bucket.full, bucket.parts, {}, {}
  for i, mark in ipairs(bucket.marks) do
    marks[i] = whole(mark.t) .. ':' .. whole(mark.full)
  end
  for _, one in ipairs(bucket.reserved) do
    full, parts = use(bucket.rule, full, parts, one.t, one.n)
    out[#out + 1] = one.id .. ':' .. whole(one.t) .. ':' .. whole(one.n) .. ':' .. (one.sure and 1 or 0)
  end
  local till = math.max(full + 1, bucket.closed, bucket.cursor, now + SLACK) + (#bucket.reserved > 0 and SLACK or 0)
  local value = table.concat(head, ' ') .. '|' .. table.concat(marks, ' ') .. '|' .. table.concat(out, ' ')
  -- A moment, not a length: by when the script runs, its server reckons lengths from a little earlier.
  redis.call('SET', bucket.key, value, 'PXAT', whole(math.ceil(till / 1000)))
end

local function hindered(bucket, i, full, parts, with_full, with_parts)
  local rule = bucket.rule
  for k = i, #bucket.reserved do
    local one = bucket.reserved[k]
    full, parts = use(rule, full, parts, one.t, one.n)
    with_full, with_parts = use(rule, with_full, with_parts, one.t, one.n)
    if early(rule, with_full, with_parts, one.t, one.n) > 0 then
      return one.t
    end
    if full == with_full and parts == with_parts then
      return nil
    end
  end
end

-- The first moment, not before t, at which n tokens can be used, and all that is reserved still can.
local function earliest(bucket, t, n)
  local rule, reserved = bucket.rule, bucket.reserved
  local full, parts, i = bucket.full, bucket.parts, 1
  t = math.max(t, bucket.closed)
  while true do
    while reserved[i] and reserved[i].t <= t do
      full, parts = use(rule, full, parts, reserved[i].t, reserved[i].n)
      i = i + 1
    end
    local with_full, with_parts = use(rule, full, parts, t, n)
    local wait = early(rule, with_full, with_parts, t, n)
    if wait > 0 then
      t = t + wait
    else
      local after = hindered(bucket, i, full, parts, with_full, with_parts)
      if not after then
        return t
      end
      t = after
    end
  end
end

local function reserve(bucket, id, t, n, sure)
  local place = #bucket.reserved + 1
  while place > 1 and bucket.reserved[place - 1].t > t do
    place = place - 1
  end
  table.insert(bucket.reserved, place, { id = id, t = t, n = n, sure = sure })
end

-- The reservation of this id, taken out if `out`.
local function find(bucket, id, out)
  for place, one in ipairs(bucket.reserved) do
    if one.id == id then
      return out and table.remove(bucket.reserved, place) or one
    end
  end
end

-- The tokens that are there at `now` for who comes now, less what is reserved: below zero if others are before it.
local function level(bucket, now)
  local full, parts = bucket.full, bucket.parts
  for _, one in ipairs(bucket.reserved) do
    full, parts = use(bucket.rule, full, parts, one.t, one.n)
  end
  local missing = math.max(0, (full - now) * bucket.rule.count + parts) / bucket.rule.period
  return bucket.rule.burst - missing
end

-- A breaker, as kept: 'open_until probe_until failures probe_id reason'; nil while nothing is wrong.
local function breaker_of(value)
  local open, probe, failures, id, reason = string.match(value or '', '^(%d+) (%d+) (%d+) (%S+) (.*)$')
  if not open then
    return nil
  end
  return { open = tonumber(open), probe = tonumber(probe), failures = tonumber(failures), id = id, reason = reason }
end

-- Another call may find out now.
local function end_probe(key, breaker)
  local value = whole(breaker.open) .. ' 0 ' .. whole(breaker.failures) .. ' - ' .. breaker.reason
  redis.call('SET', key, value, 'KEEPTTL')
end
