--[[
park: note which ticks were seen to, and have the schedules due again at the next one.

KEYS[1]  schedules        hash    name -> schedule (JSON)
KEYS[2]  ticks            hash    name -> its last tick, ms
KEYS[3]  queue            zset    job id -> due time, ms
KEYS[4]  schedules_job    string  ARQ's job
KEYS[5]  schedules_lease  string  `<token> <worker id>` of the holder

ARGV[1]   job_id   str  member of the queue
ARGV[2]   lease    str  as claimed
ARGV[3]   next_ms  int  when to look again, 0 if there is nothing to look for
ARGV[4..]  seen    str  two items per tick: name, tick in ms

Returns
  {'parked', next_ms}  it is due then
  {'idle', 0}          it is off the queue
  {'fenced', 0}        the lease has ended, or the schedules changed meanwhile; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  a schedule that was removed leaves no tick behind
]]
local schedules, ticks, queue, schedules_job, schedules_lease = unpack(KEYS)
local job_id, lease, next_ms = unpack(ARGV, 1, 3)

if redis.call('GET', schedules_lease) ~= lease then
  return {'fenced', 0}
end
for i = 4, #ARGV, 2 do
  if redis.call('HEXISTS', schedules, ARGV[i]) == 1 then
    redis.call('HSET', ticks, ARGV[i], ARGV[i + 1])
  end
end
redis.call('DEL', schedules_lease)
if next_ms == '0' then
  redis.call('ZREM', queue, job_id)
  redis.call('DEL', schedules_job)
  return {'idle', 0}
end
redis.call('ZADD', queue, 'XX', next_ms, job_id)
return {'parked', tonumber(next_ms)}
