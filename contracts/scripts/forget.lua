--[[
forget: remove every trace of a conversation, also while a turn of it runs.

The holder of a running turn is notified. Its later writes are refused, since its lease is removed too.

KEYS[1]   inbox        stream
KEYS[2]   state        hash
KEYS[3]   context      list
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list
KEYS[7]   calls        list
KEYS[8]   events       stream
KEYS[9]   later        zset
KEYS[10]  copies       list    `<stream> <entry id>`: copies in streams of the shard
KEYS[11]  job          string
KEYS[12]  in_progress  string
KEYS[13]  queue        zset
KEYS[14]  fleet        hash    `from` is set while the fleet is resharded; `forgot` changes with each conversation then
KEYS[15..]  streams    stream  the streams named in `copies`, each once

ARGV[1]  job_id        str  member of the queue
ARGV[2]  channel       str  prefix of the holders' channels
ARGV[3]  conversation  str  what is published to the holder
ARGV[4]  copies_read   int  length of `copies` when its streams were read

Returns
  {'forgotten', n}   n keys are gone
  {'again', length}  `copies` changed since it was read; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read precedes every write
  I3  while the fleet is resharded, a copy that is on its way here will not arrive any more: it finds that
      something was forgotten since it was packed
  I4  whoever reads the events is told on the channel of their name, behind the writes
]]
local inbox, state, context, steps, turns, log, calls, events, later, copies, job, in_progress,
  queue, fleet = unpack(KEYS, 1, 14)
local job_id, channel, conversation, copies_read = unpack(ARGV)

local function notify(worker_id)
  local name = channel .. worker_id
  local heard = redis.pcall('SPUBLISH', name, conversation)
  if type(heard) ~= 'number' or heard == 0 then
    redis.pcall('PUBLISH', name, conversation)  -- workers of the version before listen there
  end
end

local listed = redis.call('LRANGE', copies, 0, -1)
if #listed ~= tonumber(copies_read) then
  return {'again', #listed}
end
local named = {}
for i = 15, #KEYS do
  named[KEYS[i]] = true
end
local found = {}
for n, copy in ipairs(listed) do  -- a full list changes without growing: look at the streams too
  local stream, id = string.match(copy, '^(.+) (%S+)$')
  if not named[stream] then
    return {'again', #listed}
  end
  found[n] = {stream, id}
end
local holder = redis.call('GET', in_progress)
for _, copy in ipairs(found) do
  redis.call('XDEL', copy[1], copy[2])
end
local gone = redis.call('DEL', inbox, state, context, steps, turns, log, calls, events, later,
  copies, job, in_progress)
redis.call('ZREM', queue, job_id)
if holder then
  notify(string.match(holder, '%S+$'))
end
local from = redis.pcall('HGET', fleet, 'from')  -- others may have written there
if type(from) == 'string' and from ~= '' then
  local clock = redis.call('TIME')
  redis.call('HSET', fleet, 'forgot', clock[1] .. ' ' .. clock[2])
end
redis.pcall('SPUBLISH', events, 'gone')  -- without the right to, readers look now and then
return {'forgotten', gone}
