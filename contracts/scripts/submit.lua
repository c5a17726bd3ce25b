--[[
submit: accept one message into a conversation's inbox, once, and put the conversation on the queue.

KEYS[1]   inbox        stream  accepted messages not yet committed
KEYS[2]   state        hash    `leaving` is until when (ms) it is being moved; `kept` is when (ms) all keys of the
          conversation were given their time, and behind a point what commit.lua keeps there; `last` is the id of the newest event; `parked` is set while a turn waits
          for input, or all for their time; `tenant` of its settings, as the last message says; `lane`,
          `<i or b>:<tenant>`, by which it gets its next turn; `delayed` is set while `later` may hold something; `rises`,
          `<ms> i:<tenant>`: when the first delayed message for people is due
KEYS[3]   context      list    only its expiry is moved
KEYS[4]   steps        list    only its expiry is moved
KEYS[5]   turns        hash    turn id -> record (JSON)
KEYS[6]   log          list    turn ids in the order accepted
KEYS[7]   calls        list    only its expiry is moved
KEYS[8]   events       stream  the id of its newest entry is the cursor a reader starts from
KEYS[9]   later        zset    delayed message -> due time, ms
KEYS[10]  copies       list    only its expiry is moved
KEYS[11]  job          string  ARQ's job
KEYS[12]  in_progress  string  `<token> <worker id>` of the holder
KEYS[13]  queue        zset    job id -> due time, ms
KEYS[14]  wake         list    job ids, for idle workers of the version before; expires
KEYS[15]  idle         zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel
KEYS[16]  fleet        hash    shards, from, earlier: how many shards the fleet has, is moved from, and had
KEYS[17]  exhausted    hash    budget -> `<until, ms> <end, ms> <JSON>`: those that are used up; `w:<tenant>`, `w:*` for others ->
          the same times and how many conversations may wait; `tenants` if there is one of a tenant
KEYS[18]  shares       zset    `<i or b>:<tenant>` -> place of its next turn, while workers are busy; see claim.lua
KEYS[19]  waiting      zset    `<tenant>`, a line feed and the job id of conversations that wait to begin, where that is limited

ARGV[1]   job_id        str    member of the queue
ARGV[2]   turn_id       str    idempotency key
ARGV[3]   message       bytes  JSON
ARGV[4]   digest        str    fingerprint of the content, hexadecimal
ARGV[5]   act           str    '', 'interrupt', 'rollback' or 'reject'
ARGV[6]   job_data      bytes  ARQ's job, serialized
ARGV[7]   inbox_limit   int    messages that may wait in the conversation
ARGV[8]   queue_limit   int    conversations that may be on the queue
ARGV[9]   retention_ms  int    sliding expiry of the conversation's keys
ARGV[10]  log_limit     int    turn records kept per conversation
ARGV[11]  conversation  str    what is published to the holder
ARGV[12]  age_limit_ms  int    time for which a due conversation may wait for a worker
ARGV[13]  trace_id      str    of the message's traceparent, hexadecimal; '' if it has none
ARGV[14]  shards        int    number of shards by which the producer found this one
ARGV[15]  told_from     int    how many shards the fleet is moved from, as the producer knows; 0 if it is not. It waits
          while the conversation is on its way; and in the new shard, the old one has said that it is not there
ARGV[16]  deliver_at_ms  int  when the message takes its place; at once if that is not to come
ARGV[17]  lane          str    'i:', or 'b:' if it is batch, and its tenant; 'c:' and that of its settings; '' for neither

Returns
  {'accepted', ahead, cursor}      the message is in; `ahead` messages stand before it, as it is now
  {'duplicate', 0, record}         turn_id was accepted before; nothing written
  {'elsewhere', shards, rest}      the conversation is, or would begin, in another shard; nothing written.
      The fleet has `shards`; `rest` is `<from>;<earlier>`
  {'moving', shards, rest}         it is here, but is being moved, or the producer does not know from how many shards:
      ask again; nothing written
  {'busy', ahead, ''}              act is 'reject' and the conversation is not idle; nothing written
  {'budget_exceeded', ms, about}   nothing is left of a budget for so long; `about` is JSON; nothing written
  {'tenant_full', count, ''}       as many conversations of the tenant wait to begin as may; nothing written
  {'inbox_full', ahead, ''}        nothing written
  {'queue_full', on_queue, ''}     nothing written
  {'queue_late', waited_ms, ''}    the first in the queue has been due for so long, and its turn would not come before
      those that wait; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write: a refusal writes nothing
  I3  a conversation with a message in its inbox, or a delayed one, is on the queue
  I4  the clock is the server's
  I5  an accepted message is no error, whatever its producer may not publish
  I6  a message is in the inbox behind all delayed ones that were due before it
  I7  while a fleet is resharded, a conversation begins nowhere but in its new shard, and only once its old
      one has said that it is not there
  I8  whoever pays is the message's tenant, else that of the conversation's settings
  I9  a conversation in which one message that waits is interactive is not batch; a delayed one waits from its time on
]]
local inbox, state, context, steps, turns, log, calls, events, later, copies, job, in_progress, queue,
  wake, idle, fleet, exhausted, shares, waiting = unpack(KEYS)
local job_id, turn_id, message, digest, act, job_data, inbox_limit, queue_limit, retention_ms,
  log_limit, conversation, age_limit_ms, trace_id, shards, told_from, deliver_at_ms,
  lane = unpack(ARGV)
local channel  -- and a worker id: there holders hear of messages
local kind, named = string.match(lane, '^([ibc]):(.*)$')
local is_turn = kind == 'i' or kind == 'b'

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

-- Idle workers sleep until the first time that they know of: one has to hear of an earlier one.
local function wake_if_first()
  if redis.call('ZRANGE', queue, 0, 0)[1] == job_id then
    wake_one('')
  end
end

local function notify(worker_id)
  local name = channel .. worker_id
  local heard = redis.pcall('SPUBLISH', name, conversation)
  if type(heard) ~= 'number' or heard == 0 then
    redis.pcall('PUBLISH', name, conversation)  -- workers of the version before listen there
  end
end

-- Return what is said of a budget that is used up, and for how long it is. Else nil, how many conversations of the
-- tenant may wait, if that is limited, and the tenant.
local function used_up(now, of_settings)
  local marks = redis.pcall('HMGET', exhausted, 'fleet', 'c:' .. conversation, 't:' .. named, 'w:' .. named, 'w:*',
    'tenants')
  if marks.err then
    return nil
  end
  local tenant = named
  if named == '' and marks[6] then
    tenant = of_settings or ''
    marks[3], marks[4] = unpack(redis.call('HMGET', exhausted, 't:' .. tenant, 'w:' .. tenant))
  end
  for n = 1, 3 do
    local lasts, ends, about = string.match(marks[n] or '', '^(%d+) (%d+) (.*)$')
    if lasts and tonumber(lasts) > now then
      return about, ends - now
    end
  end
  for n = 4, 5 do
    local lasts, most = string.match(marks[n] or '', '^(%d+) %d+ (%d+)$')
    if lasts and tonumber(lasts) > now then
      return nil, tonumber(most), tenant
    end
  end
end

-- Whether the keys of a conversation were all given their time just now. They expire together.
local function is_just_kept(kept_at, now)
  local since = now - (tonumber(kept_at or nil) or 0)
  return since >= 0 and since < retention_ms / 1000
end

-- Return the lane of a turn, of which the message says one or not.
local function whose(own, tenant)
  local kind, named = string.match(own, '^([ib]):(.*)$')
  return (kind or 'i') .. ':' .. (named and named ~= '' and named or tenant or '')
end

-- What others wrote there is no number, and says nothing.
local function number(word)
  local count = word and string.match(word, '^[1-9]%d?%d?%d?%d?$')
  return count and tonumber(count) <= 16384 and count or nil
end
local known = redis.pcall('HMGET', fleet, 'shards', 'from', 'earlier')
local in_fleet, from, earlier = unpack(known.err and {} or known)
in_fleet, from = number(in_fleet), number(from)
local is_old = from == shards and redis.call('LRANGE', log, 0, 0)[1] ~= nil
local rest = (from or '') .. ';' .. (string.match(earlier or '', '^[%d,]+$') or '')
if in_fleet and is_old and told_from ~= from then
  return {'moving', tonumber(in_fleet), rest}
end
if in_fleet and not is_old and (in_fleet ~= shards or (from and told_from ~= from)) then
  return {'elsewhere', tonumber(in_fleet), rest}
end
local record = redis.call('HGET', turns, turn_id)
if record then
  return {'duplicate', 0, record}
end
local epoch, former, tenant, rises, parked, leaving, may_hold, kept_at, cursor = unpack(
  redis.call('HMGET', state, 'epoch', 'lane', 'tenant', 'rises', 'parked', 'leaving', 'delayed', 'kept', 'last'))
local delayed = may_hold and redis.call('ZCARD', later) or 0
local holder = redis.call('GET', in_progress)
local score = redis.call('ZSCORE', queue, job_id)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local waiting_here = redis.call('XLEN', inbox)
local ahead = waiting_here + (delayed > 0 and redis.call('ZCOUNT', later, '-inf', now) or 0)
local is_due = score and tonumber(score) <= now
if in_fleet and is_old and ahead == 0 and not holder and not is_due
  and now < tonumber(leaving or 0) then
  return {'moving', tonumber(in_fleet), rest}
end
if act == 'reject' and (ahead > 0 or holder) then
  return {'busy', ahead, ''}
end
local whose_limit
if is_turn and tonumber(deliver_at_ms) <= now then  -- else it is looked at in its time
  local about, left, limited = used_up(now, tenant)
  if about then
    return {'budget_exceeded', left, about}
  end
  whose_limit = not score and limited
  if whose_limit then  -- where others made something else of the key, none wait
    local count = redis.pcall('ZLEXCOUNT', waiting, '[' .. limited .. '\n', '(' .. limited .. '\v')
    if type(count) == 'number' and count >= left then
      return {'tenant_full', count, ''}
    end
  end
end
if waiting_here + delayed >= tonumber(inbox_limit) then
  return {'inbox_full', ahead, ''}
end
if not score then
  local on_queue = redis.call('ZCARD', queue)
  if on_queue >= tonumber(queue_limit) then
    return {'queue_full', on_queue, ''}
  end
  local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  if first[2] and now - first[2] > tonumber(age_limit_ms) then  -- scores of leases lie in the future
    -- One that would be among the next, however many wait, is let in: its tenant has no others that do.
    local payer = named and named ~= '' and named or tenant or ''
    local known = redis.pcall('ZMSCORE', shares, 'placed', 'i', 'i:' .. payer)
    local placed, claimed, own = unpack(known.err and {} or known)
    if kind == 'b' or not placed or now - placed >= 10000 or not claimed or (own and own - claimed > 1) then
      return {'queue_late', now - first[2], ''}
    end
  end
end
if not cursor then
  local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', '1')[1]
  cursor = newest and newest[1] or '0-0'
end
local is_control = act == 'interrupt' or act == 'rollback'
local is_delayed = tonumber(deliver_at_ms) > now
local take_due, kept_ms, lane_of_later  -- made only where they are needed, since that takes time
if delayed > 0 or is_delayed then
  -- Move delayed messages that are due into the inbox, in the order of their times, those of one time in the
  -- order accepted. One for people takes its conversation out of the batch lane. Returns when the next one is due,
  -- nil if there is none.
  function take_due(now)
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

  -- The keys of a conversation outlive its delayed messages by a day. A time that others wrote may be infinite,
  -- or no whole number.
  function kept_ms(now)
    local latest = redis.call('ZRANGE', later, -1, -1, 'WITHSCORES')[2]
    local needed = latest and math.ceil(math.min(latest - now + 86400000, 1e14)) or 0
    return math.max(tonumber(retention_ms), needed)
  end

  -- Return the lane of what is delayed and due first; of several that are due at once, that of one for people.
  function lane_of_later(tenant, rises)
    local first = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
    local at, own = string.match(rises or '', '^(%d+) (.*)$')
    if not at or tonumber(at) > tonumber(first[2]) then
      own = string.match(first[1], '^%d+ [^ ]+ [^ /]*(/?[^ ]*) ') or ''
      own = own == '' and 'i:' or string.sub(own, 2)
    end
    return whose(own, tenant)
  end
end
if delayed > 0 then
  take_due(now)
  former, rises = unpack(redis.call('HMGET', state, 'lane', 'rises'))
end
local active = is_control and redis.call('XRANGE', inbox, '-', '+', 'COUNT', 1)[1]
local deferred = score and not holder and not is_due  -- an entry that is due keeps its place
former = former or 'i:'
if kind == 'c' then
  tenant = named
  redis.call('HSET', state, 'tenant', tenant)
end
local more = {}
if active then
  more = {[1] = 'on', [2] = active[1], [3] = 'act', [4] = act}
end
if is_delayed then
  ahead = redis.call('XLEN', inbox) + redis.call('ZCOUNT', later, '-inf', deliver_at_ms)
  redis.call('HSET', state, 'delayed', 1)
  redis.call('ZADD', later, deliver_at_ms, string.format('%010d%06d %s %s%s %s',
    clock[1], clock[2], turn_id, digest, lane ~= 'i:' and '/' .. lane or '', message))
  local rises_at = tonumber(string.match(rises or '', '^%d+'))
  if kind == 'i' and (not rises_at or tonumber(deliver_at_ms) < rises_at) then
    rises = deliver_at_ms .. ' ' .. lane
    redis.call('HSET', state, 'rises', rises)
  end
else
  local own = is_turn and whose(lane, tenant) or lane
  if own ~= 'i:' then
    more[#more + 1] = 'l'
    more[#more + 1] = own
  end
  redis.call('XADD', inbox, '*', 't', turn_id, 'm', message, 'a', cursor, 'd', digest, unpack(more))
end
redis.call('HSET', turns, turn_id, string.format(
  '{"state":"accepted","accepted_at_ms":%.0f,"after":"%s","digest":"%s","trace_id":"%s"%s}',
  now, cursor, digest, trace_id, is_delayed and ',"deliver_at_ms":' .. deliver_at_ms or ''))
local accepted = redis.call('RPUSH', log, turn_id)
if accepted > tonumber(log_limit) then
  -- Drop the oldest record, but none of a delayed message that has not been answered: it is known by that when it
  -- is sent again.
  local function drop_oldest()
    local seen = 0
    repeat
      local ids = redis.call('LRANGE', log, seen, seen + (seen > 0 and 999 or 0))
      local records = ids[1] and redis.call('HMGET', turns, unpack(ids))
      for n, id in ipairs(ids) do
        if not string.find(records[n] or '', '^{"state":"accepted".*,"deliver_at_ms":%d+}$') then
          redis.call('LREM', log, 1, id)
          redis.call('HDEL', turns, id)
          return
        end
      end
      seen = seen + #ids
    until not ids[1]
  end

  drop_oldest()
end
local kept = retention_ms
if delayed > 0 or is_delayed then
  kept = kept_ms(now)
  redis.call('PEXPIRE', later, kept)
end
if not epoch then
  redis.call('HSET', state, 'epoch', clock[1] .. clock[2])
end
local next_lane = former
-- It waits among batch turns, and is to wait among others.
local is_urgent = kind == 'i' and not is_delayed and ahead > 0 and string.sub(former, 1, 1) == 'b'
if is_urgent or (ahead == 0 and not is_delayed) then
  next_lane = whose(lane, tenant)
elseif is_delayed and redis.call('XLEN', inbox) == 0 then
  next_lane = lane_of_later(tenant, rises)
end
if next_lane ~= former then
  redis.call('HSET', state, 'lane', next_lane)
end
local to_keep = {waiting_here == 0 and inbox or nil}
if delayed > 0 or is_delayed or accepted == 1 or not is_just_kept(kept_at, now) then
  to_keep = {inbox, state, context, steps, turns, log, calls, events, copies}
  redis.call('HSET', state, 'kept', string.format('%.0f%s', now, string.match(kept_at or '', '%.%d+$') or ''))
end
for _, key in ipairs(to_keep) do
  redis.call('PEXPIRE', key, kept)
end
if whose_limit then
  redis.pcall('ZADD', waiting, 0, whose_limit .. '\n' .. job_id)
  redis.call('PEXPIRE', waiting, 86400000)
end
local ends_wait = deferred and (parked == 'input' or parked == 'later' or (parked and is_control)
  or (parked == 'held' and is_urgent))  -- among those that are held back, it has another place
if is_delayed then
  if not score and redis.call('XLEN', inbox) == 0 then
    redis.call('HSET', state, 'parked', 'later')
  end
  if not score or (ends_wait and tonumber(deliver_at_ms) < tonumber(score)) then
    redis.call('SET', job, job_data, 'PX', kept)
    redis.call('ZADD', queue, not score and redis.call('XLEN', inbox) > 0 and now or deliver_at_ms, job_id)
    wake_if_first()
  end
elseif not score or ends_wait or (is_urgent and is_due and not holder) then
  redis.call('SET', job, job_data, 'PX', kept)
  redis.call('ZADD', queue, now, job_id)
  wake_one(job_id)
elseif holder then
  channel = string.match(queue, '^(.*:)queue$') .. 'news:'
  notify(string.match(holder, '%S+$'))
end
return {'accepted', ahead, cursor}
