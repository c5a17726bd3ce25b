--[[
renew: extend all leases that one worker holds, and note that it lives.

KEYS[1]   queue        zset    job id -> due time, ms
KEYS[2]   workers      zset    worker id -> time until which it is known to live, ms
KEYS[3]   worker       string  JSON of what the worker says about itself
KEYS[4..] in_progress  string  one per job held, in the order of ARGV

ARGV[1]   lease_ms   int
ARGV[2]   worker_id  str
ARGV[3]   about      str  JSON
ARGV[4]   alive_ms   int  how long the worker counts as living without another word
ARGV[5..] job        str  two items per job held: job id, lease

Returns
  {'renewed', n, job_id, ...}  n leases extended; the job ids named are no longer held

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  only a lease that is still this worker's is extended
  I3  what others write into these keys stops nobody
]]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local reply = {'renewed', 0}
for i = 4, #KEYS do
  local at = 5 + 2 * (i - 4)
  if redis.pcall('GET', KEYS[i]) == ARGV[at + 1] then  -- of another type: not this worker's
    redis.call('PEXPIRE', KEYS[i], ARGV[1])
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[at])
    reply[2] = reply[2] + 1
  else
    reply[#reply + 1] = ARGV[at]
  end
end
if type(redis.pcall('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)) ~= 'number' then
  redis.call('DEL', KEYS[2])  -- of another type: nobody of ours writes that
end
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[2])
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
return reply
