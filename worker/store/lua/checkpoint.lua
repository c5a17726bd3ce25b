--[[
checkpoint: make steps of a running turn safe, so that a resumed turn does not repeat them.

KEYS[1]  steps        list    see worker/turn/checkpoints.py, oldest first
KEYS[2]  state        hash    `call`: the model call in flight; ended by a checkpoint
KEYS[3]  in_progress  string  `<token> <worker id>` of the holder
KEYS[4]  copies       list    `<stream> <entry id>`, capped
KEYS[5..]             stream  shared streams to copy into, each once

ARGV[1]   lease         str  as claimed
ARGV[2]   retention_ms  int  expiry of the lists and streams
ARGV[3]   expected      int  steps the caller knows of: a repeated call writes nothing
ARGV[4]   limits        str  `<copies> <shared stream>`: entries kept
ARGV[5..]               counted lists, each `n` and then n times its items: steps; copies (index in
          KEYS, number of words, field and value words)

Returns
  {'checkpointed', n}  n steps are safe
  {'fenced', 0}        the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  steps and copies are written together, once
]]
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return {'fenced', 0}
end
local length = redis.call('LLEN', KEYS[1])
if length ~= tonumber(ARGV[3]) then
  return {'checkpointed', length}
end
local copies, shared = string.match(ARGV[4], '^(%d+) (%d+)$')
local at = 6
for i = at, at + ARGV[5] - 1 do
  length = redis.call('RPUSH', KEYS[1], ARGV[i])
  at = i + 1
end
for _ = 1, ARGV[at] do
  local stream, words = KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
  local id = redis.call('XADD', stream, 'MAXLEN', '~', shared, '*',
    unpack(ARGV, at + 3, at + 2 + words))
  redis.call('PEXPIRE', stream, ARGV[2])
  redis.call('XTRIM', stream, 'MINID', string.format('%.0f', string.match(id, '^%d+') - ARGV[2]))
  if redis.call('RPUSH', KEYS[4], stream .. ' ' .. id) > tonumber(copies) then
    local oldest, at_id = string.match(redis.call('LPOP', KEYS[4]), '^(.+) (%S+)$')
    redis.call('XDEL', oldest, at_id)  -- what `forget` could not find is not kept
  end
  redis.call('PEXPIRE', KEYS[4], ARGV[2])
  at = at + 2 + words
end
redis.call('HDEL', KEYS[2], 'call')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'checkpointed', length}
