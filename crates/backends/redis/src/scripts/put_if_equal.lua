-- Puts ARGV[2] if the value is ARGV[1]. ARGV[3]: 'keep', 'never' or milliseconds to live.
if redis.call('MGET', KEYS[1])[1] ~= ARGV[1] then
  return 0
end
if ARGV[3] == 'keep' then
  redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
elseif ARGV[3] == 'never' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
