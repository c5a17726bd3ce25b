--[[
change: add, replace or remove a schedule, and have a worker look at once what is due.

KEYS[1]  schedules        hash    name -> schedule (JSON)
KEYS[2]  ticks            hash    name -> its last tick, ms; `since <ms>` before the first
KEYS[3]  queue            zset    job id -> due time, ms
KEYS[4]  schedules_job    string  ARQ's job
KEYS[5]  schedules_lease  string  `<token> <worker id>` of the holder

ARGV[1]  job_id    str    member of the queue
ARGV[2]  name      str    of the schedule
ARGV[3]  before    bytes  its value as it was read, '' if there is none
ARGV[4]  value     bytes  its new value, '' to remove it
ARGV[5]  job_data  bytes  ARQ's job, serialized

Returns
  {'changed', 1}  done
  {'other', 0}    it has another value than `before`; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  whoever looks at the moment loses the lease: another look, of what is there now, follows
  I3  the clock is the server's
]]
local schedules, ticks, queue, schedules_job, schedules_lease = unpack(KEYS)
local job_id, name, before, value, job_data = unpack(ARGV)

if (redis.call('HGET', schedules, name) or '') ~= before then
  return {'other', 0}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if value == '' then
  redis.call('HDEL', schedules, name)
  redis.call('HDEL', ticks, name)
else
  redis.call('HSET', schedules, name, value)
  redis.call('HSET', ticks, name, string.format('since %.0f', now))
end
redis.call('SET', schedules_job, job_data)
redis.call('DEL', schedules_lease)
redis.call('ZADD', queue, now, job_id)
return {'changed', 1}
