-- Cancels one job: takes it out of its queue if nobody holds it, else asks its holder to stop it.
--
-- KEYS  1 queue  2 later  3 arq:abort  4 count  5 unknown
--       6 arq:job:<id>  7 arq:in-progress:<id>  8 arq:retry:<id>  9 arq:result:<id>  10 rt:own:<id>
--       11 rt:awaited:<id>  12 rt:unique:<id>
-- ARGV  1 id  2 its body, as the last call gave it, else ''  3 the result to leave, made of that body
--       4 the result's ttl (ms)
-- Gives { 'cancelled' }, { 'asked' }, { 'gone' } (this queue has no such job; nothing was written),
--       or { 'changed', body, starts }: to be called again with a result that fits this body.
--
-- Whoever holds the job sees the flag: our keeper when it extends the lease, a stock worker that allows aborts. One of
-- ours is told to look at once, by the token of its lease: that is of this claim alone, and what counts is the flag.

local queue, later, abort, count, unknown, job, holder, retry, result, own, awaited, unique = unpack(KEYS)
local id, seen, outcome, ttl = unpack(ARGV)

local score = redis.call('ZSCORE', queue, id)
if not score then
  -- Ours, if this call repeats one whose reply was lost.
  return { outcome ~= '' and try('GET', result) == outcome and 'cancelled' or 'gone' }
end
local token = redis.pcall('GET', holder) -- of whatever type it is, the job is held
if token then
  redis.call('ZADD', abort, exact(clock()), id)
  local incarnation = type(token) == 'string' and string.match(token, '^%d+:([^:]+):%d+$')
  if incarnation then
    redis.pcall('PUBLISH', 'rt:stop:' .. incarnation, token) -- where that is not allowed, it looks by itself
  end
  return { 'asked' }
end
local body = try('GET', job)
if not body then
  return { 'gone' }
end
local starts = try('GET', retry)
if body ~= seen or outcome == '' then -- a body may be empty
  return { 'changed', body, tonumber(starts or '') or 0 }
end

-- Its entries in `later` have its score: one that waits for its priority, and of one that was started, lapsed leases.
local p = priority(tonumber(score))
local forget = { member('', exact(place(tonumber(score) - p / 1024, p)), id) }
for _, entry in ipairs(starts and try('ZRANGEBYSCORE', later, score, score, 'LIMIT', 0, 1000) or {}) do
  local _, _, whose = parse(entry)
  if whose == id then
    forget[#forget + 1] = entry
  end
end

local names = try('GET', awaited)

-- As in settle.lua: a DEL first, then what may fail.
redis.call('DEL', job, retry, own, awaited, unique) -- who cancels may enqueue it again
-- A stock worker may be about to claim it, between its look and its EXEC: it watches this key, and gives up.
try('SET', holder, '', 'PX', 1)
try('DEL', holder)
try('SET', result, outcome, 'PX', ttl)
try('ZREM', queue, id)
try('ZREM', later, unpack(forget))
try('ZREM', abort, id)
try('HDEL', unknown, id)
try('HINCRBY', count, 'failed', 1)
tell(id, names, outcome)
return { 'cancelled' }
