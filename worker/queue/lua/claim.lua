--[[
claim: lease up to `limit` due jobs to one worker, which is idle as long as it has got fewer.

KEYS[1]  queue  zset    job id -> due time, ms; a leased job is due when its lease ends
KEYS[2]  token  int     the last fencing token given out
KEYS[3]  wake   list    job ids, for idle workers of the version before; expires
KEYS[4]  idle   zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel
KEYS[5]  order  zset    job ids that are due and wait -> place, a virtual time: the turns of a tenant of weight
         1 are 1 apart; batch turns have places from BATCH on. `^<job id>` of such a one -> RISING and the time (ms)
         when a delayed message for people is due in its conversation: then it gets another place
KEYS[6]  shares  zset   `<i or b>:<tenant>` -> place of its next turn; `i` and `b` -> place of the last turn that
         was claimed, interactive or batch; `placed` -> time (ms) of what was last given a place

ARGV[1]  limit        int  jobs to claim at most
ARGV[2]  lease_ms     int
ARGV[3]  worker_id    str
ARGV[4]  in_progress  str  prefix of ARQ's in-progress keys; job ids carry the tag of the queue
ARGV[5]  job          str  prefix of ARQ's job keys
ARGV[6]  weights      str  JSON, tenant -> weight, where that is not 1; '' for none
ARGV[7]  concurrency  str  JSON, tenant -> conversations that may run at once, `*` for those that are not named; '' for no
         limits
ARGV[8]  crowds       str  JSON, tenant -> conversations that may wait to begin, likewise

Of conversations that are due, the hash `state` is read: `lane` is `<i or b>:<tenant>`, `head` is set once a turn
has begun; `rises` is `<ms> i:<tenant>`, when the first delayed message for people is due; `tenant` is the
conversation's, for that if it names none.

With limits of tenants, `parked` is 'held' while a conversation is held back, and behind the queue's base there are
    held              zset  tenants of whom conversations wait that would be more at once than they may -> when that was
                      last looked at, ms
    held:<tenant>     zset  job ids of these -> place
    running:<tenant>  zset  job ids that were claimed for it -> fencing token
    wait              zset  `<tenant>`, a line feed and the job id of conversations that wait to begin
    exhausted         hash  `w:<tenant>`, `w:*` for others -> `<until, ms> <until, ms> <count>`: how many conversations may
                      wait to begin; `told` -> when that was said, ms; `tenants`, as there is one of a tenant; see
                      submit.lua

Returns
  {'claimed', next_ms, late_ms, job_id, lease, payload, ...}  three items per job; `lease` is
      `<token> <worker id>`, payload '' where ARQ's job key is gone; next_ms is the time until the next
      job is due, 0 if one is due now, -1 if the queue is empty; late_ms is for how long the first one
      found had been due
  {'repaired', next_ms, late_ms, job_id, lease, payload, ...}  the same; a key held what Turnline never
      writes, and was made anew

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  a job is leased to one worker at a time; stock workers' in-progress keys are respected
  I3  tokens only grow; the clock is the server's
  I4  what others write into these keys stops nobody: a value of another type is dropped; a token that is
      not a number, or is too large to count on exactly, is replaced by the clock; an in-progress key that
      never expires is not a lease; a place that cannot be is none
  I5  between looking and sleeping nothing is lost: who finds nothing more is idle from that moment on
  I6  while more is due than is taken, turns are shared among tenants by weight, and batch turns wait for all
      others; a turn that had begun goes before its like, and so does what is no conversation; a conversation in which a
      message for people waits, or has come to its time, is not batch
  I7  no more conversations of a tenant are claimed than may run at once; a lease that ended counts no more. The others
      wait in their order, and are due when there is room; while some are held back, no newcomer goes before them
  I8  whatever `order` and `shares` say, or have lost, each entry of the queue is found: the oldest that are due
      are given places each time
]]
local queue, token, wake, idle, order, shares = unpack(KEYS)
local limit, lease_ms, worker_id, in_progress, job, weights, concurrency, crowds = unpack(ARGV)
local BATCH, RISING, MOST, MOST_APART, KEPT_MS, HELD_MS, ROOM_MS = 2 ^ 40, 2 ^ 50, 1000, 100, 86400000, 60000, 250
local TOLD_MS, TELL_MS, TIDY = 60000, 20000, 20
local base, tag = string.match(queue, '^(.*({.*}:))queue$')
local held, exhausted, waiting = base .. 'held', base .. 'exhausted', base .. 'wait'
limit = math.min(MOST, tonumber(limit))

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
local reply = {'claimed', -1, 0}
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

local most = concurrency ~= '' and cjson.decode(concurrency)  -- conversations at once, by tenant

local rooms, let = {}, {}
local lane_of, is_full, hold, claim_in_order

-- Lease it, unless it is not due, another one has it, or it is held back; returns whether it was.
local function claim(id, at)
  local holder = in_progress .. id
  local left = redis.call('PTTL', holder)
  if left == -1 then
    redis.call('DEL', holder)
    left, repaired = -2, true
  end
  if left ~= -2 then
    redis.call('ZADD', queue, 'XX', now + left + 1, id)
    return false
  end
  local kind, tenant, begun
  if most or crowds ~= '' then
    kind, tenant, begun = lane_of(id)
  end
  local is_limited = most and begun ~= 'not a conversation' and (most[tenant] or most['*'])
  if is_limited and is_full(tenant, id) and hold(id, tenant, at) then
    return false
  end
  local fence = string.format('%.0f', next_token())
  if is_limited then
    rooms[tenant] = rooms[tenant] - redis.call('ZADD', base .. 'running:' .. tenant, fence, id)
    redis.call('PEXPIRE', base .. 'running:' .. tenant, KEPT_MS)
  end
  if crowds ~= '' then
    redis.call('ZREM', waiting, tenant .. '\n' .. id)
  end
  local lease = fence .. ' ' .. worker_id
  redis.call('SET', holder, lease, 'PX', lease_ms)
  redis.call('ZADD', queue, 'XX', now + lease_ms, id)
  reply[#reply + 1] = id
  reply[#reply + 1] = lease
  local payload = redis.pcall('GET', job .. id)
  reply[#reply + 1] = type(payload) == 'string' and payload or ''
  return true
end

-- What is needed only where something is limited, or more is due than is taken: to make it takes time.
local due = redis.pcall('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit + 1)
if most or crowds ~= '' or #due > 2 * limit then
  -- Read a number that others may have written: `otherwise`, if it is none or not within these bounds.
  local function within(value, least, most, otherwise)
    local read = tonumber(value or nil)
    return read and read >= least and read <= most and read or otherwise
  end

  local function share(name, least, most)
    return within(redis.call('ZSCORE', shares, name), least, most)
  end

  -- Return the place of what was let through last: where that is lost, of the first that waits.
  local function passed(kind, waiting)
    local least = kind == 'b' and BATCH or 0
    local at = share(kind, least, least + BATCH - 1)
    if not at then
      local first = redis.call('ZRANGEBYSCORE', waiting, least, least + BATCH - 1, 'WITHSCORES', 'LIMIT', 0, 1)
      at = tonumber(first[2] or least)
    end
    return at
  end

  -- Return the highest place that there can be: of who has the least weight, and all that waits.
  local function highest(least, waiting)
    return least + MOST_APART * (1 + redis.call('ZCARD', waiting))
  end

  -- Return in which lane a conversation waits: 'i' or 'b', and its tenant; whether its turn has begun; and when one among
  -- batch turns will be among others, if that is known.
  function lane_of(id)
    local known = {false, 'not a conversation'}
    if string.sub(id, 1, #tag) == tag and string.sub(id, #tag + 1, #tag + 1) ~= '{' then
      known = redis.pcall('HMGET', base .. 'c:' .. string.sub(id, #tag + 1) .. ':state', 'lane', 'head', 'rises', 'tenant')
    end
    local kind, tenant = string.match(known[1] or '', '^([ib]):(.*)$')
    kind, tenant = kind or 'i', tenant or ''
    local rises_at, risen = string.match(kind == 'b' and known[3] or '', '^(%d+) i:(.*)$')
    rises_at = tonumber(rises_at)
    if rises_at and rises_at <= now then
      kind, tenant, rises_at = 'i', risen ~= '' and risen or known[4] or '', nil
    end
    return kind, tenant, known[2], rises_at
  end

  -- Count what is in a sorted set; what others made of the key goes.
  local function count_of(key)
    local count = redis.pcall('ZCARD', key)
    if type(count) == 'number' then
      return count
    end
    redis.call('DEL', key)
    repaired = true
    return 0
  end

  -- Return how many more conversations of a tenant, which has a limit, may run.
  local function room_of(tenant)
    local limit_of, running = most[tenant] or most['*'] or limit, base .. 'running:' .. tenant
    if rooms[tenant] then
      return rooms[tenant]
    end
    local count = count_of(running)
    local claimed = count >= limit_of and redis.call('ZRANGE', running, 0, -1, 'WITHSCORES') or {}
    for n = 1, #claimed, 2 do  -- one that is claimed again may be another tenant's by now
      local lease = redis.pcall('GET', in_progress .. claimed[n])
      if type(lease) ~= 'string' or string.match(lease, '^%d+') ~= claimed[n + 1] then
        count = count - redis.call('ZREM', running, claimed[n])
      end
    end
    rooms[tenant] = limit_of - count
    return rooms[tenant]
  end

  -- Return whether a conversation has to wait for others of its tenant: those that run, or were there before.
  function is_full(tenant, id)
    return room_of(tenant) < 1 or (not let[id] and count_of(base .. 'held:' .. tenant) > 0)
  end

  -- Hold a conversation back until others of its tenant have ended, at this place. Returns false if nothing is left of it.
  function hold(id, tenant, at)
    local waiting, state = base .. 'held:' .. tenant, base .. 'c:' .. string.sub(id, #tag + 1) .. ':state'
    if type(redis.pcall('HGET', state, 'epoch')) ~= 'string' then
      return false
    end
    count_of(waiting)
    redis.call('ZADD', waiting, 'NX', at, id)
    redis.call('ZADD', held, 'NX', 0, tenant)
    redis.call('ZADD', queue, 'XX', now + HELD_MS, id)
    redis.call('HSET', state, 'parked', 'held')
    redis.call('PEXPIRE', waiting, KEPT_MS)
    redis.call('PEXPIRE', held, KEPT_MS)
    return true
  end

  -- Return the highest place that there can be of a tenant.
  local function highest_of(tenant, least)
    return highest(least, order) + (most and MOST_APART * count_of(base .. 'held:' .. tenant) or 0)
  end

  -- Whether it still waits for others of its tenant. What was claimed for another one waits for something else, if at all.
  local function is_held(id)
    return redis.call('ZSCORE', queue, id) and redis.call('PTTL', in_progress .. id) == -2
      and redis.pcall('HGET', base .. 'c:' .. string.sub(id, #tag + 1) .. ':state', 'parked') == 'held'
  end

  -- Make those due for which there is room again.
  local function let_go()
    for _, tenant in ipairs(redis.call('ZRANGE', held, 0, 99)) do
      local waiting, gone = base .. 'held:' .. tenant, 0
      local room = count_of(waiting) > 0 and math.min(limit, room_of(tenant)) or 0
      while room > 0 and gone < MOST do
        local id, at = unpack(redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES'))
        if not id then
          break
        end
        at = tonumber(at)
        local least = passed(at >= BATCH and 'b' or 'i', order)
        at = math.min(math.max(at, least), highest_of(tenant, least))
        redis.call('ZREM', waiting, id)
        if is_held(id) then
          redis.call('ZADD', queue, 'XX', now, id)
          redis.call('ZADD', order, at, id)
          let[id], room = true, room - 1
        else
          gone = gone + 1
        end
      end
      if redis.call('ZCARD', waiting) > 0 then
        redis.call('ZADD', held, now, tenant)
      else
        redis.call('ZREM', held, tenant)
      end
    end
  end

  -- Have producers know how many conversations of a tenant may wait to begin, and drop some that do no more.
  local function bound_waiting()
    local told = redis.pcall('HGET', exhausted, 'told')
    if type(told) == 'table' then
      redis.call('DEL', exhausted)
      told, repaired = nil, true
    end
    if not within(told, now - TELL_MS, now) then
      for tenant, most_of in pairs(cjson.decode(crowds)) do
        redis.call('HSET', exhausted, 'w:' .. tenant, string.format('%.0f %.0f %d', now + TOLD_MS, now + TOLD_MS, most_of))
      end
      redis.call('HSET', exhausted, 'told', now, 'tenants', 1)
      redis.call('PEXPIRE', exhausted, TOLD_MS)
    end
    count_of(waiting)
    for _, member in ipairs(redis.call('ZRANDMEMBER', waiting, TIDY)) do
      local id = string.match(member, '\n(.*)$')
      if not id or not redis.call('ZSCORE', queue, id) or redis.call('PTTL', in_progress .. id) ~= -2 then
        redis.call('ZREM', waiting, member)
      end
    end
  end

  -- Return the place of an entry: behind the turns of its tenant, and not before what was claimed already. One that has
  -- a place, among batch turns, gets another one if it is interactive by now; else nil. Returns, too, when one among
  -- batch turns will be, if that is known.
  local function place(id, former, next_of)
    local kind, tenant, begun, rises_at = lane_of(id)
    if former and kind == 'b' then
      return nil, rises_at
    end
    next_of[kind] = next_of[kind] or passed(kind, order)
    local least = next_of[kind]
    local waiting = most and base .. 'held:' .. tenant
    local kept = waiting and redis.pcall('ZSCORE', waiting, id)
    if type(kept) == 'string' and (tonumber(kept) >= BATCH) == (kind == 'b') then
      return math.min(math.max(kept, least), highest_of(tenant, least)), rises_at
    elseif type(kept) == 'string' then  -- it was one of batch turns, and is not any more
      redis.call('ZREM', waiting, id)
    end
    if begun then
      return math.max(kind == 'b' and BATCH or -1, least - 1), rises_at
    end
    local lane, apart = kind .. ':' .. tenant, 1 / (weights[tenant] or 1)
    local at = next_of[lane]
    if not at then
      at = share(lane, least, highest_of(tenant, least)) or least
      local till = string.format('(%.0f', kind == 'b' and 2 * BATCH or BATCH)
      local last = waiting and redis.pcall('ZRANGE', waiting, till, least, 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')
      at = math.max(at, last and last[2] and last[2] + apart or at)
    end
    next_of[lane] = at + apart
    return at, rises_at
  end

  -- Give places to these entries.
  local function place_each(news)
    local next_of, added, grown = {}, {}, {}
    for n, former in ipairs(redis.call('ZMSCORE', order, unpack(news))) do
      local at, rises_at
      if not former or tonumber(former) >= BATCH then
        at, rises_at = place(news[n], former, next_of)
      end
      if at then
        added[#added + 1] = at
        added[#added + 1] = news[n]
      end
      if rises_at then
        added[#added + 1] = RISING + rises_at
        added[#added + 1] = '^' .. news[n]
      end
    end
    for lane, at in pairs(next_of) do
      grown[#grown + 1] = at
      grown[#grown + 1] = lane
    end
    if added[1] then
      redis.call('ZADD', order, unpack(added))
    end
    if grown[1] then
      redis.call('ZADD', shares, unpack(grown))
    end
  end

  -- Give other places to batch turns in whose conversations a delayed message for people is due by now.
  local function raise()
    local risen, due_ids = redis.call('ZRANGEBYSCORE', order, RISING, RISING + now, 'LIMIT', 0, MOST), {}
    for _, id in ipairs(risen) do
      redis.call('ZREM', order, id)
      local due_at = redis.call('ZSCORE', queue, string.sub(id, 2))
      if due_at and tonumber(due_at) <= now then
        due_ids[#due_ids + 1] = string.sub(id, 2)
      end
    end
    if due_ids[1] then
      place_each(due_ids)
    end
  end

  -- Give places to these, and to what has become due since the last time.
  local function place_all(ids)
    -- Else none has a place, or it is by the clock of another server.
    local placed = redis.call('ZCARD', order) > 0 and share('placed', 0, now) or 0
    place_each(ids)
    local since, till, page = placed > 0 and string.format('(%.17g', placed) or '-inf', now - 1, 0
    repeat
      local news = redis.call('ZRANGEBYSCORE', queue, since, now, 'LIMIT', page * MOST, MOST)
      if news[1] then
        place_each(news)
      end
      page = page + 1
      local last = news[MOST] and tonumber(redis.call('ZSCORE', queue, news[MOST]))
      -- There may be more in the ms of the last one. If all became due in that, they are gone through at once.
      till = last and math.min(till, last - 1 > placed and last - 1 or last) or now - 1
    until not last or till < last or page == 10
    redis.call('ZADD', shares, till, 'placed')
  end

  -- Claim by places, with weights and priorities.
  function claim_in_order(ids)
    count_of(order)
    count_of(shares)
    local is_read, given = pcall(cjson.decode, weights)
    weights = is_read and given or {}
    raise()
    place_all(ids)
    for _ = 1, 16 do  -- more than once only where entries have left the queue otherwise
      local free = limit - (#reply - 3) / 3
      local first = free > 0 and redis.call('ZRANGE', order, 0, free - 1, 'WITHSCORES') or {}
      for n = 1, #first, 2 do
        local id, at = first[n], first[n + 1]
        local due = redis.call('ZSCORE', queue, id)
        redis.call('ZREM', order, id)
        if due and tonumber(due) <= now and claim(id, at) then
          redis.call('ZADD', shares, 'GT', at, tonumber(at) >= BATCH and 'b' or 'i')
        end
      end
      if not first[1] then
        break
      end
    end
    -- Whose turn would not be later than a newcomer's needs no note.
    redis.call('ZREMRANGEBYSCORE', shares, '-inf', string.format('(%.17g', share('i', 0, BATCH - 1) or 0))
    redis.call('ZREMRANGEBYSCORE', shares, BATCH, string.format('(%.17g', share('b', BATCH, 2 * BATCH - 1) or BATCH))
    redis.call('PEXPIRE', order, KEPT_MS)
    redis.call('PEXPIRE', shares, KEPT_MS)
  end

  if crowds ~= '' then
    bound_waiting()
  end
  if most then
    for _, key in ipairs({order, shares, held}) do
      count_of(key)
    end
    let_go()
    due = redis.pcall('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit + 1)
  end
end
if due.err then
  redis.call('DEL', queue)
  due, repaired = {}, true
end
reply[3] = due[2] and math.floor(math.max(0, math.min(now - due[2], 86400000))) or 0
local ids = {}
for n = 1, #due, 2 do
  ids[#ids + 1] = due[n]
end
if #ids > limit or (most and ids[1]) then  -- who is held back needs a place
  claim_in_order(ids)
else
  for _, id in ipairs(ids) do
    claim(id)
  end
  if ids[1] then
    redis.call('DEL', order)  -- all have left it
  end
end
if #reply > 3 then
  redis.call('SET', token, string.format('%.0f', last_token))
end
local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
if first[2] then
  reply[2] = math.ceil(math.max(0, math.min(first[2] - now, 86400000)))  -- a score may be infinite
end
local has_room = (#reply - 3) / 3 < limit
if most and reply[2] ~= 0 and redis.call('ZCARD', held) > 0 then  -- whoever ends makes room, and tells nobody
  reply[2] = math.min(ROOM_MS, reply[2] < 0 and ROOM_MS or reply[2])
end
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
if reply[2] == 0 then  -- more is due than this worker takes
  wake_one(redis.call('ZRANGE', order, 0, 0)[1] or first[1])
end
if repaired then
  return {'repaired', unpack(reply, 2)}
end
return reply
