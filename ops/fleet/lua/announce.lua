--[[
announce: have a shard know the number of shards, unless a later mover has taken over.

KEYS[1]  fleet  hash  shards, from, earlier; `mover` is who changes the number, or did last

ARGV[1]  mover    str    `<epoch> <name>`; only the name to begin
ARGV[2]  how      str    'begin': take over, if all is still as this mover found it; 'go_on'; 'follow' the first shard,
         which has said that this mover may; 'end', after which nothing counts any more that was sent before
ARGV[3]  epoch    int    to begin: the highest one that any shard knows
ARGV[4]  found    bytes  to begin: `<shards>;<from>;<mover>`, as this mover found it
ARGV[5]  shards   str    how many shards the fleet has from now on
ARGV[6]  old      str    how many it is moved from; '' when that is over
ARGV[7]  earlier  str    numbers that it had, separated by commas

Returns
  {'announced', mover}  done; `mover` is who it is from now on
  {'fenced', mover}     that one has taken over, or has changed the number; nothing written

Invariants
  I1  one key
  I2  every read precedes every write
  I3  epochs only grow, so what a mover sends late changes nothing
]]
local fleet = unpack(KEYS)
local mover, how, epoch, found, shards, old, earlier = unpack(ARGV)

local now_shards, now_old, now_mover = unpack(redis.call('HMGET', fleet, 'shards', 'from', 'mover'))
now_mover = now_mover or ''

local function epoch_of(name)
  return tonumber(string.match(name, '^(%d+) ') or 0)
end

local is_fenced
if how == 'begin' then
  is_fenced = (now_shards or '') .. ';' .. (now_old or '') .. ';' .. now_mover ~= found
  mover = epoch + 1 .. ' ' .. mover
else
  local ahead = epoch_of(now_mover) - epoch_of(mover)
  is_fenced = ahead > 0 or (ahead == 0 and how ~= 'follow' and now_mover ~= mover)
end
if is_fenced then
  return {'fenced', now_mover}
end
if how == 'end' then
  mover = epoch_of(mover) + 1 .. ' -'
end
redis.call('HSET', fleet, 'shards', shards, 'from', old, 'earlier', earlier, 'mover', mover)
return {'announced', mover}
