--[[
admit: ask whether a model may be called now; after an outage, let one call through to try.

KEYS[1]  breakers  hash  per name: `|failures`, `|by` (who failed), `|until` (ms), `|pause` (ms), `|probe`
         while one is out, `|next` (ms)

ARGV[1]  name      str  base URL and model
ARGV[2]  who       str  mark of the conversation that asks, 8 characters
ARGV[3]  pause_ms  int  between two probes of conversations that did not fail

Returns
  {'closed', 0}  call it
  {'probe', 0}   call it: this call decides whether the breaker closes
  {'open', ms}   do not call it for so long

Invariants
  I1  one probe at a time: whoever gets it holds the others off for another pause
  I2  who has failed cannot hold off who has not: a conversation that is not in `|by` need not wait for a
      pause that failed probes of others made long
  I3  every read precedes every write; the clock is the server's
]]
local breakers = unpack(KEYS)
local name, who, pause_ms = unpack(ARGV)

local fields = redis.call('HMGET', breakers,
  name .. '|until', name .. '|pause', name .. '|by', name .. '|next')
if not fields[1] then
  return {'closed', 0}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local till, by = tonumber(fields[1]), fields[3] or ''
local is_new = not string.find(by, who, 1, true)
if now < till and not (is_new and fields[4] and now >= tonumber(fields[4])) then
  local wait = till - now
  if is_new and fields[4] and #by < 64 * 9 then  -- few fail: others may try soon
    wait = math.min(wait, tonumber(fields[4]) - now)
  end
  return {'open', wait}
end
redis.call('HSET', breakers, name .. '|probe', 1)
if is_new then
  redis.call('HSET', breakers, name .. '|next', now + pause_ms)
end
if now >= till then
  redis.call('HSET', breakers, name .. '|until', now + fields[2])
end
return {'probe', 0}
