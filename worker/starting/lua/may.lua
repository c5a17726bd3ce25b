--[[
may: ask what the user of this connection may do; nothing is done.

ARGV[1..]  commands  str  JSON arrays of a command's words; keys in them are not touched

Returns
  {'refused', n, ...}  places (from 1) of the commands that it may not send, or that are not there
  {'unknown'}          the server cannot tell

Invariants
  I1  nothing is read or written
]]
if not redis.acl_check_cmd then
  return {'unknown'}
end
local reply = {'refused'}
for n = 1, #ARGV do
  local is_known, may = pcall(redis.acl_check_cmd, unpack(cjson.decode(ARGV[n])))
  if not (is_known and may) then
    reply[#reply + 1] = n
  end
end
return reply
