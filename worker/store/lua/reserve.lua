--[[
reserve: ask for a call within what a provider allows to the fleet; settle earlier ones, hold a part for later ones.

KEYS[1]  budget  hash  `l:<window>` limits that headers told; `n:<window>` those that refusals named, `<limit>
         <until, ms>`; `limits` that count; `seen` once it
         answered; `scout` when the first call was let through (ms); `until` (ms), nothing is sent before;
         `margin`, thousandths; `mean` tokens of a call; per window (`rs`, `rm`: requests in a second, a minute; `ts`, `tm`:
         tokens) `:<bucket>`, `:sum`, `:from`, `:last`
KEYS[2]  held    hash  worker id -> `<requests> <tokens> <until, ms>`: what it may use without asking
KEYS[3]  line    zset  who waits -> its place, a virtual time: the calls of a tenant of weight 1 are 1 apart; batch calls
         have places from BATCH on
KEYS[4]  due     zset  who waits -> when it comes again, ms
KEYS[5]  shares  zset  `<i or b>:<tenant>` -> place of its next call; `i` and `b` -> place of the last call that was
         let through, interactive or batch

ARGV[1]  who      str  name of who asks, the same when it comes again; '' if nobody does
ARGV[2]  tokens   int  that the call may use
ARGV[3]  likely   int  that it probably uses
ARGV[4]  worker   str  whose part is held
ARGV[5]  wish     str  `<requests> <tokens>` to hold in place of what was held; '' leaves that
ARGV[6]  used     str  `<requests> <tokens>` of what was held that were used
ARGV[7]  limits   str  `<window>=<limit>;..` that count instead of what the provider told
ARGV[8]  lane     str  `<i or b>:<tenant>` of who asks
ARGV[9]  weight   str  of that tenant, a number
ARGV[10..]  changes  list  in threes: when something was counted (ms; 0 is now), requests and tokens to add there

Returns
  {'granted', 0, now, limits, requests, tokens}  call it; it is counted
  {'in_turn', 0, now, limits, requests, tokens}  the same, after a wait
  {'scout', 0, now, '', 0, 0}        nothing is known of the limits; this call finds out
  {'free', 0, now, '', 0, 0}         nothing is known of limits, and the provider has answered
  {'wait', ms, now, limits, requests, tokens}  come again after so long; a place in the line is kept
  {'soon', ms, now, limits, requests, tokens}  the same, for who was in line before
  {'settled', 0, now, limits, requests, tokens}  nobody asked
      now is the server's clock, ms; limits are those that count, as in ARGV; requests and tokens are held

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  what was granted within any window, what is held, and what is asked are together no more than the limit;
      more than a whole limit goes alone
  I3  nobody goes unless there is room for all before it in line, too: tenants get calls by weight, batch calls
      wait for all others, and within these, who came first goes first
  I4  at most half of a limit is held or given without asking, and nothing while somebody waits
  I5  what a lost worker held counts as used
  I6  the clock is the server's
  I7  what others write into these keys stops nobody and frees nobody: a key of another type is dropped, a sum that
      the buckets do not bear out is counted anew, a number that cannot be is none, and nothing is held, or holds
      all up, for longer than it may
]]
local budget, held, line, due, shares = unpack(KEYS)
local who, tokens, likely, worker, wish, used, limits, lane, weight = unpack(ARGV, 1, 9)
local RING, KEPT_MS, HELD_MS, LATE_MS, SCOUT_MS, SOON_MS, FAR_MS, GONE_MS, STOP_MS, NAMED_MS =
  200, 86400000, 2000, 10000, 2000, 300, 4000, 1000, 60000, 3600000
local BATCH, MOST_APART, MOST = 2 ^ 40, 100, 1e15
tokens, likely = tonumber(tokens), tonumber(likely)

-- Read a number that others may have written: `otherwise`, if it is none or not within these bounds.
local function within(value, least, most, otherwise)
  local read = tonumber(value or nil)
  return read and read >= least and read <= most and read or otherwise
end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local facts = redis.pcall('HMGET', budget, 'seen', 'scout', 'until', 'margin', 'limits', 'mean')
if facts.err then
  redis.call('DEL', budget)
  facts = {}
end
local seen, scout, stop, margin, counted_by, mean = unpack(facts, 1, 6)
scout, stop = within(scout, 0, now), within(stop, 0, now + STOP_MS, 0)
margin = 1 + within(margin, 0, 200, 10) / 1000

local function name(window, bucket)
  return string.format('%s:%.0f', window.id, bucket)
end

-- Return what a bucket counts: no more than the whole limit.
local function counted(window, amount)
  return math.min(within(amount, -MOST, MOST, 0), window.limit)
end

-- Add up the buckets that count; return them, oldest first, and whether the sum was another one. What was counted too high
-- may have been set right in a bucket nearby, but no bucket takes away more than stands before it.
local function recount(window)
  local names, amounts, sum = {}, {}, 0
  for bucket = window.from, window.now do
    names[#names + 1] = name(window, bucket)
  end
  for n, amount in ipairs(redis.call('HMGET', budget, unpack(names))) do
    amounts[n] = math.max(-sum, counted(window, amount))
    sum = sum + amounts[n]
  end
  local former = window.sum
  window.sum = sum
  return amounts, former ~= sum
end

-- Forget what is older than the window. A bucket counts until its youngest entry does no more.
local function open(id, span, is_tokens, limit)
  local window = {id = id, limit = limit, is_tokens = is_tokens, width = span / RING,
    count = math.ceil(RING * margin), pace = span * margin / limit}
  local kept = redis.call('HMGET', budget, id .. ':sum', id .. ':from', id .. ':last')
  window.now = math.floor(now / window.width)
  window.from = window.now - window.count
  local sum = within(kept[1], 0, MOST)
  local from, last = within(kept[2], 0, window.now), within(kept[3], 0, window.now)
  if not (sum and from and last and last - from <= 2 * RING) then
    window.last, window.sum = window.now, nil
    recount(window)
    return window
  end
  window.sum, window.last = sum, last
  local old = {}
  for at = from, math.min(window.from - 1, last) do
    old[#old + 1] = name(window, at)
  end
  if old[1] then
    for _, amount in ipairs(redis.call('HMGET', budget, unpack(old))) do
      window.sum = window.sum - counted(window, amount)
    end
    redis.call('HDEL', budget, unpack(old))
    if window.sum < 0 then
      recount(window)
    end
  end
  return window
end

local function add(window, bucket, amount)
  if amount ~= 0 then
    local grown = redis.pcall('HINCRBY', budget, name(window, bucket), amount)
    if type(grown) ~= 'number' then  -- others wrote there
      redis.call('HSET', budget, name(window, bucket), string.format('%.0f', amount))
    end
    window.sum = window.sum + amount
    window.last = math.max(window.last, bucket)
  end
end

local windows, words = {}, {}
for id in string.gmatch('rs rm ts tm', '%a+') do
  local given, span = string.match(limits, id .. '=(%d+)'), string.sub(id, 2) == 's' and 1000 or 60000
  local known = redis.call('HMGET', budget, 'n:' .. id, 'l:' .. id)
  local told = within(string.match(known[2] or '', '^%d+$'), 1, MOST)
  local named, lasts = string.match(known[1] or '', '^(%d+) (%d+)$')
  named = within(lasts, now + 1, now + NAMED_MS) and within(named, 1, told and 60 * told or MOST)
  local limit = tonumber(given) or named or told or 0
  if limit > 0 then
    windows[#windows + 1] = open(id, span, string.sub(id, 1, 1) == 't', limit)
    words[#words + 1] = string.format('%s=%.0f', id, limit)
  end
end

local counting = table.concat(words, ';')
if counting ~= (counted_by or '') then
  redis.call('HSET', budget, 'limits', counting)
end

if not windows[1] then
  redis.call('PEXPIRE', budget, KEPT_MS)
  if who == '' then
    return {'settled', 0, now, '', 0, 0}
  end
  if seen then
    return {'free', 0, now, '', 0, 0}
  end
  if scout and now < scout + SCOUT_MS then
    return {'soon', 20, now, '', 0, 0}
  end
  redis.call('HSET', budget, 'scout', now)
  redis.call('PEXPIRE', budget, KEPT_MS)
  return {'scout', 0, now, '', 0, 0}
end

-- What was used of what was held, what was counted too high or at another time, and what the lost had.
local used_requests, used_tokens = string.match(used, '^(%d+) (%d+)$')
local held_requests, held_tokens = 0, 0
local parts = redis.pcall('HGETALL', held)
if parts.err then
  redis.call('DEL', held)
  parts = {}
end
for n = 1, #parts, 2 do
  local requests, tokens_held, till = string.match(parts[n + 1], '^(%d+) (%d+) (%d+)$')
  requests, tokens_held = within(requests, 0, MOST), within(tokens_held, 0, MOST)
  till = requests and tokens_held and within(till, 0, now + HELD_MS)
  if (parts[n] == worker and wish ~= '') or not till then
    redis.call('HDEL', held, parts[n])
  elseif now > till then
    redis.call('HDEL', held, parts[n])
    for _, window in ipairs(windows) do
      add(window, window.now, math.min(window.limit, window.is_tokens and tokens_held or requests))
    end
  else
    held_requests, held_tokens = held_requests + requests, held_tokens + tokens_held
  end
end
for _, window in ipairs(windows) do
  add(window, window.now, tonumber(window.is_tokens and used_tokens or used_requests or 0))
  for n = 10, #ARGV, 3 do
    local when, amount = tonumber(ARGV[n]), tonumber(ARGV[n + (window.is_tokens and 2 or 1)])
    local bucket = when == 0 and window.now or math.floor(when / window.width)
    if bucket >= window.from then
      add(window, math.min(bucket, window.now), amount)
    end
  end
  window.held = window.is_tokens and held_tokens or held_requests
end

-- When there is room for this amount behind what stands in line, ms. What is held will soon have been used, or not.
local free_at
function free_at(window, amount, ahead)
  local taken = window.sum + window.held
  if taken + ahead + amount <= window.limit or (taken <= 0 and ahead <= 0) then
    return now
  end
  local over, at = window.sum + amount - window.limit, now
  if over > 0 then
    local amounts, is_other = recount(window)
    if is_other then
      return free_at(window, amount, ahead)
    end
    at = now + window.count * window.width
    for n, gone in ipairs(amounts) do
      over = over - gone
      if over <= 0 then
        at = (window.from + n + window.count) * window.width
        break
      end
    end
  elseif window.held > 0 then
    at = now + SOON_MS
  end
  return at + ahead * window.pace
end

local answer = {'settled', 0}
if redis.pcall('ZCARD', line) ~= redis.pcall('ZCARD', due) or type(redis.pcall('ZCARD', due)) ~= 'number' then
  redis.call('DEL', line, due)
end

-- Who is due later than twice the time that the whole line takes was put there by others.
local waiting, largest, most_ms = redis.call('ZCARD', line), 0, 0
for _, window in ipairs(windows) do
  if window.is_tokens then
    largest = math.max(largest, window.limit)
  else
    most_ms = math.max(most_ms, window.count * window.width + waiting * window.pace)
  end
end
most_ms = largest > 0 and math.max(5 * FAR_MS, 2 * waiting) or most_ms
local latest = math.max(now, stop) + 2 * most_ms
for _, range in ipairs({{'-inf', now - LATE_MS}, {string.format('(%.0f', latest), '+inf'}}) do
  for _, late in ipairs(redis.call('ZRANGEBYSCORE', due, range[1], range[2], 'LIMIT', 0, 100)) do
    redis.call('ZREM', line, late)
    redis.call('ZREM', due, late)
  end
end
if type(redis.pcall('ZCARD', shares)) ~= 'number' then
  redis.call('DEL', shares)
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

if who ~= '' then
  local kind = string.sub(lane, 1, 1)
  local least = passed(kind, line)
  local most = highest(least, line)
  local stood = redis.call('ZSCORE', line, who)
  local place = within(stood, kind == 'b' and BATCH or 0, most)
  if stood and not place then
    redis.call('ZREM', line, who)
    redis.call('ZREM', due, who)
  end
  place = place or share(lane, least, most) or least
  local in_line = redis.call('ZCARD', line) > 0
  local waited = redis.call('ZRANK', line, who)
  -- Who did not come when its time had come takes nothing from who does.
  local gone = redis.call('ZCOUNT', due, '-inf', now - GONE_MS)
  if gone > 0 and tonumber(redis.call('ZSCORE', due, who) or now) <= now - GONE_MS then
    gone = gone - 1
  end
  local before = math.max(0, (waited or redis.call('ZCOUNT', line, '-inf', place)) - gone)
  mean = within(mean, 0, largest, likely)
  mean = mean + (likely - mean) / 10
  local at, has_tokens = math.max(now, stop), false
  for _, window in ipairs(windows) do
    if window.is_tokens then
      at, has_tokens = math.max(at, free_at(window, tokens, before * mean)), true
    else
      at = math.max(at, free_at(window, 1, before))
    end
  end
  if has_tokens then
    redis.call('HSET', budget, 'mean', mean)
  end
  if at <= now then
    answer = waited and {'in_turn', 0} or {'granted', 0}
    redis.call('ZREM', line, who)
    redis.call('ZREM', due, who)
    if in_line then
      least = math.max(least, place)
      redis.call('ZADD', shares, least, kind)
      redis.call('ZREMRANGEBYSCORE', shares, kind == 'b' and BATCH or 0, string.format('(%.17g', least))
    end
    for _, window in ipairs(windows) do
      add(window, window.now, window.is_tokens and tokens or 1)
    end
  else
    local wait = math.max(1, math.ceil(at - now))
    if has_tokens and wait > FAR_MS then  -- what the others use is not known yet
      wait = math.floor(math.min(wait * 0.75, math.max(5 * FAR_MS, 2 * before)))
    end
    if not waited then
      redis.call('ZADD', line, place, who)
    end
    redis.call('ZADD', due, now + wait, who)
    answer = waited and {'soon', wait} or {'wait', wait}
    in_line = true
  end
  if in_line and not waited then
    redis.call('ZADD', shares, place + 1 / weight, lane)
  end
end
local in_line = redis.call('ZCARD', line) > 0

local requests, tokens_free = string.match(wish, '^(%d+) (%d+)$')
requests, tokens_free = tonumber(requests or 0), tonumber(tokens_free or 0)
if in_line or stop > now then
  requests, tokens_free = 0, 0
end
local needs_tokens = false
for _, window in ipairs(windows) do
  local free = math.max(0, math.floor((window.limit / 2 - window.sum - window.held) / 4))
  if window.is_tokens then
    tokens_free, needs_tokens = math.min(tokens_free, free), true
  else
    requests = math.min(requests, free)
  end
  redis.call('HSET', budget, window.id .. ':sum', math.max(0, window.sum), window.id .. ':from', window.from,
    window.id .. ':last', window.last)
end
if requests > 0 and (tokens_free > 0 or not needs_tokens) then
  redis.call('HSET', held, worker, string.format('%.0f %.0f %.0f', requests, tokens_free, now + HELD_MS))
else
  requests, tokens_free = 0, 0
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, KEPT_MS)
end
return {answer[1], answer[2], now, counting, requests, tokens_free}
