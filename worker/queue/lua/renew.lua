--[[
renew: extend all leases that one worker holds, and note that the worker lives.

KEYS[1]   queue        zset    job id -> due time, ms
KEYS[2]   workers      zset    worker id -> time until which it is known to live, ms
KEYS[3]   worker       string  JSON of what the worker says about itself
KEYS[4..] in_progress  string  one per job held, in the order of ARGV

ARGV[1]   lease_ms   int
ARGV[2]   worker_id  str
ARGV[3]   about      bytes  JSON
ARGV[4]   alive_ms   int  how long the worker counts as living without another heartbeat
ARGV[5..]  held      str  two items per job held: job id, lease

Returns
  {'renewed', n, job_id, ...}  n leases extended; the job ids named are no longer held

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  only a lease that is still this worker's is extended
  I3  what others write into these keys stops nobody
]]
local queue, workers, worker = unpack(KEYS, 1, 3)
local lease_ms, worker_id, about, alive_ms = unpack(ARGV, 1, 4)

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local reply = {'renewed', 0}
for i = 4, #KEYS do
  local at = 5 + 2 * (i - 4)
  if redis.pcall('GET', KEYS[i]) == ARGV[at + 1] then  -- a value of another type is not this lease
    redis.call('PEXPIRE', KEYS[i], lease_ms)
    redis.call('ZADD', queue, 'XX', now + lease_ms, ARGV[at])
    reply[2] = reply[2] + 1
  else
    reply[#reply + 1] = ARGV[at]
  end
end
if type(redis.pcall('ZREMRANGEBYSCORE', workers, '-inf', now)) ~= 'number' then
  redis.call('DEL', workers)  -- of a type that Turnline never writes
end
redis.call('ZADD', workers, now + alive_ms, worker_id)
redis.call('SET', worker, about, 'PX', alive_ms)
return reply
