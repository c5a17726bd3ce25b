--[[
checkpoint: make steps of a running turn safe, so that a resumed turn does not repeat them.

KEYS[1]  steps        list    see worker/turn/checkpoints.py, oldest first
KEYS[2]  state        hash    `call`: the model call in flight; ended by a checkpoint
KEYS[3]  in_progress  string  `<token> <worker id>` of the holder
KEYS[4]  copies       list    `<stream> <entry id>`, capped
KEYS[5..]  shared     stream  shared streams to copy into, each once

ARGV[1]   lease         str  as claimed
ARGV[2]   retention_ms  int  expiry of the lists and streams
ARGV[3]   known         int  steps that the caller knows of: a repeated call writes nothing
ARGV[4]   limits        str  `<copies> <shared stream>`: entries kept
ARGV[5..]  lists        list  counted lists, each `n` and then n times its items: steps; copies (index
           in KEYS, number of words, field and value words)

Returns
  {'checkpointed', n}  n steps are safe
  {'fenced', 0}        the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  steps and copies are written together, once
  I4  whoever reads a shared stream is told on the channel of its name, behind the writes
]]
local steps, state, in_progress, copies = unpack(KEYS, 1, 4)
local lease, retention_ms, known, limits = unpack(ARGV, 1, 4)

if redis.call('GET', in_progress) ~= lease then
  return {'fenced', 0}
end
local length = redis.call('LLEN', steps)
if length ~= tonumber(known) then
  return {'checkpointed', length}
end
local copies_limit, shared_limit = string.match(limits, '^(%d+) (%d+)$')
local at = 6
for i = at, at + ARGV[at - 1] - 1 do
  length = redis.call('RPUSH', steps, ARGV[i])
  at = i + 1
end
local grown = {}  -- streams
for _ = 1, ARGV[at] do
  local stream, words = KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
  local id = redis.call('XADD', stream, 'MAXLEN', '~', shared_limit, '*',
    unpack(ARGV, at + 3, at + 2 + words))
  redis.call('PEXPIRE', stream, retention_ms)
  redis.call('XTRIM', stream, 'MINID', string.format('%.0f', string.match(id, '^%d+') - retention_ms))
  if redis.call('RPUSH', copies, stream .. ' ' .. id) > tonumber(copies_limit) then
    local oldest, at_id = string.match(redis.call('LPOP', copies), '^(.+) (%S+)$')
    redis.call('XDEL', oldest, at_id)  -- `forget` could no longer find it
  end
  redis.call('PEXPIRE', copies, retention_ms)
  grown[stream] = true
  at = at + 2 + words
end
redis.call('HDEL', state, 'call')
redis.call('PEXPIRE', steps, retention_ms)
for stream in pairs(grown) do
  redis.pcall('SPUBLISH', stream, '')  -- without the right to, readers look now and then
end
return {'checkpointed', length}
