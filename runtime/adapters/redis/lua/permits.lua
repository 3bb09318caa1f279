-- Put before every script that deals with permits.
--
-- A permit is asked for, waited for and held as one and the same text: 'number|incarnation|most|token|id', of the
-- process that asks, and the job for which it does. It is valid while the job's lease has that token. `held` has
-- permits with 0, or with the ms since which the lease is missing; `waiting` has them by turn.

local HELD_MS = 2592000000 -- longer than any job runs: a dead holder is not looked for until somebody is refused
local WAITING_MS = 300000  -- whoever waits asks again long before that
local HANDED_MS = 60000    -- likewise
-- A lease that nobody has may be taken again by its keeper, after an outage of the server. For so long a holder is not
-- taken for dead.
local GRACE = 1000
local LOOK = 15000 -- the longest until somebody who waits asks again

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000), t[1] * 1000000 + t[2]
end

local function whole(x)
  return string.format('%.0f', x)
end

local function parse(permit)
  local incarnation, most, token, id = string.match(permit, '^%d+|([^|]*)|(%d+)|([^|]*)|(.*)$')
  return {
    permit = permit, incarnation = incarnation, most = tonumber(most), token = token,
    lease = 'arq:in-progress:' .. id,
  }
end

-- Of each: 'live', 'lapsed' (its lease is nobody's, for now) or 'lost' (another's).
local function states(permits)
  local leases, out = {}, {}
  for n, one in ipairs(permits) do
    leases[n] = one.lease
  end
  for n, owner in ipairs(redis.call('MGET', unpack(leases))) do
    out[n] = owner == permits[n].token and 'live' or owner and 'lost' or 'lapsed'
  end
  return out
end

local function hold(held, permit)
  redis.call('ZADD', held, 0, permit)
  redis.call('PEXPIRE', held, HELD_MS)
end

-- Its process is told; one of a wrong type under the list's name costs a message, which is got over by asking.
local function tell(one)
  local list = 'rt:{limit}:handed:' .. one.incarnation
  redis.pcall('RPUSH', list, one.permit)
  redis.pcall('PEXPIRE', list, HANDED_MS)
end

-- Hands permits on: to the first in line, as long as it finds fewer holders than it may. Who is dead loses its place.
-- `asking` has the permits that need no message. Gives whether somebody is left waiting.
local function hand_on(held, waiting, asking)
  local holders
  while true do
    local first = redis.call('ZRANGE', waiting, 0, 0)[1]
    if not first then
      return false
    end
    local one = parse(first)
    holders = holders or redis.call('ZCARD', held)
    if holders >= one.most then
      return true
    end
    redis.call('ZREM', waiting, first)
    if states({ one })[1] == 'live' then
      hold(held, first)
      holders = holders + 1
      if not asking[first] then
        tell(one)
      end
    end
  end
end
