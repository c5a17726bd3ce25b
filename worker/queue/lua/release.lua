--[[
release: give up the lease of a conversation; it leaves the queue only if nothing waits, now or for its time.

KEYS[1]   inbox        stream
KEYS[2]   state        hash    `parked` says why the conversation waits; `running` marks an attempt; `lane`, `tenant`,
          `rises`: see submit.lua
KEYS[3]   context      list    this and those below: they must not expire before the wait is over
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list
KEYS[7]   calls        list
KEYS[8]   events       stream
KEYS[9]   later        zset    delayed message -> due time, ms
KEYS[10]  copies       list
KEYS[11]  job          string  ARQ's job
KEYS[12]  in_progress  string  `<token> <worker id>` of the holder
KEYS[13]  queue        zset    job id -> due time, ms
KEYS[14]  wake         list    job ids, for idle workers of the version before; expires
KEYS[15]  idle         zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel

ARGV[1]  job_id      str  member of the queue
ARGV[2]  lease       str  as claimed
ARGV[3]  defer_ms    int  time until the conversation is due again; 0: now
ARGV[4]  why         str  '' or why it waits: 'input' (a message ends the wait), 'backoff' (an interrupt
         ends it), 'defect' (as 'backoff', and the attempt counts as crashed) or 'limit' (as 'backoff',
         and the attempt does not count: the provider allows no call before)
ARGV[5]  last_entry  str  the last inbox entry that the run has read. If a newer entry would end the wait,
         the conversation is due at once; '' if that does not matter

Returns
  {'idle', 0}       nothing waits; the conversation is off the queue
  {'later', 0}      only delayed messages wait; the conversation is due with the first of them
  {'due', n}        n messages wait; one worker was woken
  {'parked', n}     n messages wait until the deferral is over
  {'fenced', 0}     the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  a conversation with a message in its inbox, or a delayed one, stays on the queue
]]
local inbox, state, context, steps, turns, log, calls, events, later, copies, job, in_progress, queue,
  wake, idle = unpack(KEYS)
local job_id, lease, defer_ms, why, last_entry = unpack(ARGV)

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

-- Idle workers sleep until the first time that they know of: one has to hear of an earlier one.
local function wake_if_first()
  if redis.call('ZRANGE', queue, 0, 0)[1] == job_id then
    wake_one('')
  end
end

-- Move delayed messages that are due into the inbox, in the order of their times, those of one time in the
-- order accepted. One for people takes its conversation out of the batch lane. Returns when the next one is due,
-- nil if there is none.
local function take_due(now)
  local first = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
  if not first[2] then
    redis.call('HDEL', state, 'delayed')
  end
  if not first[2] or tonumber(first[2]) > now then
    return tonumber(first[2])
  end
  local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  local lane, tenant, rises = unpack(redis.call('HMGET', state, 'lane', 'tenant', 'rises'))
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now)) do
    local turn_id, digest, own, message = string.match(member, '^%d+ ([^ ]+) ([^ /]*)(/?[^ ]*) (.*)$')
    if turn_id then  -- else others wrote that
      own = own == '' and 'i:' or string.sub(own, 2)
      own = own .. ((own == 'i:' or own == 'b:') and tenant or '')
      local more = own ~= 'i:' and {[1] = 'l', [2] = own} or {}
      redis.call('XADD', inbox, '*', 't', turn_id, 'm', message, 'a', last and last[1] or '0-0', 'd', digest,
        unpack(more))
      if string.sub(own, 1, 1) == 'i' and string.sub(lane or '', 1, 1) == 'b' then
        lane = own
        redis.call('HSET', state, 'lane', lane)
      end
    end
    redis.call('ZREM', later, member)
  end
  local rises_at = tonumber(string.match(rises or '', '^%d+'))
  if rises_at and rises_at <= now then  -- that was taken: find the next one for people
    local found, from = nil, 0
    repeat
      local page = redis.call('ZRANGE', later, from, from + 63, 'WITHSCORES')
      for n = 1, #page, 2 do
        local own = string.match(page[n], '^%d+ [^ ]+ [^ /]*(/?[^ ]*) ')
        if not found and own and (own == '' or string.sub(own, 2, 2) == 'i') then
          found = string.format('%.0f %s', page[n + 1], own == '' and 'i:' or string.sub(own, 2))
        end
      end
      from = from + 64
    until found or not page[127]
    if found then
      redis.call('HSET', state, 'rises', found)
    else
      redis.call('HDEL', state, 'rises')
    end
  end
  return tonumber(redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')[2])
end

if redis.call('GET', in_progress) ~= lease then
  return {'fenced', 0}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local next_at = take_due(now)
local waiting = redis.call('XLEN', inbox)
local ends_wait = false
if last_entry ~= '' and waiting > 0 then
  for _, entry in ipairs(redis.call('XRANGE', inbox, '(' .. last_entry, '+')) do
    ends_wait = ends_wait or why == 'input'
    for n = 1, #entry[2], 2 do
      ends_wait = ends_wait or entry[2][n] == 'act'
    end
  end
end
redis.call('DEL', in_progress)
if why ~= 'defect' or waiting == 0 then  -- else `running` stays: the next load counts a crash
  redis.call('HDEL', state, 'running')
else
  redis.call('HSET', state, 'parked', why)  -- the next load need not report this attempt
end
if why == 'limit' and waiting > 0 and redis.call('HINCRBY', state, 'attempt', -1) < 1 then
  redis.call('HDEL', state, 'since')  -- the turn's time begins with its first attempt
end
if waiting == 0 and next_at then
  redis.call('HSET', state, 'parked', 'later')
  redis.call('ZADD', queue, 'XX', next_at, job_id)
  wake_if_first()
  return {'later', 0}
end
if waiting == 0 then
  redis.call('ZREM', queue, job_id)
  redis.call('DEL', job)
  return {'idle', 0}
end
local due_at = ends_wait and now or now + defer_ms
if why == 'input' and next_at then
  due_at = math.min(due_at, next_at)  -- a message ends that wait
end
redis.call('ZADD', queue, 'XX', due_at, job_id)
if tonumber(defer_ms) > 0 and not ends_wait then
  redis.call('HSET', state, 'parked', why)
  local needed = defer_ms + 86400000  -- what is waited for may come after the retention ends
  for _, key in ipairs({inbox, state, context, steps, turns, log, calls, events, later, copies, job}) do
    local left = redis.call('PTTL', key)
    if left >= 0 and left < needed then
      redis.call('PEXPIRE', key, needed)
    end
  end
  if next_at then
    wake_if_first()
  end
  return {'parked', waiting}
end
wake_one(job_id)
return {'due', waiting}
