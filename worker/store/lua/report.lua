--[[
report: take note of how a model call went; repeated failures open the breaker, a success closes it.

KEYS[1]  breakers  hash  per name: `|failures`, `|until` (ms), `|pause` (ms), `|probe` while one is out

ARGV[1]  name       str  base URL and model
ARGV[2]  outcome    str  'ok' or 'failed'
ARGV[3]  threshold  int  failures without a success in between that open the breaker
ARGV[4]  pause_ms   int  first pause; doubled by each failed probe
ARGV[5]  cap_ms     int  longest pause
ARGV[6]  expiry_ms  int  of the whole hash, from the last failure on

Returns
  {'closed', n}  n failures since the last success
  {'open', ms}   not to be called for so long

Invariants
  I1  a success forgets everything about the name
  I2  once open, only a failed probe makes the pause longer: calls that began before are no news
  I3  every read precedes every write; the clock is the server's
]]
local failures, till = ARGV[1] .. '|failures', ARGV[1] .. '|until'
local pause, probe = ARGV[1] .. '|pause', ARGV[1] .. '|probe'
if ARGV[2] == 'ok' then
  redis.call('HDEL', KEYS[1], failures, till, pause, probe)
  return {'closed', 0}
end
local before = redis.call('HMGET', KEYS[1], till, pause, probe)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local count = redis.call('HINCRBY', KEYS[1], failures, 1)
redis.call('PEXPIRE', KEYS[1], ARGV[6])
if before[1] and not before[3] then
  return {'open', math.max(0, tonumber(before[1]) - now)}
end
if not before[1] and count < tonumber(ARGV[3]) then
  return {'closed', count}
end
local wait = tonumber(ARGV[4])
if before[2] then
  wait = math.min(tonumber(ARGV[5]), tonumber(before[2]) * 2)
end
redis.call('HSET', KEYS[1], till, now + wait, pause, wait)
redis.call('HDEL', KEYS[1], probe)
return {'open', wait}
