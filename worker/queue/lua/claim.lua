--[[
claim: lease up to `limit` due jobs to one worker, which is idle as long as it has got fewer.

KEYS[1]  queue  zset    job id -> due time, ms; a leased job is due when its lease ends
KEYS[2]  token  int     the last fencing token given out
KEYS[3]  wake   list    job ids, for idle workers of the version before; expires
KEYS[4]  idle   zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel

ARGV[1]  limit        int  jobs to claim at most
ARGV[2]  lease_ms     int
ARGV[3]  worker_id    str
ARGV[4]  in_progress  str  prefix of ARQ's in-progress keys; job ids carry the tag of the queue
ARGV[5]  job          str  prefix of ARQ's job keys

Returns
  {'claimed', next_ms, job_id, lease, payload, ...}  three items per job; `lease` is
      `<token> <worker id>`, payload '' where ARQ's job key is gone; next_ms is the time until the next
      job is due, 0 if one is due now, -1 if the queue is empty
  {'repaired', next_ms, job_id, lease, payload, ...}  the same; a key held what Turnline never writes,
      and was made anew

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  a job is leased to one worker at a time; stock workers' in-progress keys are respected
  I3  tokens only grow; the clock is the server's
  I4  what others write into these keys stops nobody: a value of another type is dropped; a token that is
      not a number, or is too large to count on exactly, is replaced by the clock; an in-progress key that
      never expires is not a lease
  I5  between looking and sleeping nothing is lost: who finds nothing more is idle from that moment on
]]
local queue, token, wake, idle = unpack(KEYS)
local limit, lease_ms, worker_id, in_progress, job = unpack(ARGV)

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

local repaired = false
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local reply = {'claimed', -1}
-- Never below the clock, so that tokens keep growing even if Redis lost the counter.
local last_token = clock[1] * 1000000 + clock[2]

-- Increment the counter. One that is not a number, or beyond what Lua counts exactly, begins anew.
local function next_token()
  local counted = redis.pcall('INCR', token)
  if type(counted) ~= 'number' or counted < 1 or counted >= 9e15 then
    redis.call('DEL', token)
    counted, repaired = redis.call('INCR', token), true
  end
  last_token = math.max(counted, last_token + 1)
  return last_token
end

local due = redis.pcall('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, limit)
if due.err then
  redis.call('DEL', queue)
  due, repaired = {}, true
end
for _, id in ipairs(due) do
  local holder = in_progress .. id
  local left = redis.call('PTTL', holder)
  if left == -1 then
    redis.call('DEL', holder)
    left, repaired = -2, true
  end
  if left == -2 then
    local lease = string.format('%.0f %s', next_token(), worker_id)
    redis.call('SET', holder, lease, 'PX', lease_ms)
    redis.call('ZADD', queue, 'XX', now + lease_ms, id)
    reply[#reply + 1] = id
    reply[#reply + 1] = lease
    local payload = redis.pcall('GET', job .. id)
    reply[#reply + 1] = type(payload) == 'string' and payload or ''
  else
    redis.call('ZADD', queue, 'XX', now + left + 1, id)
  end
end
if #reply > 2 then
  redis.call('SET', token, string.format('%.0f', last_token))
end
local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
if first[2] then
  reply[2] = math.ceil(math.max(0, math.min(first[2] - now, 86400000)))  -- a score may be infinite
end
local has_room = (#reply - 2) / 3 < tonumber(limit)
local registered
if has_room and reply[2] ~= 0 then
  registered = redis.pcall('ZADD', idle, 'NX', now, worker_id)
else
  registered = redis.pcall('ZREM', idle, worker_id)
end
if type(registered) ~= 'number' then
  if string.find(registered.err, 'WRONGTYPE') then
    redis.call('DEL', idle)
    repaired = true
  elseif not string.find(registered.err, 'OOM') then  -- a worker of a full server looks now and then
    return registered  -- as of a replica: whoever finds nothing there must hear that it is one
  end
end
if reply[2] == 0 then
  wake_one(first[1])  -- more is due than this worker takes
end
if repaired then
  return {'repaired', unpack(reply, 2)}
end
return reply
