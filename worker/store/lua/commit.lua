--[[
commit: let a turn take effect: context, inbox, totals, ledger, records, events, copies; go on or let go.

KEYS[1]   inbox        stream
KEYS[2]   state        hash
KEYS[3]   context      list
KEYS[4]   steps        list    done with
KEYS[5]   turns        hash    turn id -> record (JSON, `state` first)
KEYS[6]   log          list    only its expiry is moved
KEYS[7]   calls        list    capped
KEYS[8]   events       stream  capped
KEYS[9]   copies       list    `<stream> <entry id>`, capped
KEYS[10]  job          string  ARQ's job
KEYS[11]  in_progress  string  `<token> <worker id>` of the holder
KEYS[12]  queue        zset
KEYS[13]  wake         list    job ids: one element wakes one idle worker
KEYS[14..]             stream  shared streams to copy into, each once

ARGV[1]   lease         str  as claimed
ARGV[2]   turn_id       str  whose record tells whether this was committed before
ARGV[3]   job_id        str
ARGV[4]   retention_ms  int
ARGV[5]   limits        str  `<calls> <events> <copies> <shared stream>`: entries kept
ARGV[6]   then          str  'go_on' keeps the lease while messages wait, 'yield' gives it up
ARGV[7]   entries       int  inbox entries to return at most
ARGV[8]   context       str  'append' or 'rewrite'
ARGV[9]   settings      str  JSON; '' leaves them as they are
ARGV[10..]              counted lists, each `n` and then n times its items, in this order: inbox entry
          ids; messages; ledger entries; totals (field, amount); events; records (turn id, record);
          copies (index in KEYS, number of words, field and value words)

Returns
  {'committed', epoch, length, entries, now}  still leased; `entries` wait next, the first being attempt
      1; now is the server's clock, ms
  {'released', epoch, length, {}, now}       nothing waits, or the lease was given up
  {'duplicate'}                          committed before; at most the entries are dropped
  {'fenced'}                             the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write: a refusal writes nothing
  I3  context, totals, ledger, records and events change together, once per turn
  I4  a conversation with a message in its inbox stays on the queue
  I5  the first write is one that a full server refuses: nothing is removed and then not replaced
]]
local record = redis.call('HGET', KEYS[5], ARGV[2])
local done = record and string.sub(record, 1, 19) ~= '{"state":"accepted"'
local held = redis.call('GET', KEYS[11]) == ARGV[1]
if done then
  if held then  -- an entry that is still there was written past submit, under a used id
    for i = 11, 10 + ARGV[10] do
      local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
      local turn = ARGV[2]
      for n = 1, entry and #entry[2] or 0, 2 do
        turn = entry[2][n] == 't' and entry[2][n + 1] or turn
      end
      if turn == ARGV[2] then  -- others that were taken with it have yet to take effect
        redis.call('XDEL', KEYS[1], ARGV[i])
      end
    end
  end
  return {'duplicate'}
end
if not held then
  return {'fenced'}
end
local calls, events, copies, shared = string.match(ARGV[5], '^(%d+) (%d+) (%d+) (%d+)$')
local at = 10
local function each(visit)
  local n = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, n do
    at = at + visit()
  end
  return n
end
redis.call('HSET', KEYS[2], 'running', ARGV[1])  -- a full server refuses this, before anything is gone
each(function() redis.call('XDEL', KEYS[1], ARGV[at]) return 1 end)
if ARGV[8] == 'rewrite' then
  redis.call('DEL', KEYS[3])
  local clock = redis.call('TIME')
  redis.call('HSET', KEYS[2], 'epoch', clock[1] .. clock[2])
end
each(function() redis.call('RPUSH', KEYS[3], ARGV[at]) return 1 end)
if each(function() redis.call('RPUSH', KEYS[7], ARGV[at]) return 1 end) > 0 then
  redis.call('LTRIM', KEYS[7], -calls, -1)
end
each(function() redis.call('HINCRBY', KEYS[2], ARGV[at], ARGV[at + 1]) return 2 end)
each(function() redis.call('XADD', KEYS[8], 'MAXLEN', '~', events, '*', 'e', ARGV[at]) return 1 end)
each(function() redis.call('HSET', KEYS[5], ARGV[at], ARGV[at + 1]) return 2 end)
local copied = each(function()
  local stream, words = KEYS[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
  local id = redis.call('XADD', stream, 'MAXLEN', '~', shared, '*',
    unpack(ARGV, at + 2, at + 1 + words))
  redis.call('XTRIM', stream, 'MINID', string.format('%.0f', string.match(id, '^%d+') - ARGV[4]))
  redis.call('PEXPIRE', stream, ARGV[4])
  redis.call('RPUSH', KEYS[9], stream .. ' ' .. id)
  return 2 + words
end)
for _ = 1, copied > 0 and redis.call('LLEN', KEYS[9]) - copies or 0 do
  local stream, id = string.match(redis.call('LPOP', KEYS[9]), '^(.+) (%S+)$')
  redis.call('XDEL', stream, id)  -- what `forget` could not find is not kept
end
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[2], 'settings', ARGV[9])
end
redis.call('DEL', KEYS[4])
redis.call('HDEL', KEYS[2], 'call', 'emitted')
for i = 1, 9 do
  redis.call('PEXPIRE', KEYS[i], ARGV[4])
end
local epoch, length = redis.call('HGET', KEYS[2], 'epoch'), redis.call('LLEN', KEYS[3])
local waiting = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[7])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if waiting[1] and ARGV[6] == 'go_on' then
  redis.call('HSET', KEYS[2], 'head', waiting[1][1], 'attempt', 1, 'crashes', 0, 'since', now)
  return {'committed', epoch, length, waiting, now}
end
redis.call('DEL', KEYS[11])
redis.call('HDEL', KEYS[2], 'running', 'head')
if waiting[1] then
  redis.call('ZADD', KEYS[12], 'XX', now, ARGV[3])
  redis.call('LPUSH', KEYS[13], ARGV[3])
else
  redis.call('ZREM', KEYS[12], ARGV[3])
  redis.call('DEL', KEYS[10])
end
return {'released', epoch, length, {}, now}
