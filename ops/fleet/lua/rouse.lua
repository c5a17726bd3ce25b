--[[
rouse: put a conversation that has moved on the queue of its new shard, for its delayed messages.

KEYS[1]  inbox  stream
KEYS[2]  later  zset    delayed message -> due time, ms
KEYS[3]  job    string  ARQ's job
KEYS[4]  queue  zset    job id -> due time, ms

ARGV[1]  job_id    str    member of the queue
ARGV[2]  job_data  bytes  ARQ's job, serialized

Returns
  {'roused', due_ms}  it is due then
  {'quiet', 0}        it has no delayed messages, or is on the queue; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
]]
local inbox, later, job, queue = unpack(KEYS)
local job_id, job_data = unpack(ARGV)

local first = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
if not first[2] or redis.call('XLEN', inbox) > 0 or redis.call('ZSCORE', queue, job_id) then
  return {'quiet', 0}
end
redis.call('SET', job, job_data, 'PX', math.max(1, redis.call('PTTL', later)))
redis.call('ZADD', queue, first[2], job_id)
return {'roused', math.floor(first[2])}
