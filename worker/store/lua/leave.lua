--[[
leave: give up a place in the line for what a provider allows, and what it was charged.

KEYS[1]  line    zset  see reserve.lua
KEYS[2]  due     zset  see reserve.lua
KEYS[3]  shares  zset  see reserve.lua

ARGV[1]  who     str  name of who waited
ARGV[2]  lane    str  `<i or b>:<tenant>` of who waited
ARGV[3]  weight  str  of that tenant, a number

Returns
  {'left'}

Invariants
  I1  who does not wait may leave, and gets nothing for it
  I2  a tenant's next call stands where it would if who leaves had never come
  I3  what others wrote there stops nobody
]]
local line, due, shares = unpack(KEYS)
local who, lane, weight = unpack(ARGV)

-- Read a number that others may have written: `otherwise`, if it is none or not within these bounds.
local function within(value, least, most, otherwise)
  local read = tonumber(value or nil)
  return read and read >= least and read <= most and read or otherwise
end

local left = redis.pcall('ZREM', line, who)
redis.pcall('ZREM', due, who)
local following = within(redis.pcall('ZSCORE', shares, lane), 0, 1e15)
if left == 1 and following then
  redis.call('ZADD', shares, following - 1 / weight, lane)
end
return {'left'}
