--[[
leave: give up a conversation that has arrived in its new shard; from now on it is there.

KEYS[1]   inbox        stream  afterwards a string, so that a producer that knows nothing of this is refused
KEYS[2]   state        hash
KEYS[3]   context      list
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list
KEYS[7]   calls        list
KEYS[8]   events       stream  afterwards one entry, which tells readers to go on elsewhere
KEYS[9]   later        zset
KEYS[10]  job          string  ARQ's job
KEYS[11]  in_progress  string  `<token> <worker id>` of the holder
KEYS[12]  queue        zset    job id -> due time, ms
KEYS[13]  fleet        hash    `mover`
KEYS[14]  pages        zset    page -> when (ms) one of its conversations was active last
KEYS[15]  page_marks  hash    page -> the first halves of the marks in it; see commit.lua
KEYS[16]  page         string  the page of the index in which the conversation has its line

ARGV[1]  job_id     str  member of the queue
ARGV[2]  last_turn  bytes  as packed
ARGV[3]  shards     int  number of shards by which the conversation is found now
ARGV[4]  marked_ms  int  time for which the marks stay, unless the conversation would have expired before
ARGV[5]  mover      str  who moves it
ARGV[6]  cursor     str  id of the last event, as packed

Returns
  {'left', 1}     it is in its new shard
  {'changed', 0}  something was accepted since it was packed, or a turn began; nothing written
  {'fenced', 0}   another mover has taken over; nothing written
  {'gone', 0}     there is no such conversation (any more); nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  the list of copies stays: `forget` comes for it
  I4  the first write is one that a full server refuses: nothing is removed and then not marked
]]
local inbox, state, context, steps, turns, log, calls, events, later, job, in_progress, queue,
  fleet, pages, page_marks, page = unpack(KEYS)
local job_id, last_turn, shards, marked_ms, mover, cursor = unpack(ARGV)

-- Whether a message waits or a turn runs. Delayed messages that are not due yet do not count.
local function is_busy(now)
  local score = redis.call('ZSCORE', queue, job_id)
  return redis.call('EXISTS', in_progress) == 1
    or (score and (tonumber(score) <= now or redis.call('XLEN', inbox) > 0))
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

if redis.call('HGET', fleet, 'mover') ~= mover then
  return {'fenced', 0}
end
local last = redis.call('LINDEX', log, -1)
if not last then
  return {'gone', 0}
end
local clock = redis.call('TIME')
local shown = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
-- A delayed message may have come to its time, and its turn be over: then there are more events.
if last ~= last_turn or (shown and shown[1] or '0-0') ~= cursor
  or is_busy(clock[1] * 1000 + math.floor(clock[2] / 1000)) then
  return {'changed', 0}
end
local left_ms = redis.call('PTTL', log)
if left_ms > 0 then
  marked_ms = math.min(marked_ms, left_ms)
end
redis.call('SET', inbox, shards, 'PX', marked_ms)
redis.call('XADD', events, 'MAXLEN', 1, '*', 'moved', shards)
redis.call('PEXPIRE', events, marked_ms)
redis.call('ZREM', queue, job_id)
strike(string.match(job_id, '^{[^}]*}:(.*)$'))
redis.call('DEL', state, context, steps, turns, log, calls, later, job)
redis.pcall('SPUBLISH', events, '')  -- without the right to, readers look now and then
return {'left', 1}
