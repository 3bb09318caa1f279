-- Gives permits back, held or waited for, and hands on what is free then.
--
-- KEYS  held and waiting, of each
-- ARGV  the permits
-- Gives an error for each whose keys are of a wrong type, and after an end of line the first of them: that keeps no
-- other permit back

local function give_back(held, waiting, permit)
  if redis.call('ZREM', held, permit) == 0 then
    redis.call('ZREM', waiting, permit)
  end
  hand_on(held, waiting, {})
end

local trouble = {}
for n, permit in ipairs(ARGV) do
  local ok, err = pcall(give_back, KEYS[2 * n - 1], KEYS[2 * n], permit)
  if not ok then
    local text = type(err) == 'table' and err.err or tostring(err)
    if not string.find(text, 'WRONGTYPE', 1, true) then
      error(err) -- the server's trouble: all are to be given back when it is over
    end
    trouble[#trouble + 1] = text .. '\n' .. KEYS[2 * n - 1]
  end
end
return trouble
