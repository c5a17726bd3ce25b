--[[
emit: publish events of a running turn, unless the caller lost its lease.

KEYS[1]  events       stream  capped
KEYS[2]  state        hash    `call`: the model call in flight
KEYS[3]  in_progress  string  `<token> <worker id>` of the holder

ARGV[1]  lease         str    as claimed
ARGV[2]  call          str    JSON of a model call that begins now; '' leaves it as it is
ARGV[3]  events_limit  int    events kept, about
ARGV[4]  retention_ms  int    expiry of the stream if it has none yet
ARGV[5..] event        bytes  JSON, in order

Returns
  {'emitted', n}  n events written
  {'fenced', 0}   the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
]]
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return {'fenced', 0}
end
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[2], 'call', ARGV[2])
end
for i = 5, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'e', ARGV[i])
end
if redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return {'emitted', #ARGV - 4}
