--[[
load: begin an attempt and fetch what the worker does not hold already, in one round trip.

KEYS[1]  inbox        stream
KEYS[2]  state        hash    head, attempt, crashes, running, call, parked, began, epoch, settings
KEYS[3]  context      list
KEYS[4]  steps        list    a model call that an earlier attempt left open is added here, and behind it a
         note of an attempt that ended without a word
KEYS[5]  in_progress  string  `<token> <worker id>` of the holder

ARGV[1]  lease    str  as claimed; or ` <worker id>`, with the space: the lease under which this worker has
         just claimed the conversation, if it has and did not load it yet
ARGV[2]  epoch    str  of the messages the worker holds, '' for none
ARGV[3]  held     int  messages the worker holds
ARGV[4]  entries  int  inbox entries to return at most
ARGV[5]  retention_ms  int  expiry of the steps
ARGV[6]  last     str  SHA-1 of the last two messages the worker holds: the server may have lost some

Returns
  {'loaded', lease, epoch, from, attempt, crashes, since, now, settings, messages, steps, entries}
      `messages` are those from index `from` on; `attempt` counts from 1 for the entry at the head;
      `crashes` counts earlier attempts at it that ended without a word; `since` is when the first of
      them began, ms
  {'fenced'}  the lease was lost (or was not won); nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read precedes every write
]]
local lease = redis.call('GET', KEYS[5])
if lease ~= ARGV[1] then
  local ours = lease and string.sub(lease, -string.len(ARGV[1])) == ARGV[1] and string.sub(ARGV[1], 1, 1) == ' '
  if not ours or redis.call('HGET', KEYS[2], 'running') == lease then
    return {'fenced'}
  end
end
local state = redis.call('HMGET', KEYS[2],
  'epoch', 'settings', 'head', 'attempt', 'crashes', 'running', 'call', 'since', 'began', 'parked')
local entries = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[4])
local epoch = state[1] or ''
local from = epoch == ARGV[2] and epoch ~= '' and tonumber(ARGV[3]) or 0
if from > 0 then
  local last = redis.call('LRANGE', KEYS[3], math.max(0, from - 2), from - 1)
  from = redis.sha1hex(table.concat(last)) == ARGV[6] and from or 0
end
local messages = redis.call('LRANGE', KEYS[3], from, -1)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local attempt, crashes, since = 0, 0, now
local lost
if entries[1] then
  attempt = 1
  if state[3] == entries[1][1] then
    local again = state[6] == lease  -- the reply to this very load was lost
    attempt = tonumber(state[4] or 0) + (again and 0 or 1)
    crashes = tonumber(state[5] or 0) + (state[6] and not again and 1 or 0)
    since = tonumber(state[8] or now)
    if state[6] and not again and state[10] ~= 'defect' then  -- nobody has told of that attempt
      local began = tonumber(state[4] or 0) > 1 and state[9] or since
      lost = string.format('l{"attempt":%d,"began_at_ms":%.0f,"found_at_ms":%.0f}', state[4] or 0, began, now)
    end
  else
    redis.call('HDEL', KEYS[2], 'emitted')
  end
  redis.call('HSET', KEYS[2], 'head', entries[1][1], 'attempt', attempt, 'crashes', crashes,
    'running', lease, 'since', since)
  if attempt > 1 then
    redis.call('HSET', KEYS[2], 'began', now)
  end
end
redis.call('HDEL', KEYS[2], 'parked', 'call')
if state[7] then
  redis.call('RPUSH', KEYS[4], 'c' .. state[7])
end
if lost then
  redis.call('RPUSH', KEYS[4], lost)
end
if lost or state[7] then
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
end
return {'loaded', lease, epoch, from, attempt, crashes, since, now, state[2] or '', messages,
  redis.call('LRANGE', KEYS[4], 0, -1), entries}
