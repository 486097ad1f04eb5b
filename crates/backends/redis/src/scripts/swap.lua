-- Does ARGV[2] (put, expire, delete) if the value is still ARGV[1]: '-' for none, '=' and the value. ARGV[3] is
-- 'keep', 'never' or milliseconds to live, ARGV[4] the new value. Otherwise says what the value is, and the time.
local old = redis.call('MGET', KEYS[1])[1]
if (old and '=' .. old or '-') ~= ARGV[1] then
  local time = redis.call('TIME')
  return {old, time[1], time[2]}
end
if ARGV[2] == 'delete' then
  redis.call('UNLINK', KEYS[1])
elseif ARGV[2] == 'put' then
  if ARGV[3] == 'keep' then
    redis.call('SET', KEYS[1], ARGV[4], 'KEEPTTL')
  elseif ARGV[3] == 'never' then
    redis.call('SET', KEYS[1], ARGV[4])
  else
    redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
  end
elseif ARGV[3] == 'never' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
