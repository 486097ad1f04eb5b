-- The value and the time at which it was that.
local time = redis.call('TIME')
return {redis.call('MGET', KEYS[1])[1], time[1], time[2]}
