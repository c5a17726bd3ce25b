--[[
arrive: put down in its new shard what was packed in a conversation's old one, where it still counts.

KEYS[1]   inbox        stream
KEYS[2]   state        hash
KEYS[3]   context      list
KEYS[4]   steps        list
KEYS[5]   turns        hash
KEYS[6]   log          list
KEYS[7]   calls        list
KEYS[8]   events       stream
KEYS[9]   later        zset
KEYS[10]  job          string  ARQ's job
KEYS[11]  in_progress  string  `<token> <worker id>` of the holder
KEYS[12]  pages        zset    page -> when (ms) one of its conversations was active last
KEYS[13]  page_marks  hash    page -> the first halves of the marks in it; see commit.lua
KEYS[14]  page         string  the page of the index in which the conversation has its line
KEYS[15]  fleet        hash    `mover`; `forgot` changes with each conversation that is forgotten meanwhile

ARGV[1]  cursor  str  id of the last event in the old shard
ARGV[2]  forgot  bytes  as it was before the conversation was packed
ARGV[3]  mover   str  who moves it
ARGV[4..]  packed  list  two items for each of the first nine keys: its DUMP, '' for none; ms until it expires. Behind
         them its line of the index, '' for none

Returns
  {'arrived', ''}  it is here; what an earlier try left here is replaced
  {'ahead', ''}    the conversation is here and went on already; nothing written
  {'late', ''}     something was forgotten since it was packed, perhaps this; nothing written
  {'fenced', ''}   another mover has taken over; nothing written

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  every read that decides precedes every write
]]
local inbox, state, context, steps, turns, log, calls, events, later, job, in_progress, pages, page_marks, page,
  fleet = unpack(KEYS)
local cursor, forgot, mover = unpack(ARGV, 1, 3)

local function is_later(id, than)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local than_ms, than_seq = string.match(than, '^(%d+)-(%d+)$')
  if ms ~= than_ms then
    return tonumber(ms) > tonumber(than_ms)
  end
  return tonumber(seq) > tonumber(than_seq)
end

-- Return where a conversation's line begins in a page of the index (0: with its first byte), and the line.
local function line_of(text, id)
  local ends = string.find(text .. '\n', ' ' .. id .. '\n', 1, true)
  local before = ends and string.reverse(string.sub(text, math.max(1, ends - 200), ends))
  local back = before and string.find(before, '\n', 1, true)
  if back then
    return ends - back, string.sub(text, ends - back + 2, ends + #id)
  end
end

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

if redis.call('HGET', fleet, 'mover') ~= mover then
  return {'fenced', ''}
end
if (redis.call('HGET', fleet, 'forgot') or '') ~= forgot then
  return {'late', ''}
end
if redis.call('EXISTS', log) == 1 then
  local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  if redis.call('EXISTS', job, in_progress) > 0 or (last and is_later(last[1], cursor)) then
    return {'ahead', ''}
  end
end
for n, key in ipairs({inbox, state, context, steps, turns, log, calls, events, later}) do
  local dump, left_ms = unpack(ARGV, 2 * n + 2, 2 * n + 3)
  if dump ~= '' then
    redis.call('RESTORE', key, left_ms, dump, 'REPLACE')
  else
    redis.call('DEL', key)
  end
end
local line = ARGV[#ARGV]
local marks, failed, slow, ms, id = string.match(line, '^([^! ]*)(!?%d*) %l(%l)(%d+) (%S+)$')
if id then
  local text = redis.pcall('GET', page)
  text = type(text) == 'string' and text or ''
  local stands, former = line_of(text, id)
  if stands then  -- of an earlier try
    text = string.sub(text, 1, stands) .. string.sub(text, stands + #former + 2)
  end
  local number, at = string.match(page, '%d+$'), tonumber(ms)
  redis.call('SET', page, text .. '\n' .. line)
  mark_page(number, marks, failed, slow)
  local known = redis.pcall('ZSCORE', pages, number)
  if not known or (type(known) == 'string' and tonumber(known) < at) then
    redis.call('ZADD', pages, at, number)
  end
  local left_ms = redis.call('PTTL', log)
  for _, key in ipairs({pages, page_marks, page}) do
    redis.call('PEXPIRE', key, math.max(left_ms, redis.call('PTTL', key)))
  end
end
return {'arrived', ''}
