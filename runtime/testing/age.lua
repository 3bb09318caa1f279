-- Makes everything in this database older by so many ms: as if it had been written that much earlier.
--
-- ARGV  1 ms; then queues
-- Gives nothing.
--
-- Whatever says a moment is set back, and whatever expires does so that much sooner. What is left as it is, and why, is
-- said in `ageing.py`.

local by = tonumber(ARGV[1])

local queues = {}
for i = 2, #ARGV do
  queues[ARGV[i]] = true
end

local function exact(x)
  return string.format('%.17g', x)
end

local ABORTED = 1 -- what stock arq gives to a job that it aborts is no moment

local function older(score)
  score = tonumber(score)
  return exact(score == ABORTED and score or score - by)
end

local function age_zset(key)
  local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES'), {}
  for i = 1, #entries, 2 do
    redis.call('ZADD', key, older(entries[i + 1]), entries[i])
  end
end

-- Under `token|place|id`: the place is a moment, too.
local function age_later(key)
  local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #entries, 2 do
    local token, at, id = string.match(entries[i], '^([^|]*)|([^|]*)|(.*)$')
    if token then
      redis.call('ZREM', key, entries[i])
      redis.call('ZADD', key, older(entries[i + 1]), token .. '|' .. older(at) .. '|' .. id)
    end
  end
end

-- 'crashes|{"snoozed_since_ms":…}'
local function age_own(key)
  local own = redis.call('GET', key)
  local aged = string.gsub(own, '("%a+_since_ms":)(%d+)', function(name, since)
    return name .. exact(tonumber(since) - by)
  end)
  redis.call('SET', key, aged, 'KEEPTTL')
end

-- 0, or since when the lease of the permit is missing.
local function age_held(key)
  local entries = redis.call('ZRANGEBYSCORE', key, '(0', '+inf', 'WITHSCORES')
  for i = 1, #entries, 2 do
    redis.call('ZADD', key, older(entries[i + 1]), entries[i])
  end
end

local function age_count(key)
  local met = redis.call('HGET', key, 'met_ms')
  if met then
    redis.call('HSET', key, 'met_ms', exact(met - by))
  end
end

local rules = {
  { '^rt:.*:later$', 'zset', age_later },
  { '^rt:.*:dead$', 'zset', age_zset },
  { '^rt:.*:schedule$', 'zset', age_zset }, -- `inf` stays what it is
  { '^rt:{limit}:quota:', 'zset', age_zset },
  { '^rt:{limit}:held:', 'zset', age_held },
  { '^rt:own:', 'string', age_own },
  { '^rt:{limit}:count:', 'hash', age_count },
}

local function rule_of(key)
  if queues[key] then
    return 'zset', age_zset
  end
  for _, rule in ipairs(rules) do
    if string.find(key, rule[1]) then
      return rule[2], rule[3]
    end
  end
end

for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, age = rule_of(key)
  if kind and redis.call('TYPE', key).ok == kind then
    age(key)
  end
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= by then
    redis.call('DEL', key)
  elseif left >= 0 then
    redis.call('PEXPIRE', key, exact(left - by))
  end
end
