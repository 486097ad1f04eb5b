-- Deletes the key if its value is ARGV[1].
if redis.call('MGET', KEYS[1])[1] ~= ARGV[1] then
  return 0
end
return redis.call('UNLINK', KEYS[1])
