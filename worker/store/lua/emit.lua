--[[
emit: write events of a running turn, unless the caller lost its lease.

KEYS[1]  events       stream  capped
KEYS[2]  state        hash    `call`: the model call in flight; `head`; `emitted`: the last batch
KEYS[3]  in_progress  string  `<token> <worker id>` of the holder

ARGV[1]  lease         str    as claimed
ARGV[2]  call          bytes  JSON of a model call that begins now; '' leaves it as it is
ARGV[3]  events_limit  int    events kept, about
ARGV[4]  retention_ms  int    expiry of the stream if it has none yet
ARGV[5]  entry_id      str    the inbox entry whose turn this belongs to; '' for none in particular
ARGV[6]  batch         int    grows from batch to batch of a turn: a repeated one writes nothing
ARGV[7..]  events_json bytes  JSON, in order

Returns
  {'emitted', n}  n events written; 0 if they were before, or if the turn is over
  {'fenced', 0}   the lease was lost, or a call cannot be noted: its turn never began here, or later batches were
          written; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  nothing of a turn follows its terminal event, and nothing is written twice
  I4  whoever reads the stream is told on the channel of its name, behind the writes
]]
local events, state, in_progress = unpack(KEYS)
local lease, call, events_limit, retention_ms, entry_id, batch = unpack(ARGV, 1, 6)

-- Tell whoever reads a stream what was added behind which entry; where that is much, only that something was.
-- Without rights to channels nobody hears it: readers look by themselves now and then.
local function tell(stream, behind, ids, added)
  local words, bytes = {behind}, 0
  for i, id in ipairs(ids) do
    words[i + 1] = id .. ' ' .. #added[i]
    bytes = bytes + #added[i]
  end
  redis.pcall('SPUBLISH', stream,
    bytes > 16384 and '' or table.concat(words, ' ') .. '\n' .. table.concat(added))
end

if redis.call('GET', in_progress) ~= lease then
  return {'fenced', 0}
end
local head, emitted, last = unpack(redis.call('HMGET', state, 'head', 'emitted', 'last'))
if call ~= '' and entry_id ~= '' and (head ~= entry_id or tonumber(emitted or 0) > tonumber(batch)) then
  return {'fenced', 0}  -- such as when a failover lost the load: a call that nobody noted must not be made
end
if entry_id ~= '' and (head ~= entry_id or tonumber(emitted or 0) >= tonumber(batch)) then
  return {'emitted', 0}
end
if not last then
  local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', '1')[1]
  last = newest and newest[1] or '0-0'
end
local ids = {}
for i = 7, #ARGV do
  ids[i - 6] = redis.call('XADD', events, 'MAXLEN', '~', events_limit, '*', 'e', ARGV[i])
end
redis.call('HSET', state, 'emitted', batch, 'last', ids[#ids] or last)
if call ~= '' then
  redis.call('HSET', state, 'call', call)
end
if redis.call('PTTL', events) == -1 then
  redis.call('PEXPIRE', events, retention_ms)
end
tell(events, last, ids, {unpack(ARGV, 7)})
return {'emitted', #ARGV - 6}
