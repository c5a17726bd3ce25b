--[[
report: note how a model call went; failures of many conversations open the breaker, a success closes it.

KEYS[1]  breakers  hash  per name: `|failures`, `|by` (who failed), `|until` (ms), `|pause` (ms), `|probe`
         while one is out, `|next` (ms)

ARGV[1]  name       str  base URL and model
ARGV[2]  outcome    str  'ok' or 'failed'
ARGV[3]  who        str  mark of the conversation, 8 characters
ARGV[4]  threshold  int  failures without a success in between that open the breaker
ARGV[5]  others     int  conversations that have to share them
ARGV[6]  pause_ms   int  first pause; doubled by each failed probe
ARGV[7]  cap_ms     int  longest pause
ARGV[8]  expiry_ms  int  of the whole hash, from the last failure on

Returns
  {'closed', n}  n failures since the last success
  {'open', ms}   not to be called for so long

Invariants
  I1  a success forgets everything about the name
  I2  once open, only a failed probe makes the pause longer: calls that began before are no news
  I3  however often a few conversations fail, they do not open it
  I4  every read precedes every write; the clock is the server's
]]
local breakers = unpack(KEYS)
local name, outcome, who, threshold, others, pause_ms, cap_ms, expiry_ms = unpack(ARGV)

local failures, till, by = name .. '|failures', name .. '|until', name .. '|by'
local pause, probe, following = name .. '|pause', name .. '|probe', name .. '|next'
if outcome == 'ok' then
  redis.call('HDEL', breakers, failures, till, by, pause, probe, following)
  return {'closed', 0}
end
local before = redis.call('HMGET', breakers, till, pause, probe, by, failures)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local failed = before[5] and before[4] or ''  -- without failures: left by an older version
if not string.find(failed, who, 1, true) then
  failed = string.sub(failed .. who .. ' ', -64 * 9)
end
local count = redis.call('HINCRBY', breakers, failures, 1)
redis.call('HSET', breakers, by, failed)
redis.call('PEXPIRE', breakers, expiry_ms)
if before[1] and not before[3] then
  return {'open', math.max(0, tonumber(before[1]) - now)}
end
if not before[1] and (count < tonumber(threshold) or #failed < others * 9) then
  return {'closed', count}
end
local wait = tonumber(pause_ms)
if before[2] then
  wait = math.min(tonumber(cap_ms), tonumber(before[2]) * 2)
end
redis.call('HSET', breakers, till, now + wait, pause, wait)
if not before[1] then
  redis.call('HSET', breakers, following, now + wait)
end
redis.call('HDEL', breakers, probe)
return {'open', wait}
