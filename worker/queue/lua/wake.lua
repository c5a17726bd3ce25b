--[[
wake: wake one idle worker if anything is due; for a worker that ends, or that left something due soon.

KEYS[1]  queue  zset  job id -> due time, ms
KEYS[2]  wake   list  job ids, for idle workers of the version before; expires
KEYS[3]  idle   zset  worker id -> since when it has been idle, ms; `<key>:<id>` is its channel

ARGV[1]  ended  str  worker that claims no more, '' if none: what it was woken for is another's

Returns
  {'woken', job_id}  this is due; one worker was woken
  {'quiet', ''}      nothing is due

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  the clock is the server's
]]
local queue, wake, idle = unpack(KEYS)
local ended = unpack(ARGV)

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

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if ended ~= '' then
  redis.pcall('ZREM', idle, ended)
end
local due = redis.pcall('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, 1)
if not due[1] then
  return {'quiet', ''}
end
wake_one(due[1])
return {'woken', due[1]}
