--[[
submit: accept one message into a conversation's inbox, once, and put the conversation on the queue.

KEYS[1]   inbox        stream  accepted messages not yet committed
KEYS[2]   state        hash    `leaving` is until when (ms) it is being moved;
          `head` is set while a turn runs, `parked` while one waits for input
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
KEYS[13]  wake         list    job ids, for idle workers of the version before; expires
KEYS[14]  idle         zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel
KEYS[15]  fleet        hash    shards, from, earlier: how many shards the fleet has, is moved from, and had

ARGV[1]   job_id        str    member of the queue
ARGV[2]   turn_id       str    idempotency key
ARGV[3]   message       bytes  JSON
ARGV[4]   digest        str    fingerprint of the content, hexadecimal
ARGV[5]   act           str    '', 'interrupt', 'rollback' or 'reject'
ARGV[6]   job_data      bytes  ARQ's job, serialized
ARGV[7]   inbox_limit   int    messages that may wait in the conversation
ARGV[8]   queue_limit   int    conversations that may be on the queue
ARGV[9]   retention_ms  int    sliding expiry of the conversation's keys
ARGV[10]  log_limit     int    turn records kept per conversation
ARGV[11]  channel       str    prefix of the holders' channels
ARGV[12]  conversation  str    what is published to the holder
ARGV[13]  age_limit_ms  int    time for which a due conversation may wait for a worker
ARGV[14]  trace_id      str    of the message's traceparent, hexadecimal; '' if it has none
ARGV[15]  shards        int    number of shards by which the producer found this one
ARGV[16]  told_from     int    how many shards the fleet is moved from, as the producer knows; 0 if it is not. It waits
          while the conversation is on its way; and in the new shard, the old one has said that it is not there

Returns
  {'accepted', ahead, cursor}      the message is in; `ahead` messages stand before it
  {'duplicate', 0, record}         turn_id was accepted before; nothing written
  {'elsewhere', shards, rest}      the conversation is, or would begin, in another shard; nothing written.
      The fleet has `shards`; `rest` is `<from>;<earlier>`
  {'moving', shards, rest}         it is here, but is being moved, or the producer does not know from how many shards:
      ask again; nothing written
  {'busy', ahead, ''}              act is 'reject' and the conversation is not idle; nothing written
  {'inbox_full', ahead, ''}        nothing written
  {'queue_full', on_queue, ''}     nothing written
  {'queue_late', waited_ms, ''}    the first in the queue has been due for so long; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write: a refusal writes nothing
  I3  a conversation with a message in its inbox is on the queue
  I4  the clock is the server's
  I5  an accepted message is no error, whatever its producer may not publish
  I6  while a fleet is resharded, a conversation begins nowhere but in its new shard, and only once its old
      one has said that it is not there
]]
local inbox, state, context, steps, turns, log, calls, events, copies, job, in_progress, queue, wake,
  idle, fleet = unpack(KEYS)
local job_id, turn_id, message, digest, act, job_data, inbox_limit, queue_limit, retention_ms,
  log_limit, channel, conversation, age_limit_ms, trace_id, shards, told_from = unpack(ARGV)

-- Wake the worker that has been idle for longest, and say what is due. One that nobody hears is gone or cut
-- off; if it lives, its next claim registers it again. Without rights to channels nobody is woken: idle
-- workers look by themselves now and then. Workers of the version before wait on the list.
local function wake_one(due_id)
  for _ = 1, 64 do
    local longest = redis.pcall('ZPOPMIN', idle)
    if not longest[1] then
      break
    end
    local heard = redis.pcall('SPUBLISH', idle .. ':' .. longest[1], due_id)
    if type(heard) ~= 'number' then
      redis.pcall('ZADD', idle, longest[2], longest[1])
      break
    end
    if heard > 0 then
      return
    end
  end
  local waiting = redis.pcall('LPUSH', wake, due_id)
  if waiting == 1 then
    redis.call('PEXPIRE', wake, 60000)
  elseif type(waiting) == 'number' and waiting > 1000 then
    redis.call('LTRIM', wake, 0, 999)
  end
end

local function notify(worker_id)
  local name = channel .. worker_id
  local heard = redis.pcall('SPUBLISH', name, conversation)
  if type(heard) ~= 'number' or heard == 0 then
    redis.pcall('PUBLISH', name, conversation)  -- workers of the version before listen there
  end
end

-- What others wrote there is no number, and says nothing.
local function number(word)
  local count = word and string.match(word, '^[1-9]%d?%d?%d?%d?$')
  return count and tonumber(count) <= 16384 and count or nil
end
local known = redis.pcall('HMGET', fleet, 'shards', 'from', 'earlier')
local in_fleet, from, earlier = unpack(known.err and {} or known)
in_fleet, from = number(in_fleet), number(from)
local is_old = from == shards and redis.call('LRANGE', log, 0, 0)[1] ~= nil
local rest = (from or '') .. ';' .. (string.match(earlier or '', '^[%d,]+$') or '')
if in_fleet and is_old and told_from ~= from then
  return {'moving', tonumber(in_fleet), rest}
end
if in_fleet and not is_old and (in_fleet ~= shards or (from and told_from ~= from)) then
  return {'elsewhere', tonumber(in_fleet), rest}
end
local record = redis.call('HGET', turns, turn_id)
if record then
  return {'duplicate', 0, record}
end
local ahead = redis.call('XLEN', inbox)
local holder = redis.call('GET', in_progress)
local score = redis.call('ZSCORE', queue, job_id)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if in_fleet and is_old and ahead == 0 and not holder and not score
  and now < tonumber(redis.call('HGET', state, 'leaving') or 0) then
  return {'moving', tonumber(in_fleet), rest}
end
if act == 'reject' and (ahead > 0 or holder) then
  return {'busy', ahead, ''}
end
if ahead >= tonumber(inbox_limit) then
  return {'inbox_full', ahead, ''}
end
if not score then
  local on_queue = redis.call('ZCARD', queue)
  if on_queue >= tonumber(queue_limit) then
    return {'queue_full', on_queue, ''}
  end
  local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  if first[2] and now - first[2] > tonumber(age_limit_ms) then  -- scores of leases lie in the future
    return {'queue_late', now - first[2], ''}
  end
end
local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)
local cursor = last[1] and last[1][1] or '0-0'
local is_control = act == 'interrupt' or act == 'rollback'
local active = is_control and redis.call('XRANGE', inbox, '-', '+', 'COUNT', 1)[1]
local deferred = score and not holder and tonumber(score) > now  -- an entry that is due keeps its place
local parked = deferred and redis.call('HGET', state, 'parked')

if active then
  redis.call('XADD', inbox, '*', 't', turn_id, 'm', message, 'a', cursor, 'd', digest,
    'on', active[1], 'act', act)
else
  redis.call('XADD', inbox, '*', 't', turn_id, 'm', message, 'a', cursor, 'd', digest)
end
redis.call('HSET', turns, turn_id, string.format(
  '{"state":"accepted","accepted_at_ms":%.0f,"after":"%s","digest":"%s","trace_id":"%s"}',
  now, cursor, digest, trace_id))
if redis.call('RPUSH', log, turn_id) > tonumber(log_limit) then
  redis.call('HDEL', turns, redis.call('LPOP', log))
end
redis.call('HSETNX', state, 'epoch', clock[1] .. clock[2])
for _, key in ipairs({inbox, state, context, steps, turns, log, calls, events, copies}) do
  redis.call('PEXPIRE', key, retention_ms)
end
if not score or (deferred and (parked == 'input' or (parked and is_control))) then
  redis.call('SET', job, job_data, 'PX', retention_ms)
  redis.call('ZADD', queue, now, job_id)
  wake_one(job_id)
elseif holder then
  notify(string.match(holder, '%S+$'))
end
return {'accepted', ahead, cursor}
