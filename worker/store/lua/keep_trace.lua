--[[
keep_trace: keep the spans of one attempt for a while, among the newest of the shard.

KEYS[1]  turns   hash    of the conversation; without the turn it was forgotten
KEYS[2]  traces  stream  of the shard, capped
KEYS[3]  copies  list    `<stream> <entry id>`, capped

ARGV[1]  conversation  str
ARGV[2]  turn_id       str
ARGV[3]  trace_id      str
ARGV[4]  state         str    how the turn ended; '' if this attempt did not end it
ARGV[5]  duration_ms   int    since acceptance
ARGV[6]  spans         bytes  JSON
ARGV[7]  kept          int    entries of the stream, about
ARGV[8]  oldest_ms     int    age of the oldest entry
ARGV[9]  copies_kept   int

Returns
  {'kept', id}       the entry's id
  {'forgotten', ''}  nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  what is kept of a conversation is found by `forget`
]]
local turns, traces, copies = unpack(KEYS)
local conversation, turn_id, trace_id, state, duration_ms, spans, kept, oldest_ms, copies_kept = unpack(ARGV)

if redis.call('HEXISTS', turns, turn_id) == 0 then
  return {'forgotten', ''}
end
local id = redis.call('XADD', traces, 'MAXLEN', '~', kept, '*',
  'c', conversation, 't', turn_id, 'i', trace_id, 's', state, 'd', duration_ms, 'j', spans)
local now = tonumber(string.match(id, '^%d+'))
redis.call('XTRIM', traces, 'MINID', '~', string.format('%.0f', math.max(0, now - oldest_ms)))
redis.call('PEXPIRE', traces, oldest_ms)
if redis.call('RPUSH', copies, traces .. ' ' .. id) > tonumber(copies_kept) then
  local oldest, at_id = string.match(redis.call('LPOP', copies), '^(.+) (%S+)$')
  redis.call('XDEL', oldest, at_id)  -- `forget` could no longer find it
end
redis.call('PEXPIRE', copies, math.max(redis.call('PTTL', turns), oldest_ms))
return {'kept', id}
