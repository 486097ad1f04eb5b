-- Deletes KEYS, also on a full server, which refuses whatever comes in MULTI. Replies 0 or 1 for each.
local replies = {}
for i = 1, #KEYS do
  replies[i] = redis.call('UNLINK', KEYS[i])
end
return replies
