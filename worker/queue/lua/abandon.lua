--[[
abandon: make due at once what a worker held that has died, and forget that it lived.

KEYS[1]   queue        zset    job id -> due time, ms
KEYS[2]   wake         list    job ids, for idle workers of the version before; expires
KEYS[3]   idle         zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel
KEYS[4]   workers      zset    worker id -> time until which it is known to live, ms
KEYS[5]   worker       string  JSON of what the worker said about itself
KEYS[6..] in_progress  string  one per job that it may have held, in the order of ARGV

ARGV[1]   worker_id    str  of a process that its parent has waited for: it sends nothing any more
ARGV[2..] job_id       str  one per job that it may have held

Returns
  {'abandoned', n}  n leases were its own: these are due now, and as many idle workers were woken

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  only a lease that names this worker ends: nobody else's, also if its conversation went on elsewhere meanwhile
  I3  what says that an attempt runs stays: the next load counts it as crashed
  I4  what others write into these keys stops nobody
]]
local queue, wake, idle, workers, worker = unpack(KEYS, 1, 5)
local worker_id = unpack(ARGV, 1, 1)

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
redis.pcall('ZREM', idle, worker_id)
redis.pcall('ZREM', workers, worker_id)
redis.call('DEL', worker)
local count = 0
for n = 6, #KEYS do
  local lease, job_id = redis.pcall('GET', KEYS[n]), ARGV[n - 4]
  if type(lease) == 'string' and string.match(lease, '^%d+ (.*)$') == worker_id then
    redis.call('DEL', KEYS[n])
    redis.call('ZADD', queue, 'XX', now, job_id)
    wake_one(job_id)
    count = count + 1
  end
end
return {'abandoned', count}
