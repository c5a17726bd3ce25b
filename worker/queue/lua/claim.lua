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
  {'repaired', next_ms, job_id, lease, payload, ...}  the same; a key that held what nobody of ours
      writes was made anew

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  a job is leased to one worker at a time; stock workers' in-progress keys are respected
  I3  tokens only grow; the clock is the server's
  I4  what others write into these keys stops nobody: a value of another type is dropped, a token that is
      no number, or that numbers here could not count on from, is given up for the clock's, and a job key
      in progress that never expires is nobody's lease
]]
local repaired = false
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local reply = {'claimed', -1}
local token = clock[1] * 1000000 + clock[2]  -- also where the server lost the last token, and this is a new one

-- Count on. A key that cannot be counted on from, or beyond what is exact here, begins anew.
local function next_token()
  local counted = redis.pcall('INCR', KEYS[2])
  if type(counted) ~= 'number' or counted < 1 or counted >= 9e15 then
    redis.call('DEL', KEYS[2])
    counted, repaired = redis.call('INCR', KEYS[2]), true
  end
  token = math.max(counted, token + 1)
  return token
end

local due = redis.pcall('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
if due.err then
  redis.call('DEL', KEYS[1])
  due, repaired = {}, true
end
for _, id in ipairs(due) do
  local progress = ARGV[4] .. id
  local left = redis.call('PTTL', progress)
  if left == -1 then
    redis.call('DEL', progress)
    left, repaired = -2, true
  end
  if left == -2 then
    local lease = string.format('%.0f %s', next_token(), ARGV[3])
    redis.call('SET', progress, lease, 'PX', ARGV[2])
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], id)
    reply[#reply + 1] = id
    reply[#reply + 1] = lease
    local job = redis.pcall('GET', ARGV[5] .. id)
    reply[#reply + 1] = type(job) == 'string' and job or ''
  else
    redis.call('ZADD', KEYS[1], 'XX', now + left + 1, id)
  end
end
if #reply > 2 then
  redis.call('SET', KEYS[2], string.format('%.0f', token))
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if first[2] then
  reply[2] = math.ceil(math.max(0, math.min(first[2] - now, 86400000)))  -- a score may be infinite
end
if reply[2] == 0 then
  -- More is due than this worker takes: pass the word on, also where nobody was woken for it.
  local length = redis.pcall('LLEN', KEYS[3])
  if type(length) ~= 'number' then
    redis.call('DEL', KEYS[3])
    length, repaired = 0, true
  end
  if length == 0 then
    redis.call('LPUSH', KEYS[3], first[1])
  end
else
  redis.call('DEL', KEYS[3])
end
if repaired then
  return {'repaired', unpack(reply, 2)}
end
return reply
