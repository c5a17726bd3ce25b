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
KEYS[15]  pages        zset    page -> when (ms) one of its conversations was active last
KEYS[16]  page_marks  hash    page -> the first halves of the marks in it; see commit.lua
KEYS[17]  page         string  the page of the index in which the conversation has its line
KEYS[18..]  streams    stream  the streams named in `copies`, each once

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
  queue, fleet, pages, page_marks, page = unpack(KEYS, 1, 17)
local job_id, channel, conversation, copies_read = unpack(ARGV)

local function notify(worker_id)
  local name = channel .. worker_id
  local heard = redis.pcall('SPUBLISH', name, conversation)
  if type(heard) ~= 'number' or heard == 0 then
    redis.pcall('PUBLISH', name, conversation)  -- workers of the version before listen there
  end
end

-- Return where a conversation's line begins in a page of the index (0: with its first byte), and the line.
local function line_of(text, id)
  local ends = string.find(text .. '\n', ' ' .. id .. '\n', 1, true)
  local before = ends and string.reverse(string.sub(text, math.max(1, ends - 200), ends))
  local back = before and string.find(before, '\n', 1, true)
  if back then
    return ends - back, string.sub(text, ends - back + 2, ends + #id)
  end
end

-- Take a conversation out of its page of the index, and the page out of the index if it was the only one. After others
-- removed its state it may have two lines.
local function strike(id)
  local text = redis.pcall('GET', page)
  local rest = type(text) == 'string' and text or ''
  local stands, line = line_of(rest, id)
  while stands do
    rest = string.sub(rest, 1, stands) .. string.sub(rest, stands + #line + 2)
    stands, line = line_of(rest, id)
  end
  if rest == '' then
    redis.pcall('ZREM', pages, string.match(page, '%d+$'))
    redis.pcall('HDEL', page_marks, string.match(page, '%d+$'))
    redis.call('DEL', page)
  elseif rest ~= text then
    redis.call('SET', page, rest, 'KEEPTTL')
  end
end

local listed = redis.call('LRANGE', copies, 0, -1)
if #listed ~= tonumber(copies_read) then
  return {'again', #listed}
end
local named = {}
for i = 18, #KEYS do
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
strike(conversation)
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
