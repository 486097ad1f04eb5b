-- The values of KEYS, then the index and the milliseconds left of each that expires.
local found = redis.call('MGET', unpack(KEYS))
local count = #KEYS
for i = 1, count do
  if found[i] then
    local ttl = redis.call('PTTL', KEYS[i])
    if ttl >= 0 then
      found[#found + 1] = i
      found[#found + 1] = ttl
    end
  end
end
return found
