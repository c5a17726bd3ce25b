--[[
learn: take note of what a provider allows of a model.

KEYS[1]  budget  hash  see reserve.lua

ARGV[1]  limits    str  `<window>=<limit>;..`
ARGV[2]  lasts_ms  int  for how long they count; 0: until others are told
ARGV[3]  pause_ms  int  time in which nothing is to be sent
ARGV[4]  wider     int  thousandths by which windows grow: the provider counts otherwise than we do

Returns
  {'learned'}

Invariants
  I1  a pause is never made shorter; the clock is the server's
  I2  what others wrote there stops nobody
]]
local budget = unpack(KEYS)
local limits, lasts_ms, pause_ms, wider = unpack(ARGV)

-- Read a number that others may have written: `otherwise`, if it is none or not within these bounds.
local function within(value, least, most, otherwise)
  local read = tonumber(value or nil)
  return read and read >= least and read <= most and read or otherwise
end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local facts = redis.pcall('HMGET', budget, 'until', 'margin')
if facts.err then
  redis.call('DEL', budget)
  facts = {}
end
redis.call('HSET', budget, 'seen', 1)
for id, limit in string.gmatch(limits, '(%a+)=(%d+)') do
  if lasts_ms == '0' then
    redis.call('HSET', budget, 'l:' .. id, limit)
  else
    redis.call('HSET', budget, 'n:' .. id, string.format('%s %.0f', limit, now + lasts_ms))
  end
end
if pause_ms ~= '0' then
  local stop = within(facts[1], 0, now + 60000, 0)
  redis.call('HSET', budget, 'until', string.format('%.0f', math.max(stop, now + pause_ms)))
end
if wider ~= '0' then
  redis.call('HSET', budget, 'margin', math.min(200, within(facts[2], 0, 200, 10) + wider))
end
redis.call('PEXPIRE', budget, 86400000)
return {'learned'}
