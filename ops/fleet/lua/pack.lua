--[[
pack: read all that is kept for an idle conversation, to be taken to another shard; let producers wait for that.

KEYS[1]   inbox        stream
KEYS[2]   state        hash    `leaving`: until when (ms) producers wait if it is idle
KEYS[3]   context      list
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list    turn ids in the order accepted; there is a conversation while this is there
KEYS[7]   calls        list
KEYS[8]   events       stream
KEYS[9]   later        zset    delayed message -> due time, ms
KEYS[10]  in_progress  string  `<token> <worker id>` of the holder
KEYS[11]  queue        zset    job id -> due time, ms
KEYS[12]  page         string  the page of the index in which the conversation has its line

ARGV[1]  job_id      str  member of the queue
ARGV[2]  leaving_ms  int  time for which producers wait at most: for a mover that comes no more

Returns
  {'packed', last_turn, cursor, dump, left_ms, ..., line}  two items for each of the first nine keys, '' and 0 for
      one that is not there: its DUMP, and the time until it expires (0: never). `last_turn` is the last turn
      accepted, `cursor` the id of the last event, `line` what the index says of the conversation
  {'busy', '', ''}  a message waits or a turn runs; delayed messages do not count before they are due
  {'gone', '', ''}  there is no such conversation

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  a conversation that is not there is not made; the clock is the server's
]]
local inbox, state, context, steps, turns, log, calls, events, later, in_progress, queue, page =
  unpack(KEYS)
local job_id, leaving_ms = unpack(ARGV)

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

local last_turn = redis.call('LINDEX', log, -1)
if not last_turn then
  return {'gone', '', ''}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('HSET', state, 'leaving', now + leaving_ms)
if is_busy(now) then
  return {'busy', '', ''}
end
local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
local reply = {'packed', last_turn, last and last[1] or '0-0'}
for _, key in ipairs({inbox, state, context, steps, turns, log, calls, events, later}) do
  reply[#reply + 1] = redis.call('DUMP', key) or ''
  reply[#reply + 1] = math.max(0, redis.call('PTTL', key))
end
local text = redis.pcall('GET', page)
local _, line = line_of(type(text) == 'string' and text or '', string.match(job_id, '^{[^}]*}:(.*)$'))
reply[#reply + 1] = line or ''
return reply
