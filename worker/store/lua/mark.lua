--[[
mark: note that a budget is used up, for producers.

KEYS[1]  exhausted  hash  budget -> `<until, ms> <end, ms> <about>`; expires

ARGV[1]  budget    str    `fleet`, `t:<tenant>` or `c:<conversation>`
ARGV[2]  about     bytes  JSON: what producers are told
ARGV[3]  lasts_ms  int    for how long the mark says so, unless it is made again
ARGV[4]  again_ms  int    after how long it is worth trying again; 0: when the day (UTC) ends, and so does the mark

Returns
  {'marked', until}  `until` is in ms

Invariants
  I1  a mark ends by itself: with its day, or when no worker makes it again
  I2  marks that have ended go with the next one, whatever others wrote beside them
]]
local exhausted = unpack(KEYS)
local budget, about, lasts_ms, again_ms = unpack(ARGV)

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local midnight = (math.floor(now / 86400000) + 1) * 86400000
local is_daily = tonumber(again_ms) == 0
local ends = is_daily and midnight or now + again_ms
local lasts = now + lasts_ms
if is_daily and lasts > midnight then
  lasts = midnight
end

local found = redis.pcall('HGETALL', exhausted)
if found.err then
  redis.call('DEL', exhausted)
  found = {}
end
for n = 1, #found, 2 do
  local former = string.match(found[n + 1], '^(%d+) %d+ ')
  if found[n] ~= 'tenants' and (not former or tonumber(former) <= now) then
    redis.call('HDEL', exhausted, found[n])
  end
end
redis.call('HSET', exhausted, budget, string.format('%.0f %.0f ', lasts, ends) .. about)
if string.sub(budget, 1, 2) == 't:' then
  redis.call('HSET', exhausted, 'tenants', 1)
end
redis.call('PEXPIRE', exhausted, 60000)
return {'marked', lasts}
