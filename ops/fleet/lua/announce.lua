--[[
announce: have a shard know the number of shards, unless a later mover has taken over.

KEYS[1]  fleet  hash  shards, from, earlier; `mover` is who changes the number, or did last

ARGV[1]  mover    str  `<epoch> <name>`; only the name to begin, since the epoch follows that of the mover before
ARGV[2]  how      str  'begin': take over, if the number is still as this mover found it; 'go_on'; 'follow' the first
         shard, which has said that this mover may
ARGV[3]  found    int  how many shards the mover found
ARGV[4]  shards   str  how many shards the fleet has from now on
ARGV[5]  old      str  how many it is moved from; '' when that is over
ARGV[6]  earlier  str  numbers that it had, separated by commas

Returns
  {'announced', mover}  done
  {'fenced', mover}     that one has taken over, or has changed the number; nothing written

Invariants
  I1  one key
  I2  every read precedes every write
  I3  epochs only grow, so what a mover sends late changes nothing
]]
local fleet = unpack(KEYS)
local mover, how, found, shards, old, earlier = unpack(ARGV)

local now_shards, now_old, now_mover = unpack(redis.call('HMGET', fleet, 'shards', 'from', 'mover'))
now_mover = now_mover or ''

local function epoch(name)
  return tonumber(string.match(name, '^(%d+) ') or 0)
end

local is_fenced
if how == 'begin' then
  mover = epoch(now_mover) + 1 .. ' ' .. mover
  is_fenced = now_shards and now_shards ~= shards and (now_shards ~= found or (now_old or '') ~= '')
else
  local ahead = epoch(now_mover) - epoch(mover)
  is_fenced = ahead > 0 or (ahead == 0 and how == 'go_on' and now_mover ~= mover)
end
if is_fenced then
  return {'fenced', now_mover}
end
redis.call('HSET', fleet, 'shards', shards, 'from', old, 'earlier', earlier, 'mover', mover)
return {'announced', mover}
