--[[
leave: give up a place in the line for what a provider allows.

KEYS[1]  line  zset  who waits -> its number
KEYS[2]  due   zset  who waits -> when it comes again, ms

ARGV[1]  who  str  name of who waited

Returns
  {'left'}

Invariants
  I1  who does not wait may leave
  I2  what others wrote there stops nobody
]]
local line, due = unpack(KEYS)
local who = unpack(ARGV)

redis.pcall('ZREM', line, who)
redis.pcall('ZREM', due, who)
return {'left'}
