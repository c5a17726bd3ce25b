--[[
commit: let a turn take effect: context, inbox, totals, ledger, spend, records, events, copies; keep or give up the lease.

KEYS[1]   inbox        stream
KEYS[2]   state        hash    `delayed`, `lane`, `last`, `tenant`, `rises`: see submit.lua; `kept`, too: behind its
          point stands at which byte of its page the conversation's line begins, if it still does
KEYS[3]   context      list
KEYS[4]   steps        list    done with
KEYS[5]   turns        hash    turn id -> record (JSON, `state` first)
KEYS[6]   log          list    only its expiry is moved
KEYS[7]   calls        list    capped
KEYS[8]   events       stream  capped
KEYS[9]   later        zset    delayed message -> due time, ms
KEYS[10]  copies       list    `<stream> <entry id>`, capped
KEYS[11]  job          string  ARQ's job
KEYS[12]  in_progress  string  `<token> <worker id>` of the holder
KEYS[13]  queue        zset
KEYS[14]  wake         list    job ids, for idle workers of the version before; expires
KEYS[15]  idle         zset    worker id -> since when it has been idle, ms; `<key>:<id>` is its channel
KEYS[16]  spend        hash    `[tenant, agent, model, counter]` (JSON) -> sum, of all calls entered on one day
KEYS[17]  pages        zset    page of the index -> when (ms) one of its conversations was active last
KEYS[18]  page_marks   hash    page -> the first halves of the marks in it; `!!!` and `.<letter>.` for failed and
          slow turns
KEYS[19]  page         string  the page of the conversation: a line for each, see contracts/index_lines.py
KEYS[20..]  shared     stream  shared streams to copy into, each once

ARGV[1]   lease         str  as claimed
ARGV[2]   turn_id       str  whose record tells whether this was committed before
ARGV[3]   job_id        str
ARGV[4]   retention_ms  int
ARGV[5]   limits        str  `<calls> <events> <copies> <shared stream>`: entries kept
ARGV[6]   afterwards    str  'go_on' keeps the lease while messages of the tenant wait and nobody else does, 'yield' gives it up
ARGV[7]   batch         int  inbox entries to return at most
ARGV[8]   how           str  'append' to the context or 'rewrite' it
ARGV[9]   settings      bytes  JSON; '' leaves them as they are
ARGV[10]  attempt       int  number of the next attempt, at what waits then; if that is no first one, the lease is kept
ARGV[11]  spend_ms      int  expiry of `spend`
ARGV[12]  listed        str  what the index is to say: `<how><marks> <id>`; '' enters nothing
ARGV[13..]  lists       list  counted lists, each `n` and then n times its items, in this order: inbox
          entry ids; messages; ledger entries; totals (field, amount); spend (field, amount); events;
          records (turn id, record); copies (index in KEYS, number of words, field and value words)

Returns
  {'committed', epoch, length, entries, now}  still leased; `entries` wait next; now is the server's
      clock, ms
  {'released', epoch, length, {}, now}       nothing waits, or the lease was given up
  {'duplicate'}                          committed before; at most the entries are dropped
  {'fenced'}                             the lease was lost; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write: a refusal writes nothing
  I3  context, totals, ledger, spend, records and events change together, once per turn
  I4  a conversation with a message in its inbox, or a delayed one, stays on the queue
  I5  the first write is one that a full server refuses: nothing is removed and then not replaced
  I6  whoever reads a stream is told on the channel of its name, behind the writes
  I7  what others wrote into counters stops no turn
  I8  the lane is that of the next turn: of what waits, else of what is delayed
  I9  a conversation has one line in the index, and only in its page; what others wrote there stops no turn
]]
local inbox, state, context, steps, turns, log, calls, events, later, copies, job, in_progress, queue,
  wake, idle, spend, pages, page_marks, page = unpack(KEYS, 1, 19)
local lease, turn_id, job_id, retention_ms, limits, afterwards, batch, how, settings, attempt,
  spend_ms, listed = unpack(ARGV, 1, 12)
local at = 13  -- the next counted list in ARGV

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

-- Tell whoever reads a stream what was added behind which entry; where that is much, only that something was.
-- Without rights to channels nobody hears it: readers look by themselves now and then.
local function tell(stream, behind, ids, added)
  local words, bytes = {behind}, 0
  for i, id in ipairs(ids) do
    words[i + 1] = id .. ' ' .. #added[i]
    bytes = bytes + #added[i]
  end
  redis.pcall('SPUBLISH', stream,
    bytes > 16384 and '' or table.concat(words, ' ') .. '\n' .. table.concat(added))
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

-- Return the lane of the next turn, given the first entries that wait: that of the first one for people, if there
-- is one. Entries that say nothing are for people, and of this tenant.
local function lane_of_waiting(page, silent, former)
  local found
  while page[1] do
    for _, entry in ipairs(page) do
      local own = 'i:' .. silent
      for n = 1, #entry[2], 2 do
        own = entry[2][n] == 'l' and entry[2][n + 1] or own
      end
      if string.sub(own, 1, 1) == 'i' then
        return own
      end
      found = found or (string.sub(own, 1, 1) == 'b' and own)
    end
    -- If there are more: one of those is for people only if the lane says so.
    page = #page >= tonumber(batch) and string.sub(former, 1, 1) == 'i'
      and redis.call('XRANGE', inbox, '(' .. page[#page][1], '+', 'COUNT', batch) or {}
  end
  return found
end

-- Whether a message that waits gives the conversation a tenant; then `tenant` is that already.
local function is_given(page)
  for _, entry in ipairs(page) do
    for n = 1, #entry[2], 2 do
      if entry[2][n] == 'l' and string.sub(entry[2][n + 1], 1, 1) == 'c' then
        return true
      end
    end
  end
end

local record = redis.call('HGET', turns, turn_id)
local done = record and string.sub(record, 1, 19) ~= '{"state":"accepted"'
local held = redis.call('GET', in_progress) == lease
if done then
  if held then  -- an entry that is still there did not come by submit, under an id that was used before
    for i = at + 1, at + ARGV[at] do
      local entry = redis.call('XRANGE', inbox, ARGV[i], ARGV[i])[1]
      local id = turn_id
      for n = 1, entry and #entry[2] or 0, 2 do
        id = entry[2][n] == 't' and entry[2][n + 1] or id
      end
      if id == turn_id then  -- others that were consumed with it have yet to take effect
        redis.call('XDEL', inbox, ARGV[i])
      end
    end
  end
  return {'duplicate'}
end
if not held then
  return {'fenced'}
end
local epoch, former, tenant, rises, delayed, kept_at, last = unpack(
  redis.call('HMGET', state, 'epoch', 'lane', 'tenant', 'rises', 'delayed', 'kept', 'last'))
local made = {}  -- keys that nothing was in
if not last then
  local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', '1')[1]
  last = newest and newest[1] or '0-0'
  made[1] = events
end
local calls_limit, events_limit, copies_limit, shared_limit =
  string.match(limits, '^(%d+) (%d+) (%d+) (%d+)$')
local function each(visit)
  local n = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, n do
    at = at + visit()
  end
  return n
end
-- Add to a counter. A value that others made begins anew, as does their key: what it said cannot be known.
local function count(key, field, amount)
  local counted = redis.pcall('HINCRBY', key, field, amount)
  if type(counted) == 'number' then
    return
  end
  if string.find(counted.err, 'WRONGTYPE') then
    redis.call('DEL', key)
  elseif string.find(counted.err, 'integer') or string.find(counted.err, 'overflow') then
    redis.call('HDEL', key, field)
  end
  redis.pcall('HINCRBY', key, field, amount)
end
redis.call('HSET', state, 'running', lease)  -- a full server refuses this, before anything is gone
each(function() redis.call('XDEL', inbox, ARGV[at]) return 1 end)
if how == 'rewrite' then
  redis.call('DEL', context)
  redis.call('HDEL', state, 'reasoning_bytes')  -- the totals below have what the new one takes
  local clock = redis.call('TIME')
  epoch = clock[1] .. clock[2]
  redis.call('HSET', state, 'epoch', epoch)
end
local function append(key, value)
  local length = redis.call('RPUSH', key, value)
  made[#made + 1] = length == 1 and key or nil
  return length
end
local length
each(function() length = append(context, ARGV[at]) return 1 end)
if each(function() append(calls, ARGV[at]) return 1 end) > 0 then
  redis.call('LTRIM', calls, -calls_limit, -1)
end
each(function() count(state, ARGV[at], ARGV[at + 1]) return 2 end)
if each(function() count(spend, ARGV[at], ARGV[at + 1]) return 2 end) > 0 then
  redis.call('PEXPIRE', spend, spend_ms)
end
local ids, added, shared_grown = {}, {}, {}
each(function()
  ids[#ids + 1] = redis.call('XADD', events, 'MAXLEN', '~', events_limit, '*', 'e', ARGV[at])
  added[#added + 1] = ARGV[at]
  return 1
end)
redis.call('HSET', state, 'last', ids[#ids] or last)
each(function() redis.call('HSET', turns, ARGV[at], ARGV[at + 1]) return 2 end)
local copied = each(function()
  local stream, words = KEYS[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
  local id = redis.call('XADD', stream, 'MAXLEN', '~', shared_limit, '*',
    unpack(ARGV, at + 2, at + 1 + words))
  redis.call('XTRIM', stream, 'MINID', string.format('%.0f', string.match(id, '^%d+') - retention_ms))
  redis.call('PEXPIRE', stream, retention_ms)
  append(copies, stream .. ' ' .. id)
  shared_grown[stream] = true
  return 2 + words
end)
for _ = 1, copied > 0 and redis.call('LLEN', copies) - copies_limit or 0 do
  local stream, id = string.match(redis.call('LPOP', copies), '^(.+) (%S+)$')
  redis.call('XDEL', stream, id)  -- `forget` could no longer find it
end
if settings ~= '' then
  redis.call('HSET', state, 'settings', settings)
end
redis.call('DEL', steps)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local next_at, kept = nil, retention_ms
local take_due, kept_ms, lane_of_later  -- made only where they are needed, since that takes time
if delayed then
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

  next_at = take_due(now)
  former, rises = unpack(redis.call('HMGET', state, 'lane', 'rises'))
end
if next_at then
  kept = kept_ms(now)
  redis.call('PEXPIRE', later, kept)
end
local is_first  -- turn of the conversation for which the model was called: it has no line in the index yet
for _, key in ipairs(made) do
  is_first = is_first or key == calls
end
local is_renewed = delayed or not is_just_kept(kept_at, now)
local place = string.sub(kept_at or '', 15)  -- thirteen digits and the point before it
if is_renewed then
  made = {inbox, state, context, turns, log, calls, events, copies}
  redis.call('HSET', state, 'kept', place == '' and now or string.format('%.0f.%s', now, place))
end
for _, key in ipairs(made) do
  redis.call('PEXPIRE', key, kept)
end
if listed ~= '' then
  local gap = string.find(listed, ' ', 3, true)
  local marks, id = string.sub(listed, 3, gap - 1), string.sub(listed, gap)
  local outcome, slow = string.sub(listed, 1, 1), string.sub(listed, 2, 2)
  local number = string.sub(page, #pages + 2)
  local stamp = clock[1] .. string.sub('00000' .. clock[2], -6, -4)  -- `now`, in words
  local found = place ~= '' and redis.pcall('GETRANGE', page, place, place + #listed + 15)
  local begins, size, longest = '\n' .. marks .. ' ', #marks, nil
  if type(found) == 'string' and string.find(found, begins, 1, true) == 1
    and string.find(found, id, size + 18, true) == size + 18 and #found <= #listed + 16
    and (string.byte(found, #listed + 16) or 10) == 10 then
    longest = string.sub(found, size + 4, size + 4)
  end
  if longest and outcome ~= 'f' and slow <= longest then
    redis.call('SETRANGE', page, place, begins .. outcome .. longest .. stamp)
  else  -- the functions are made only here, since that takes time
    -- Have a page's marks say that it has a line found by these: then readers do not pass it over.
    local function mark_page(number, marks, failed, slow)
      local known = redis.pcall('HGET', page_marks, number)
      if type(known) == 'table' then  -- others made something else of it
        redis.call('DEL', page_marks)
      end
      known = type(known) == 'string' and known or ''
      local more = ''
      for n = 1, #marks, 6 do
        local begins = string.sub(marks, n, n + 2)
        more = string.find(known, begins, 1, true) and more or more .. begins
      end
      if failed ~= '' and not string.find(known, '!!!', 1, true) then
        more = more .. '!!!'
      end
      if slow > 'a' and not string.find(known, '.' .. slow .. '.', 1, true) then
        more = more .. '.' .. slow .. '.'
      end
      if more ~= '' then
        redis.call('HSET', page_marks, number, known .. more)
      end
    end

    local text, line
    if type(found) == 'string' then
      line = string.match(redis.call('GETRANGE', page, place, place + #id + 160), '^\n([^\n]*)')
      line = line and string.sub(line, -#id) == id and line  -- else lines have moved
    end
    if not line and not is_first then
      -- Return where a conversation's line begins in a page of the index (0: with its first byte), and the line.
      local function line_of(text, id)
        local ends = string.find(text .. '\n', ' ' .. id .. '\n', 1, true)
        local before = ends and string.reverse(string.sub(text, math.max(1, ends - 200), ends))
        local back = before and string.find(before, '\n', 1, true)
        if back then
          return ends - back, string.sub(text, ends - back + 2, ends + #id)
        end
      end

      text = redis.pcall('GET', page)
      text = type(text) == 'string' and text or ''
      place, line = line_of(text, string.sub(id, 2))
    end
    local former, failed, took = string.match(line or '', '^([^! ]*)(!?%d*) %l(%l)%d+ ')
    local known = (former or '') .. (failed and failed ~= '' and '!' or '') .. (took or '')
    for own in string.gmatch(former or '', '......') do
      if #marks < 108 and not string.find(marks, own, 1, true) then
        marks = marks .. own
      end
    end
    failed = outcome == 'f' and '!' .. stamp or failed or ''
    slow = took and took > slow and took or slow
    local whole = '\n' .. marks .. failed .. ' ' .. outcome .. slow .. stamp .. id
    if line and #whole == #line + 1 then
      redis.call('SETRANGE', page, place, whole)
    elseif line then
      text = text or redis.call('GET', page)
      redis.call('SET', page, string.sub(text, 1, place) .. string.sub(text, place + #line + 2) .. whole)
      place = #text - #line - 1
    else
      local length = redis.pcall('APPEND', page, whole)
      if type(length) ~= 'number' then  -- others made something else of it
        redis.call('SET', page, whole)
        length = #whole
      end
      place = length - #whole
    end
    if text or known ~= marks .. (failed ~= '' and '!' or '') .. slow then
      mark_page(number, marks, failed, slow)
    end
    -- Look at another line now and then; where that is past its retention, drop all that are, and some such pages.
    local oldest = now - retention_ms
    local from = math.floor(now % 997 * place / 997)
    local other = now % 4 == 0 and redis.call('GETRANGE', page, from, from + 300)
    local ms = other and string.match(other, '\n[^\n ]* %l%l(%d+) ')
    if ms and tonumber(ms) < oldest then
      local left = {}
      redis.pcall('HDEL', page_marks, number)
      for all, own, when, its, at_ms in
        string.gmatch(redis.call('GET', page), '(\n([^! \n]*)(!?%d*) %l(%l)(%d+) [^\n]*)') do
        if tonumber(at_ms) >= oldest then
          left[#left + 1] = all
          mark_page(number, own, when, its)
        end
      end
      local rest = table.concat(left)
      redis.call('SET', page, rest)
      place = #rest - #whole
      for _, old in ipairs(redis.pcall('ZRANGEBYSCORE', pages, '-inf', oldest, 'LIMIT', 0, 16)) do
        redis.call('ZREM', pages, old)
        redis.pcall('HDEL', page_marks, old)
      end
    end
    redis.call('HSET', state, 'kept', string.sub(is_renewed and stamp or kept_at, 1, 13) .. string.format('.%d', place))
    redis.call('PEXPIRE', page, kept)
    is_renewed = is_renewed or text or now % 16 == 0
  end
  local is_new = redis.pcall('ZADD', pages, stamp, number)
  if type(is_new) ~= 'number' then  -- others made something else of it
    redis.call('DEL', pages)
    is_new = redis.call('ZADD', pages, stamp, number)
  end
  if is_renewed or is_new == 1 then
    for _, name in ipairs({pages, page_marks, page}) do
      redis.call('PEXPIRE', name, kept)
    end
  end
end
if ids[1] then
  tell(events, last, ids, added)
end
for stream in pairs(shared_grown) do
  redis.pcall('SPUBLISH', stream, '')
end
local waiting = redis.call('XRANGE', inbox, '-', '+', 'COUNT', batch)
former = former or 'i:'
local given = is_given(waiting)
if settings ~= '' and not given then
  local is_read, new = pcall(cjson.decode, settings)
  tenant = is_read and type(new.tenant) == 'string' and new.tenant or ''
  redis.call('HSET', state, 'tenant', tenant)
end
local next_lane = former
if waiting[1] then
  -- Those of earlier producers say nothing, and those accepted before anybody's settings.
  next_lane = lane_of_waiting(waiting, not given and tenant or '', former) or whose('', tenant)
elseif next_at then
  next_lane = lane_of_later(tenant, rises)
end
if next_lane ~= former then
  redis.call('HSET', state, 'lane', next_lane)
end
if rises and not next_at then
  redis.call('HDEL', state, 'rises')  -- others took what was delayed
end
if waiting[1] and attempt == '1' and (string.sub(next_lane, 3) ~= string.sub(former, 3)
  or redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, 1)[1]) then
  -- Others wait for a worker: the next turn of this conversation goes behind them. One of another tenant takes a place
  -- of that one.
  afterwards = 'yield'
end
if waiting[1] and afterwards == 'go_on' then
  redis.call('HDEL', state, 'call', 'emitted')
  redis.call('HSET', state, 'head', waiting[1][1], 'attempt', attempt, 'crashes', 0, 'since', now)
  return {'committed', epoch, length or redis.call('LLEN', context), waiting, now}
end
redis.call('DEL', in_progress)
redis.call('HDEL', state, 'running', 'head', 'call', 'emitted')
if waiting[1] then
  redis.call('ZADD', queue, 'XX', now, job_id)
  wake_one(job_id)
elseif next_at then
  redis.call('HSET', state, 'parked', 'later')
  redis.call('PEXPIRE', job, kept)
  redis.call('ZADD', queue, 'XX', next_at, job_id)
  wake_if_first()
else
  redis.call('ZREM', queue, job_id)
  redis.call('DEL', job)
end
return {'released', epoch, length or redis.call('LLEN', context), {}, now}
