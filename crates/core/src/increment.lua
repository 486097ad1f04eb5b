-- Adds ARGV[1] to the counter; one that this creates lives for ARGV[2] milliseconds.
-- INCRBY takes canonical integers only and keeps the time to live, as the transition does.
local created = redis.call('EXISTS', KEYS[1]) == 0
local sum = redis.pcall('INCRBY', KEYS[1], ARGV[1])
if type(sum) == 'table' then
  if string.find(sum.err, 'integer') or string.find(sum.err, 'overflow') then
    return redis.error_reply('NotInteger the value is not a signed 64-bit decimal integer, or the sum is none')
  end
  return sum
end
if created then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
-- Not the sum: as a number of Lua it is exact to 2^53 only.
return redis.call('GET', KEYS[1])
