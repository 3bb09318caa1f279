-- Tells a breaker how a call has ended.
--
-- KEYS  1 breaker
-- ARGV  1 'ok', 'failed' or 'broken'  2 id of the call  3 failures in a row that open it  4 how long it is open (us)
--       5 how long it is remembered after that (us)  6 reason, for people
-- Gives 'open', 'closed' or 'counted'

local key = KEYS[1]
local what, id, most, cool, remember, reason = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local now = clock()
local breaker = breaker_of(redis.call('MGET', key)[1]) -- of a wrong type it is none
local open = breaker ~= nil and breaker.open > 0
local probe = open and breaker.id == id

local function put(open_until, failures)
  local left = math.ceil((math.max(open_until - now, 0) + remember) / 1000)
  redis.call('SET', key, whole(open_until) .. ' 0 ' .. whole(failures) .. ' - ' .. reason, 'PX', whole(left))
end

if what == 'ok' then
  -- Only the probe closes it: others were on their way when it opened.
  if breaker and (probe or not open) then
    redis.call('DEL', key)
  end
  return (open and not probe) and 'open' or 'closed'
end
local failures = (breaker and breaker.failures or 0) + 1
if what == 'broken' or probe or (not open and failures >= most) then
  put(now + cool, failures)
  return 'open'
end
if not open then
  put(0, failures)
  return 'counted'
end
return 'open'
