-- Looks at buckets and breakers, and changes nothing.
--
-- KEYS  the buckets, then as many keys with what operators have set, then the breakers
-- ARGV  1 number of buckets, then the rule of each
-- Gives { seven for each bucket: level (tokens, a string), us until one token can be had, us it is closed for, reservations,
--         the rule that counts ('count:period:burst'), whether it is an operator's (0|1), us that one counts for (-1: for good),
--         six for each breaker: 'closed' | 'open' | 'half-open', us it is open for, failures in a row, whether its probe is
--         under way (0|1), reason, 0 }

local count = tonumber(ARGV[1])
local now = clock()
local values = redis.call('MGET', unpack(KEYS))
local out = {}
local function add_all(...)
  for _, item in ipairs({ ... }) do
    out[#out + 1] = item
  end
end

for i = 1, count do
  local set = values[count + i]
  local rule = rule_of(ARGV[1 + i], set)
  local bucket = read(KEYS[i], values[i], rule, now)
  local waiting = 0
  for _, one in ipairs(bucket.reserved) do
    waiting = waiting + (one.t > now and 1 or 0)
  end
  add_all(
    string.format('%.3f', level(bucket, now)), whole(earliest(bucket, now, 1) - now),
    whole(math.max(0, bucket.closed - now)), waiting,
    said(rule), set and 1 or 0,
    set and whole(redis.call('PTTL', KEYS[count + i]) * 1000) or '-1'
  )
end
for i = 2 * count + 1, #KEYS do
  local breaker = breaker_of(values[i])
  local state = not (breaker and breaker.open > 0) and 'closed' or breaker.open > now and 'open' or 'half-open'
  add_all(
    state, whole(breaker and math.max(0, breaker.open - now) or 0), breaker and breaker.failures or 0,
    breaker and breaker.probe > now and 1 or 0, breaker and breaker.reason or '', 0
  )
end
return out
