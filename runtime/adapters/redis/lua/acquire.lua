-- Asks for permits of one limit: for new ones, and again for those that are waited for.
--
-- KEYS  1 held  2 waiting
-- ARGV  the permits, all of one process
-- Gives { in how many ms to ask again, 'held' | 'waiting' | 'lapsed' (ask soon) | 'lost' for each }

local held, waiting = KEYS[1], KEYS[2]

local permits, asking = {}, {}
for n, permit in ipairs(ARGV) do
  permits[n], asking[permit] = parse(permit), true
end
local answers = states(permits)

-- As most times: nobody waits, and there is room.
if #permits == 1 and answers[1] == 'live' and redis.call('ZCARD', waiting) == 0
  and redis.call('ZCARD', held) < permits[1].most then
  hold(held, ARGV[1])
  return { LOOK, 'held' }
end
local now, now_us = clock()

-- Holders without a lease are taken out when they have been so for long enough. Gives when it is worth looking again:
-- when the first lease would lapse that is not extended.
local function bury()
  local holders, since = {}, {}
  local flat = redis.call('ZRANGE', held, 0, -1, 'WITHSCORES')
  for n = 1, #flat / 2 do
    holders[n], since[n] = parse(flat[2 * n - 1]), tonumber(flat[2 * n])
  end
  local look = LOOK
  for n, state in ipairs(#holders > 0 and states(holders) or {}) do
    local one, missed = holders[n], since[n]
    if state == 'live' then
      local left = redis.call('PTTL', one.lease)
      look = left >= 0 and math.min(look, left + 1) or look
      if missed > 0 then
        redis.call('ZADD', held, 0, one.permit)
      end
    elseif state == 'lost' or (missed > 0 and now - missed >= GRACE) then
      redis.call('ZREM', held, one.permit)
    else
      if missed == 0 or missed > now then
        missed = now
        redis.call('ZADD', held, whole(now), one.permit)
      end
      look = math.min(look, missed + GRACE - now)
    end
  end
  return look
end

-- Those who wait already keep their turn.
local function line_up(places)
  local last = redis.call('ZRANGE', waiting, -1, -1, 'WITHSCORES')[2]
  local turn = math.max(now_us, last and tonumber(last) + 1 or 0)
  local turns = {}
  for n, one in ipairs(permits) do
    if answers[n] == 'live' and not places[n] then
      turns[#turns + 1], turns[#turns + 2] = whole(turn + n), one.permit
    end
  end
  if #turns > 0 then
    redis.call('ZADD', waiting, 'NX', unpack(turns))
    redis.call('PEXPIRE', waiting, WAITING_MS)
  end
end

local places = redis.call('ZMSCORE', held, unpack(ARGV))
line_up(places)
local look = LOOK
if hand_on(held, waiting, asking) then
  look = bury()
  hand_on(held, waiting, asking)
end

places = redis.call('ZMSCORE', held, unpack(ARGV))
local reply = { look }
for n, state in ipairs(answers) do
  reply[n + 1] = state ~= 'live' and state or places[n] and 'held' or 'waiting'
end
return reply
