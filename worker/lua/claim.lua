--[[
claim: lease up to `count` due jobs to one worker.

KEYS[1]  queue  zset    job id -> due time, ms; a leased job is due when its lease ends
KEYS[2]  token  int     the last fencing token given out
KEYS[3]  wake   list    job ids: one element wakes one idle worker, and says what it will find

ARGV[1]  count        int  jobs to claim at most
ARGV[2]  lease_ms     int
ARGV[3]  worker_id    str
ARGV[4]  in_progress  str  prefix of ARQ's in-progress keys; these are found in the queue and carry its tag
ARGV[5]  job          str  prefix of ARQ's job keys

Returns
  {'claimed', next_ms, job_id, lease, payload, ...}  three items per job; `lease` is
      `<token> <worker id>`, payload '' where ARQ's job key is gone; next_ms is the time until the next
      job is due, 0 if one is due now, -1 if the queue is empty

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  a job is leased to one worker at a time; stock workers' in-progress keys are respected
  I3  tokens only grow; the clock is the server's
]]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local reply = {'claimed', -1}
local token = clock[1] * 1000000 + clock[2]  -- also where the server lost the last token, and this is a new one
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local progress = ARGV[4] .. id
  local left = redis.call('PTTL', progress)
  if left == -2 then
    token = math.max(redis.call('INCR', KEYS[2]), token + 1)
    local lease = string.format('%.0f %s', token, ARGV[3])
    redis.call('SET', progress, lease, 'PX', ARGV[2])
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], id)
    reply[#reply + 1] = id
    reply[#reply + 1] = lease
    reply[#reply + 1] = redis.call('GET', ARGV[5] .. id) or ''
  else
    redis.call('ZADD', KEYS[1], 'XX', now + (left >= 0 and left + 1 or ARGV[2]), id)
  end
end
if #reply > 2 then
  redis.call('SET', KEYS[2], string.format('%.0f', token))
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if first[2] then
  reply[2] = math.max(0, math.ceil(first[2] - now))
end
if reply[2] == 0 then
  -- More is due than this worker takes: pass the word on, also where nobody was woken for it.
  if redis.call('LLEN', KEYS[3]) == 0 then
    redis.call('LPUSH', KEYS[3], first[1])
  end
else
  redis.call('DEL', KEYS[3])
end
return reply
