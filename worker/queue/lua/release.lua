--[[
release: give up the lease of a conversation; it leaves the queue only if its inbox is empty.

KEYS[1]  inbox        stream
KEYS[2]  state        hash    `parked` says why the conversation waits; `running` marks an attempt
KEYS[3]  job          string  ARQ's job
KEYS[4]  in_progress  string  `<token> <worker id>` of the holder
KEYS[5]  queue        zset    job id -> due time, ms
KEYS[6]  wake         list    job ids: one element wakes one idle worker
KEYS[7..]             any     the conversation's other keys: they outlive what it waits for

ARGV[1]  job_id   str  member of the queue
ARGV[2]  lease    str  as claimed
ARGV[3]  defer    int  ms until the conversation is due again; 0: now
ARGV[4]  why      str  '' or why it waits: 'input' (a message ends the wait), 'backoff' (an interrupt
         does) or 'defect' (as 'backoff'; the attempt counts as one that ended without a word)
ARGV[5]  seen     str  the last entry of the inbox that was looked at: a later one of those ends the
         wait at once; '' if it does not matter

Returns
  {'idle', 0}       nothing waits; the conversation is off the queue
  {'due', n}        n messages wait; somebody was woken
  {'parked', n}     n messages wait until the deferral is over
  {'fenced', 0}     the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  a conversation with a message in its inbox stays on the queue
]]
if redis.call('GET', KEYS[4]) ~= ARGV[2] then
  return {'fenced', 0}
end
local waiting = redis.call('XLEN', KEYS[1])
local news = false
if ARGV[5] ~= '' and waiting > 0 then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[5], '+')) do
    news = news or ARGV[4] == 'input'
    for n = 1, #entry[2], 2 do
      news = news or entry[2][n] == 'act'
    end
  end
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('DEL', KEYS[4])
if ARGV[4] ~= 'defect' or waiting == 0 then  -- else the next load counts an attempt that said nothing
  redis.call('HDEL', KEYS[2], 'running')
else
  redis.call('HSET', KEYS[2], 'parked', ARGV[4])  -- that attempt has told of itself
end
if waiting == 0 then
  redis.call('ZREM', KEYS[5], ARGV[1])
  redis.call('DEL', KEYS[3])
  return {'idle', 0}
end
redis.call('ZADD', KEYS[5], 'XX', news and now or now + ARGV[3], ARGV[1])
if tonumber(ARGV[3]) > 0 and not news then
  redis.call('HSET', KEYS[2], 'parked', ARGV[4])
  local needed = ARGV[3] + 86400000  -- what is waited for may come later than the retention ends
  for i = 1, #KEYS do
    local left = redis.call('PTTL', KEYS[i])
    if left >= 0 and left < needed then
      redis.call('PEXPIRE', KEYS[i], needed)
    end
  end
  return {'parked', waiting}
end
redis.call('LPUSH', KEYS[6], ARGV[1])
return {'due', waiting}
