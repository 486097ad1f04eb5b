-- Carries out one write for each of KEYS, as if one after the other, or none of them. Five arguments each:
-- P(ut) or D(elete); the condition (* always, - absent, + present, = equal); the value it is compared with; the
-- value to put; 'keep', 'never' or milliseconds to live.
-- Replies 0 or 1 for each write, or the index of the one whose condition does not hold.
local keys, value, ttl, replies = {}, {}, {}, {}
for i = 1, #KEYS do
  local key, at = KEYS[i], (i - 1) * 5
  if value[key] == nil then
    keys[#keys + 1] = key
    value[key] = redis.call('MGET', key)[1]
    ttl[key] = 'keep'
  end
  local old, condition = value[key], ARGV[at + 2]
  if (condition == '-' and old) or (condition == '+' and not old)
      or (condition == '=' and old ~= ARGV[at + 3]) then
    return i
  end
  if ARGV[at + 1] == 'D' then
    replies[i] = old and 1 or 0
    value[key] = false
  else
    replies[i] = 1
    value[key] = ARGV[at + 4]
    if ARGV[at + 5] ~= 'keep' then
      ttl[key] = ARGV[at + 5]
    elseif not old then
      ttl[key] = 'never'
    end
  end
end
-- Puts before deletions: if the server is full the first put fails, and nothing is written.
for i = 1, #keys do
  local key = keys[i]
  if value[key] then
    if ttl[key] == 'keep' then
      redis.call('SET', key, value[key], 'KEEPTTL')
    elseif ttl[key] == 'never' then
      redis.call('SET', key, value[key])
    else
      redis.call('SET', key, value[key], 'PX', ttl[key])
    end
  end
end
for i = 1, #keys do
  if not value[keys[i]] then
    redis.call('UNLINK', keys[i])
  end
end
return replies
