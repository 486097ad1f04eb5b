-- The token bucket of bucket.rs. ARGV: UNIT FLOW BURST, and what the command adds.
local CONFIG = 3
local unit, flow, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local capacity = burst * unit
local time = redis.call('TIME')
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), 0)
local state = redis.call('GET', KEYS[1])
