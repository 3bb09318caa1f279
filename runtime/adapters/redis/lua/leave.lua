-- Gives back what is reserved, and nobody will come for.
--
-- KEYS  the buckets, then as many keys with what operators have set, then the breaker if there is one
-- ARGV  1 number of buckets  2 id of the reservation, then the rule of each bucket
-- Gives the number of buckets that had it

local count, id = tonumber(ARGV[1]), ARGV[2]
local now = clock()
local values = redis.call('MGET', unpack(KEYS))
local had = 0
for i = 1, count do
  if values[i] then
    local bucket = read(KEYS[i], values[i], rule_of(ARGV[2 + i], values[count + i]), now)
    if find(bucket, id, true) then
      had = had + 1
      write(bucket, now)
    end
  end
end
local breaker = breaker_of(values[2 * count + 1])
if breaker and breaker.id == id then
  end_probe(KEYS[2 * count + 1], breaker)
end
return had
