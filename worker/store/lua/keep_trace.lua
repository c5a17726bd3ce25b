--[[
keep_trace: keep the spans of one attempt for a while, among the newest of the shard.

KEYS[1]  turns   hash    of the conversation; without the turn it was forgotten
KEYS[2]  traces  stream  of the shard, capped
KEYS[3]  copies  list    `<stream> <entry id>`, capped

ARGV[1]  conversation  str
ARGV[2]  turn_id       str
ARGV[3]  trace_id      str
ARGV[4]  state         str    how the turn ended; '' if this attempt did not end it
ARGV[5]  duration      int    ms since acceptance
ARGV[6]  spans         bytes  JSON
ARGV[7]  kept          int    entries of the stream, about
ARGV[8]  oldest_ms     int    age of the oldest entry, ms
ARGV[9]  copies_kept   int

Returns
  {'kept', id}       the entry's id
  {'forgotten', ''}  nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  what is kept of a conversation is found by `forget`
]]
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then
  return {'forgotten', ''}
end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*',
  'c', ARGV[1], 't', ARGV[2], 'i', ARGV[3], 's', ARGV[4], 'd', ARGV[5], 'j', ARGV[6])
local now = tonumber(string.match(id, '^%d+'))
redis.call('XTRIM', KEYS[2], 'MINID', '~', string.format('%.0f', math.max(0, now - ARGV[8])))
redis.call('PEXPIRE', KEYS[2], ARGV[8])
if redis.call('RPUSH', KEYS[3], KEYS[2] .. ' ' .. id) > tonumber(ARGV[9]) then
  local oldest, at_id = string.match(redis.call('LPOP', KEYS[3]), '^(.+) (%S+)$')
  redis.call('XDEL', oldest, at_id)  -- what `forget` could not find is not kept
end
redis.call('PEXPIRE', KEYS[3], math.max(redis.call('PTTL', KEYS[1]), ARGV[8]))
return {'kept', id}
