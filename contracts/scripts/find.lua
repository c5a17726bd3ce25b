--[[
find: read pages of the index and return the newest lines that fit, so that the rest need not be sent.

KEYS[1]   page_marks  hash    page -> the first halves of the marks in it; `!!!` and `.<letter>.` for failed
          and slow turns
KEYS[2..]  pages        string  lines, see contracts/index_lines.py

ARGV[1]  most          int  lines to return; more where several were active in one millisecond, or in that of until_ms
ARGV[2]  since_ms      int  active then or later
ARGV[3]  until_ms      int  active then or before
ARGV[4]  failed_since  int  a turn failed then or later; -1 asks for none
ARGV[5]  slow          str  letter: a turn took as long, or longer; '' asks for none
ARGV[6..]  marks        list  six characters each: it has all of them

Returns
  {'found', lines}  in no order

Invariants
  I1  all keys share one hash tag, so one cluster slot
  I2  nothing is written
  I3  pages of which nothing is known in `page_marks` are read; what others wrote is passed over
]]
local page_marks = unpack(KEYS, 1, 1)
local most, since_ms, until_ms, failed_since, slow = unpack(ARGV, 1, 5)
most, since_ms, until_ms, failed_since = tonumber(most), tonumber(since_ms), tonumber(until_ms), tonumber(failed_since)

local lines = {}

-- Leave the newest ones; from now on, older ones are of no use. Those of the last moment do not count: a page before
-- may have had them.
local function cut()
  table.sort(lines, function(one, other) return one[1] > other[1] end)
  local count = most
  while lines[count] and lines[count - most + 1][1] == until_ms do
    count = count + 1
  end
  local last = lines[count] and lines[count][1]
  while last and lines[#lines][1] < last do
    lines[#lines] = nil
  end
  since_ms = math.max(since_ms, last or 0)
end

local function take(failed, how, longest, ms, id)
  local at = tonumber(ms)
  if not at or at < since_ms or at > until_ms or (slow ~= '' and longest < slow)
    or (failed_since >= 0 and (tonumber(string.sub(failed, 2)) or -1) < failed_since) then
    return
  end
  lines[#lines + 1] = {at, failed .. ' ' .. how .. longest .. ms .. ' ' .. id}
  if #lines > 4 * most + 64 then
    cut()
  end
end

-- Whether a line has a mark, and not only the end of one and the beginning of the next.
local function has(own, mark)
  local at = string.find(own, mark, 1, true)
  while at and at % 6 ~= 1 do
    at = string.find(own, mark, at + 1, true)
  end
  return at
end

local function has_all(own)
  for n = 6, #ARGV do
    if not has(own, ARGV[n]) then
      return false
    end
  end
  return true
end

-- Whether a page may have what is asked for.
local function is_worth_reading(known)
  for n = 6, #ARGV do
    if not string.find(known, string.sub(ARGV[n], 1, 3), 1, true) then
      return false
    end
  end
  return (failed_since < 0 or string.find(known, '!!!', 1, true))
    and (slow < 'b' or string.find(known, '%.[' .. slow .. '-z]%.'))
end

local is_filtered = #ARGV > 5 or failed_since >= 0 or slow > 'a'
-- With one mark, or none but failures, lines that do not fit are passed over without a look at each.
local sought = #ARGV == 6 and ARGV[#ARGV] or (#ARGV == 5 and failed_since >= 0 and '!') or nil
local known_of = {}
if is_filtered then
  local numbers, begins = {}, #(string.match(KEYS[#KEYS], '^(.*:)%d+$') or '') + 1
  for n = 2, #KEYS do
    numbers[n - 1] = string.sub(KEYS[n], begins)
  end
  known_of = redis.pcall('HMGET', page_marks, unpack(numbers))
end
for n = 2, #KEYS do
  local known = known_of[n - 1]  -- nil, too, where others made something else of it
  local text = (type(known) ~= 'string' or is_worth_reading(known)) and redis.pcall('GET', KEYS[n])
  if type(text) == 'string' and sought then
    local at = string.find(text, sought, 1, true)
    while at do
      local own, failed, how, longest, ms, id, ends =
        string.match(text, '^([^! \n]*)(!?%d*) (%l)(%l)(%d+) ([^\n]*)()', at)
      if own and #own % 6 == 0 then
        take(failed, how, longest, ms, id)
      end
      at = string.find(text, sought, own and #own % 6 == 0 and ends or at + 1, true)
    end
  elseif type(text) == 'string' then
    for own, failed, how, longest, ms, id in
      string.gmatch(text, '\n([^! \n]*)(!?%d*) (%l)(%l)(%d+) ([^\n]*)') do
      if #ARGV == 5 or has_all(own) then
        take(failed, how, longest, ms, id)
      end
    end
  end
end
cut()
for n, line in ipairs(lines) do
  lines[n] = line[2]
end
return {'found', lines}
