--[[
emit: publish events of a running turn, unless the caller lost its lease.

KEYS[1]  events       stream  capped
KEYS[2]  state        hash    `call`: the model call in flight; `head`; `emitted`: the last batch
KEYS[3]  in_progress  string  `<token> <worker id>` of the holder

ARGV[1]  lease         str    as claimed
ARGV[2]  call          str    JSON of a model call that begins now; '' leaves it as it is
ARGV[3]  events_limit  int    events kept, about
ARGV[4]  retention_ms  int    expiry of the stream if it has none yet
ARGV[5]  head          str    the inbox entry whose turn this belongs to; '' for none in particular
ARGV[6]  batch         int    grows from batch to batch of a turn: a repeated one writes nothing
ARGV[7..] event        bytes  JSON, in order

Returns
  {'emitted', n}  n events written; 0 if they were before, or if the turn is over
  {'fenced', 0}   the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  nothing of a turn follows its terminal event, and nothing is said twice
]]
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return {'fenced', 0}
end
local state = redis.call('HMGET', KEYS[2], 'head', 'emitted')
if ARGV[5] ~= '' and (state[1] ~= ARGV[5] or tonumber(state[2] or 0) >= tonumber(ARGV[6])) then
  return {'emitted', 0}
end
redis.call('HSET', KEYS[2], 'emitted', ARGV[6])
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[2], 'call', ARGV[2])
end
for i = 7, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'e', ARGV[i])
end
if redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return {'emitted', #ARGV - 6}
