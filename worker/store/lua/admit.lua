--[[
admit: ask whether a model may be called now; after an outage, let one call through to try.

KEYS[1]  breakers  hash  per name: `|failures`, `|until` (ms), `|pause` (ms), `|probe` while one is out

ARGV[1]  name  str  base URL and model

Returns
  {'closed', 0}  call it
  {'probe', 0}   call it: this call decides whether the breaker closes
  {'open', ms}   do not call it for so long

Invariants
  I1  one probe at a time: whoever gets it holds the others off for another pause
  I2  every read precedes every write; the clock is the server's
]]
local fields = redis.call('HMGET', KEYS[1], ARGV[1] .. '|until', ARGV[1] .. '|pause')
if not fields[1] then
  return {'closed', 0}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if now < tonumber(fields[1]) then
  return {'open', tonumber(fields[1]) - now}
end
redis.call('HSET', KEYS[1], ARGV[1] .. '|until', now + fields[2], ARGV[1] .. '|probe', 1)
return {'probe', 0}
