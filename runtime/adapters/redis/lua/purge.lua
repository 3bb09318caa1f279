-- Takes the jobs of a queue out that nobody holds, a page at a time, and leaves nothing of them; only who waits for one at
-- this moment finds a result.
--
-- KEYS  1 queue  2 later  3 arq:abort  4 unknown
-- ARGV  1 score to begin with  2 how many of that score to pass over  3 how many jobs to look at  4 the result for who
--       waits, the same for all  5 its ttl (ms)
-- Gives { how many were taken out, how many are held and stay, score to go on with, how many of it to pass over };
--       the score is '' at the end.
--
-- By scores, not by ranks: a job that is settled meanwhile, or claimed, moves nobody else. Each page is one step, so that
-- others are served between two.

local queue, later, abort, unknown = unpack(KEYS)
local from, pass, most, outcome, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]

local page = redis.call('ZRANGEBYSCORE', queue, from, '+inf', 'WITHSCORES', 'LIMIT', pass, most)
if #page == 0 then
  return { 0, 0, '', 0 }
end
local last = page[#page]
local names = {}
for i = 1, #page, 2 do
  names[i], names[i + 1] = IN_PROGRESS .. page[i], AWAITED .. page[i]
end
local known = redis.call('MGET', unpack(names))

local gone, is_gone, drop, awaited, passed = {}, {}, {}, {}, last == from and pass or 0
for i = 1, #page, 2 do
  local id = page[i]
  if known[i] then
    passed = passed + (page[i + 1] == last and 1 or 0)
  else
    gone[#gone + 1], is_gone[id], awaited[id] = id, true, known[i + 1] or nil
    for _, prefix in ipairs({ JOB, RETRY, OWN, ONCE, AWAITED, UNIQUE }) do
      drop[#drop + 1] = prefix .. id
    end
  end
end

-- Their entries in `later` have their scores: they wait for their priority, or a lease has lapsed.
local function forget()
  local entries = {}
  for _, entry in ipairs(try('ZRANGEBYSCORE', later, page[2], last, 'LIMIT', 0, 1000) or {}) do
    local _, _, id = parse(entry)
    if is_gone[id or ''] then
      entries[#entries + 1] = entry
    end
  end
  if #entries > 0 then
    try('ZREM', later, unpack(entries))
  end
end

-- A stock worker may be about to claim one, between its look and its EXEC: it watches this key, and gives up.
local function disturb()
  local holders = {}
  for n, id in ipairs(gone) do
    holders[n] = IN_PROGRESS .. id
    try('SET', holders[n], '', 'PX', 1)
  end
  redis.call('DEL', unpack(holders))
end

if #gone > 0 then
  redis.call('DEL', unpack(drop)) -- first: after a DEL a server that is out of memory lets the rest through
  redis.call('ZREM', queue, unpack(gone))
  disturb()
  forget()
  try('ZREM', abort, unpack(gone))
  try('HDEL', unknown, unpack(gone))
  for id, waiting in pairs(awaited) do
    try('SET', RESULT .. id, outcome, 'PX', ttl)
    tell(id, waiting, outcome)
  end
end
local ends = #page < 2 * most
return { #gone, #page / 2 - #gone, ends and '' or last, ends and 0 or passed }
