--[[
checkpoint: make steps of a running turn safe, so that a resumed turn does not repeat them.

KEYS[1]  steps        list    `m<message>` or `c<ledger entry>`, JSON, oldest first
KEYS[2]  state        hash    `call`: the model call in flight; ended by a checkpoint
KEYS[3]  in_progress  string  `<token> <worker id>` of the holder

ARGV[1]   lease         str    as claimed
ARGV[2]   retention_ms  int    expiry of the list
ARGV[3]   expected      int    steps the caller knows of: a repeated call writes nothing
ARGV[4..] step          bytes  in order

Returns
  {'checkpointed', n}  n steps are safe
  {'fenced', 0}        the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read precedes every write
]]
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return {'fenced', 0}
end
local length = redis.call('LLEN', KEYS[1])
if length ~= tonumber(ARGV[3]) then
  return {'checkpointed', length}
end
for i = 4, #ARGV do
  length = redis.call('RPUSH', KEYS[1], ARGV[i])
end
redis.call('HDEL', KEYS[2], 'call')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'checkpointed', length}
