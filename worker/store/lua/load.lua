--[[
load: begin an attempt and fetch what the worker does not hold already, in one round trip.

KEYS[1]  inbox        stream
KEYS[2]  state        hash    head, attempt, crashes, running, call, parked, began, epoch, settings,
         reasoning_bytes; delayed, lane, tenant, rises: see submit.lua
KEYS[3]  context      list
KEYS[4]  steps        list    a model call that an earlier attempt left open is added here, and behind it a
         note of an attempt that crashed
KEYS[5]  events       stream  its last id is noted with delayed messages that are due
KEYS[6]  later        zset    delayed message -> due time, ms
KEYS[7]  in_progress  string  `<token> <worker id>` of the holder

ARGV[1]  claimed       str  the lease as claimed; or ` <worker id>`, with the space: the lease under which
         this worker has just claimed the conversation, if it has and did not load it yet
ARGV[2]  epoch_held    str  of the messages that the worker holds, '' for none
ARGV[3]  held          int  messages that the worker holds
ARGV[4]  batch         int  inbox entries to return at most
ARGV[5]  retention_ms  int  expiry of the steps
ARGV[6]  last_held     str  SHA-1 of the last two messages that the worker holds: the server may have lost
         some

Returns
  {'loaded', lease, epoch, from, attempt, crashes, since, now, reasoning, settings, messages, steps,
      entries}
      `messages` are those from index `from` on; `attempt` counts from 1 for the first inbox entry;
      `crashes` counts earlier attempts at it that neither committed nor released; `since` is when the
      first of them began, ms; `reasoning` is how many bytes of the context are items of replies
  {'fenced'}  the lease was lost (or was not won); nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
  I3  delayed messages that are due are in the inbox, behind what was there
]]
local inbox, state, context, steps, events, later, in_progress = unpack(KEYS)
local claimed, epoch_held, held, batch, retention_ms, last_held = unpack(ARGV)

local lease = redis.call('GET', in_progress)
if lease ~= claimed then
  local ours = lease and string.sub(claimed, 1, 1) == ' ' and string.sub(lease, -string.len(claimed)) == claimed
  if not ours or redis.call('HGET', state, 'running') == lease then
    return {'fenced'}
  end
end
local epoch, settings, head, tried, crashed, running, call, first_at, began, parked, reasoning, delayed = unpack(
  redis.call('HMGET', state,
    'epoch', 'settings', 'head', 'attempt', 'crashes', 'running', 'call', 'since', 'began', 'parked',
    'reasoning_bytes', 'delayed'))
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if delayed then
  -- Move delayed messages that are due into the inbox, in the order of their times, those of one time in the
  -- order accepted. One for people takes its conversation out of the batch lane. Returns when the next one is due,
  -- nil if there is none.
  local function take_due(now)
    local first = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
    if not first[2] then
      redis.call('HDEL', state, 'delayed')
    end
    if not first[2] or tonumber(first[2]) > now then
      return tonumber(first[2])
    end
    local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
    local lane, tenant, rises = unpack(redis.call('HMGET', state, 'lane', 'tenant', 'rises'))
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now)) do
      local turn_id, digest, own, message = string.match(member, '^%d+ ([^ ]+) ([^ /]*)(/?[^ ]*) (.*)$')
      if turn_id then  -- else others wrote that
        own = own == '' and 'i:' or string.sub(own, 2)
        own = own .. ((own == 'i:' or own == 'b:') and tenant or '')
        local more = own ~= 'i:' and {[1] = 'l', [2] = own} or {}
        redis.call('XADD', inbox, '*', 't', turn_id, 'm', message, 'a', last and last[1] or '0-0', 'd', digest,
          unpack(more))
        if string.sub(own, 1, 1) == 'i' and string.sub(lane or '', 1, 1) == 'b' then
          lane = own
          redis.call('HSET', state, 'lane', lane)
        end
      end
      redis.call('ZREM', later, member)
    end
    local rises_at = tonumber(string.match(rises or '', '^%d+'))
    if rises_at and rises_at <= now then  -- that was taken: find the next one for people
      local found, from = nil, 0
      repeat
        local page = redis.call('ZRANGE', later, from, from + 63, 'WITHSCORES')
        for n = 1, #page, 2 do
          local own = string.match(page[n], '^%d+ [^ ]+ [^ /]*(/?[^ ]*) ')
          if not found and own and (own == '' or string.sub(own, 2, 2) == 'i') then
            found = string.format('%.0f %s', page[n + 1], own == '' and 'i:' or string.sub(own, 2))
          end
        end
        from = from + 64
      until found or not page[127]
      if found then
        redis.call('HSET', state, 'rises', found)
      else
        redis.call('HDEL', state, 'rises')
      end
    end
    return tonumber(redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')[2])
  end

  take_due(now)
end
local entries = redis.call('XRANGE', inbox, '-', '+', 'COUNT', batch)
epoch = epoch or ''
local from = epoch == epoch_held and epoch ~= '' and tonumber(held) or 0
if from > 0 then
  local last = redis.call('LRANGE', context, math.max(0, from - 2), from - 1)
  from = redis.sha1hex(table.concat(last)) == last_held and from or 0
end
local messages = redis.call('LRANGE', context, from, -1)
local attempt, crashes, since = 0, 0, now
local lost
if entries[1] then
  attempt = 1
  if head == entries[1][1] then
    tried = tonumber(tried or 0)
    local again = running == lease  -- the reply to this very load was lost
    local has_crashed = running and not again
    attempt = tried + (again and 0 or 1)
    crashes = tonumber(crashed or 0) + (has_crashed and 1 or 0)
    since = tonumber(first_at or now)
    if has_crashed and parked ~= 'defect' then  -- that attempt could not report itself
      lost = string.format('l{"attempt":%d,"began_at_ms":%.0f,"found_at_ms":%.0f}',
        tried, tried > 1 and began or since, now)
    end
  else
    redis.call('HDEL', state, 'emitted')
  end
  redis.call('HSET', state, 'head', entries[1][1], 'attempt', attempt, 'crashes', crashes,
    'running', lease, 'since', since)
  if attempt > 1 then
    redis.call('HSET', state, 'began', now)
  end
end
redis.call('HDEL', state, 'parked', 'call')
if call then
  redis.call('RPUSH', steps, 'c' .. call)
end
if lost then
  redis.call('RPUSH', steps, lost)
end
if lost or call then
  redis.call('PEXPIRE', steps, retention_ms)
end
return {'loaded', lease, epoch, from, attempt, crashes, since, now, reasoning or 0, settings or '', messages,
  redis.call('LRANGE', steps, 0, -1), entries}
