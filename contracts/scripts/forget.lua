--[[
forget: remove every trace of a conversation, also while a turn of it runs.

The holder of a running turn is told, and its later writes are refused, since its lease goes here.

KEYS[1]   inbox        stream
KEYS[2]   state        hash
KEYS[3]   context      list
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list
KEYS[7]   calls        list
KEYS[8]   events       stream
KEYS[9]   copies       list    `<stream> <entry id>`: copies in streams of the shard
KEYS[10]  job          string
KEYS[11]  in_progress  string
KEYS[12]  queue        zset
KEYS[13..]             stream  the streams named in `copies`, each once

ARGV[1]  job_id        str  member of the queue
ARGV[2]  channel       str  prefix of the holders' channels
ARGV[3]  conversation  str  what is published to the holder
ARGV[4]  copies        int  length of `copies` when its streams were read

Returns
  {'forgotten', n}   n keys are gone
  {'again', length}  `copies` changed since it was read; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read precedes every write
]]
local copies = redis.call('LRANGE', KEYS[9], 0, -1)
if #copies ~= tonumber(ARGV[4]) then
  return {'again', #copies}
end
local named = {}
for i = 13, #KEYS do
  named[KEYS[i]] = true
end
local found = {}
for n, copy in ipairs(copies) do  -- a full list changes without growing: look at the streams too
  local stream, id = string.match(copy, '^(.+) (%S+)$')
  if not named[stream] then
    return {'again', #copies}
  end
  found[n] = {stream, id}
end
local holder = redis.call('GET', KEYS[11])
for _, copy in ipairs(found) do
  redis.call('XDEL', copy[1], copy[2])
end
local gone = 0
for i = 1, 11 do
  gone = gone + redis.call('DEL', KEYS[i])
end
redis.call('ZREM', KEYS[12], ARGV[1])
if holder then
  redis.call('PUBLISH', ARGV[2] .. string.match(holder, '%S+$'), ARGV[3])
end
return {'forgotten', gone}
