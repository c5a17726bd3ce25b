--[[
arrive: put down in its new shard what was packed in a conversation's old one, where it still counts.

KEYS[1]   inbox        stream
KEYS[2]   state        hash
KEYS[3]   context      list
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list
KEYS[7]   calls        list
KEYS[8]   events       stream
KEYS[9]   later        zset
KEYS[10]  job          string  ARQ's job
KEYS[11]  in_progress  string  `<token> <worker id>` of the holder
KEYS[12]  fleet        hash    `mover`; `forgot` changes with each conversation that is forgotten meanwhile

ARGV[1]  cursor  str  id of the last event in the old shard
ARGV[2]  forgot  bytes  as it was before the conversation was packed
ARGV[3]  mover   str  who moves it
ARGV[4..]  packed  list  two items for each of the first nine keys: its DUMP, '' for none; ms until it expires

Returns
  {'arrived', ''}  it is here; what an earlier try left here is replaced
  {'ahead', ''}    the conversation is here and went on already; nothing written
  {'late', ''}     something was forgotten since it was packed, perhaps this; nothing written
  {'fenced', ''}   another mover has taken over; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
]]
local inbox, state, context, steps, turns, log, calls, events, later, job, in_progress, fleet =
  unpack(KEYS)
local cursor, forgot, mover = unpack(ARGV, 1, 3)

local function is_later(id, than)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local than_ms, than_seq = string.match(than, '^(%d+)-(%d+)$')
  if ms ~= than_ms then
    return tonumber(ms) > tonumber(than_ms)
  end
  return tonumber(seq) > tonumber(than_seq)
end

if redis.call('HGET', fleet, 'mover') ~= mover then
  return {'fenced', ''}
end
if (redis.call('HGET', fleet, 'forgot') or '') ~= forgot then
  return {'late', ''}
end
if redis.call('EXISTS', log) == 1 then
  local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  if redis.call('EXISTS', job, in_progress) > 0 or (last and is_later(last[1], cursor)) then
    return {'ahead', ''}
  end
end
for n, key in ipairs({inbox, state, context, steps, turns, log, calls, events, later}) do
  local dump, left_ms = unpack(ARGV, 2 * n + 2, 2 * n + 3)
  if dump ~= '' then
    redis.call('RESTORE', key, left_ms, dump, 'REPLACE')
  else
    redis.call('DEL', key)
  end
end
return {'arrived', ''}
