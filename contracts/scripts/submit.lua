--[[
submit: accept one message into a conversation's inbox, once, and see that somebody runs it.

KEYS[1]   inbox        stream  accepted messages not yet committed
KEYS[2]   state        hash    `head` is set while a turn runs, `parked` while one waits for input
KEYS[3]   context      list    only its expiry is moved
KEYS[4]   steps        list    only its expiry is moved
KEYS[5]   turns        hash    turn id -> record (JSON)
KEYS[6]   log          list    turn ids in the order accepted
KEYS[7]   calls        list    only its expiry is moved
KEYS[8]   events       stream  its last id is the cursor a reader starts from
KEYS[9]   copies       list    only its expiry is moved
KEYS[10]  job          string  ARQ's job
KEYS[11]  in_progress  string  `<token> <worker id>` of the holder
KEYS[12]  queue        zset    job id -> due time, ms
KEYS[13]  wake         list    job ids: one element wakes one idle worker

ARGV[1]   job_id        str    member of the queue
ARGV[2]   turn_id       str    idempotency key
ARGV[3]   message       bytes  JSON
ARGV[4]   digest        str    fingerprint of the content, hexadecimal
ARGV[5]   act           str    '', 'interrupt', 'rollback' or 'reject'
ARGV[6]   job           bytes  ARQ's job, serialized
ARGV[7]   inbox_limit   int    messages that may wait in the conversation
ARGV[8]   queue_limit   int    conversations that may be on the queue
ARGV[9]   retention_ms  int    sliding expiry of the conversation's keys
ARGV[10]  log_limit     int    turn records kept per conversation
ARGV[11]  wake_limit    int    wake tokens kept
ARGV[12]  channel       str    prefix of the holders' channels
ARGV[13]  conversation  str    what is published to the holder
ARGV[14]  age_limit     int    ms for which a due conversation may wait for a worker
ARGV[15]  trace_id      str    of the message's traceparent, hexadecimal; '' if it has none

Returns
  {'accepted', ahead, cursor}      the message is in; `ahead` messages stand before it
  {'duplicate', 0, record}         turn_id was accepted before; nothing written
  {'busy', ahead, ''}              act is 'reject' and the conversation is not idle; nothing written
  {'inbox_full', ahead, ''}        nothing written
  {'queue_full', on_queue, ''}     nothing written
  {'queue_late', waited_ms, ''}    the first in the queue has been due for so long; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write: a refusal writes nothing
  I3  a conversation with a message in its inbox is on the queue
  I4  the clock is the server's
]]
local record = redis.call('HGET', KEYS[5], ARGV[2])
if record then
  return {'duplicate', 0, record}
end
local ahead = redis.call('XLEN', KEYS[1])
local holder = redis.call('GET', KEYS[11])
local score = redis.call('ZSCORE', KEYS[12], ARGV[1])
if ARGV[5] == 'reject' and (ahead > 0 or holder) then
  return {'busy', ahead, ''}
end
if ahead >= tonumber(ARGV[7]) then
  return {'inbox_full', ahead, ''}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if not score then
  local on_queue = redis.call('ZCARD', KEYS[12])
  if on_queue >= tonumber(ARGV[8]) then
    return {'queue_full', on_queue, ''}
  end
  local first = redis.call('ZRANGE', KEYS[12], 0, 0, 'WITHSCORES')
  if first[2] and now - first[2] > tonumber(ARGV[14]) then  -- what is leased or deferred lies ahead
    return {'queue_late', now - first[2], ''}
  end
end
local last = redis.call('XREVRANGE', KEYS[8], '+', '-', 'COUNT', 1)
local cursor = last[1] and last[1][1] or '0-0'
local head = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local parked = redis.call('HGET', KEYS[2], 'parked')

if head[1] and (ARGV[5] == 'interrupt' or ARGV[5] == 'rollback') then
  redis.call('XADD', KEYS[1], '*', 't', ARGV[2], 'm', ARGV[3], 'a', cursor, 'd', ARGV[4],
    'on', head[1][1], 'act', ARGV[5])
else
  redis.call('XADD', KEYS[1], '*', 't', ARGV[2], 'm', ARGV[3], 'a', cursor, 'd', ARGV[4])
end
redis.call('HSET', KEYS[5], ARGV[2], string.format(
  '{"state":"accepted","accepted_at_ms":%.0f,"after":"%s","digest":"%s","trace_id":"%s"}',
  now, cursor, ARGV[4], ARGV[15]))
if redis.call('RPUSH', KEYS[6], ARGV[2]) > tonumber(ARGV[10]) then
  redis.call('HDEL', KEYS[5], redis.call('LPOP', KEYS[6]))
end
redis.call('HSETNX', KEYS[2], 'epoch', clock[1] .. clock[2])
for i = 1, 9 do
  redis.call('PEXPIRE', KEYS[i], ARGV[9])
end
local acts = ARGV[5] == 'interrupt' or ARGV[5] == 'rollback'
local deferred = score and not holder and tonumber(score) > now  -- one that is due keeps its place
if not score or (deferred and (parked == 'input' or (parked and acts))) then
  redis.call('SET', KEYS[10], ARGV[6], 'PX', ARGV[9])
  redis.call('ZADD', KEYS[12], now, ARGV[1])
  if redis.call('LPUSH', KEYS[13], ARGV[1]) > tonumber(ARGV[11]) then
    redis.call('LTRIM', KEYS[13], 0, ARGV[11] - 1)
  end
elseif holder then
  redis.call('PUBLISH', ARGV[12] .. string.match(holder, '%S+$'), ARGV[13])
end
return {'accepted', ahead, cursor}
