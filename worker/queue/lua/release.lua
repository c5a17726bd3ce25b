--[[
release: give up the lease of a conversation; it leaves the queue only if its inbox is empty.

KEYS[1]   inbox        stream
KEYS[2]   state        hash    `parked` says why the conversation waits; `running` marks an attempt
KEYS[3]   context      list    this and those below: they must not expire before the wait is over
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list
KEYS[7]   calls        list
KEYS[8]   events       stream
KEYS[9]   copies       list
KEYS[10]  job          string  ARQ's job
KEYS[11]  in_progress  string  `<token> <worker id>` of the holder
KEYS[12]  queue        zset    job id -> due time, ms
KEYS[13]  wake         list    job ids, for idle workers of the version before; expires
KEYS[14]  idle         zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel

ARGV[1]  job_id      str  member of the queue
ARGV[2]  lease       str  as claimed
ARGV[3]  defer_ms    int  time until the conversation is due again; 0: now
ARGV[4]  why         str  '' or why it waits: 'input' (a message ends the wait), 'backoff' (an interrupt
         ends it) or 'defect' (as 'backoff', and the attempt counts as crashed)
ARGV[5]  last_entry  str  the last inbox entry that the run has read. If a newer entry would end the wait,
         the conversation is due at once; '' if that does not matter

Returns
  {'idle', 0}       nothing waits; the conversation is off the queue
  {'due', n}        n messages wait; one worker was woken
  {'parked', n}     n messages wait until the deferral is over
  {'fenced', 0}     the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  a conversation with a message in its inbox stays on the queue
]]
local inbox, state, context, steps, turns, log, calls, events, copies, job, in_progress, queue, wake,
  idle = unpack(KEYS)
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

if redis.call('GET', in_progress) ~= lease then
  return {'fenced', 0}
end
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
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('DEL', in_progress)
if why ~= 'defect' or waiting == 0 then  -- else `running` stays: the next load counts a crash
  redis.call('HDEL', state, 'running')
else
  redis.call('HSET', state, 'parked', why)  -- the next load need not report this attempt
end
if waiting == 0 then
  redis.call('ZREM', queue, job_id)
  redis.call('DEL', job)
  return {'idle', 0}
end
redis.call('ZADD', queue, 'XX', ends_wait and now or now + defer_ms, job_id)
if tonumber(defer_ms) > 0 and not ends_wait then
  redis.call('HSET', state, 'parked', why)
  local needed = defer_ms + 86400000  -- what is waited for may come after the retention ends
  for _, key in ipairs({inbox, state, context, steps, turns, log, calls, events, copies, job}) do
    local left = redis.call('PTTL', key)
    if left >= 0 and left < needed then
      redis.call('PEXPIRE', key, needed)
    end
  end
  return {'parked', waiting}
end
wake_one(job_id)
return {'due', waiting}
