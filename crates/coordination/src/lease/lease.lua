-- Claims, renews, releases or shows a lease: the twin of the transitions in transition.rs. The state is
-- "last_token[ H owner weight token ttl expires label]..[ W owner weight tokens ttl expires label]..", times in
-- microseconds.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local command, owner = ARGV[1], ARGV[2]
local REMEMBERED = 86400000000

local corrupt = false
local function int(digits)
  local value = #digits <= 16 and tonumber(digits) or 2 ^ 52
  corrupt = corrupt or value >= 2 ^ 52
  return value
end

local state = redis.call('GET', KEYS[1])

-- What most calls meet: nobody else holds or waits. Decided by digits, as many as the time has: to make numbers of them,
-- and digits of numbers, takes longer than all the rest.
local digits = time[1] .. string.sub('00000' .. time[2], -6)
local function less(a, b)
  return #a == #b and a < b
end
local LIMIT = '4503599627370496'
if command == 'claim' and less(digits, LIMIT) and (not state or less(state, digits) and not string.find(state, '%D')) then
  local ttl, weight, tokens = ARGV[3], ARGV[5], ARGV[8]
  if tonumber(weight) <= tonumber(ARGV[6]) then
    local last = tokens == '1' and digits or string.format('%.0f', now + tokens - 1)
    local expires = string.format('%.0f', now + ttl)
    local value = last .. ' H ' .. owner .. ' ' .. weight .. ' ' .. digits .. ' ' .. ttl .. ' ' .. expires .. ' ' .. ARGV[4]
    redis.call('SET', KEYS[1], value, 'PX', math.ceil((ttl + REMEMBERED) / 1000))
    return 'granted ' .. digits
  end
elseif command == 'release' and state then
  local last, who, weight, token, ttl, expires =
    string.match(state, '^([1-9]%d+) H ([!-~]+) (%d+) (%d+) ([1-9]%d*) (%d+) [!-~]+$')
  if who == owner and #weight < 16 and #ttl < 16 and less(last, LIMIT) and less(token, LIMIT) and less(expires, LIMIT)
    and less(digits, expires)
  then
    redis.call('SET', KEYS[1], last == ARGV[4] and ARGV[5] or last, 'PX', REMEMBERED / 1000)
    return '1'
  end
end

local last, holders, waiters, held, clamped = 0, {}, {}, 0, false
if state then
  local _, at, digits = string.find(state, '^(%d+)')
  if not at then
    return redis.error_reply('Corrupt what lies under the key is not the state of a lock, a semaphore or an election')
  end
  last = int(digits)
  while at < #state do
    local _, to, who, weight, token, ttl, expires, label =
      string.find(state, '^ H ([!-~]+) (%d+) (%d+) (%d+) (%d+) ([!-~]+)', at + 1)
    if not to then break end
    at, ttl, expires, weight, token = to, int(ttl), int(expires), int(weight), int(token)
    clamped = clamped or expires > now + ttl
    expires = math.min(expires, now + ttl)
    if expires > now then
      held = held + weight
      table.insert(holders, { who = who, weight = weight, token = token, ttl = ttl, expires = expires, label = label })
    end
  end
  while at < #state do
    local _, to, who, weight, tokens, ttl, expires, label =
      string.find(state, '^ W ([!-~]+) (%d+) (%d+) (%d+) (%d+) ([!-~]+)', at + 1)
    if not to then break end
    at, ttl, expires, weight, tokens = to, int(ttl), int(expires), int(weight), int(tokens)
    clamped = clamped or expires > now + ttl
    expires = math.min(expires, now + ttl)
    if expires > now then
      table.insert(waiters, { who = who, weight = weight, tokens = tokens, ttl = ttl, expires = expires, label = label })
    end
  end
  if at < #state or corrupt then
    return redis.error_reply('Corrupt what lies under the key is not the state of a lock, a semaphore or an election')
  end
end

local function find(list)
  for i, one in ipairs(list) do
    if one.who == owner then return i end
  end
end

local latest = now
local function text()
  local parts = { string.format('%.0f', last) }
  for _, h in ipairs(holders) do
    latest = math.max(latest, h.expires)
    table.insert(parts, string.format('H %s %.0f %.0f %.0f %.0f %s', h.who, h.weight, h.token, h.ttl, h.expires, h.label))
  end
  for _, w in ipairs(waiters) do
    latest = math.max(latest, w.expires)
    table.insert(parts, string.format('W %s %.0f %.0f %.0f %.0f %s', w.who, w.weight, w.tokens, w.ttl, w.expires, w.label))
  end
  return table.concat(parts, ' ')
end

local function put()
  local value = text()
  local kept = math.ceil((latest - now + REMEMBERED) / 1000)
  redis.call('SET', KEYS[1], value, 'PX', string.format('%.0f', kept))
end

if command == 'show' then
  return string.format('%.0f', now) .. ' ' .. text()
end

local function grant(w)
  local token = math.max(now, last + 1)
  last = token + w.tokens - 1
  held = held + w.weight
  table.insert(holders, { who = w.who, weight = w.weight, token = token, ttl = w.ttl, expires = w.expires, label = w.label })
  return string.format('%.0f', token)
end

if command == 'release' then
  local holder, waiter = find(holders), find(waiters)
  if holder then held = held - table.remove(holders, holder).weight end
  if waiter then table.remove(waiters, waiter) end
  if holder and last == tonumber(ARGV[4]) then
    last = tonumber(ARGV[5])
  elseif not holder and not waiter then
    last = math.max(now, last + 1)
  end
  local reply, capacity = { holder and '1' or '0' }, tonumber(ARGV[3])
  while waiters[1] and held + waiters[1].weight <= capacity do
    local w = table.remove(waiters, 1)
    table.insert(reply, w.who)
    table.insert(reply, grant(w))
  end
  put()
  return table.concat(reply, ' ')
end

local ttl, label = tonumber(ARGV[3]), ARGV[4]
local holder = holders[find(holders)]
if command == 'renew' then
  if not holder then return '0' end
  holder.ttl, holder.expires, holder.label = ttl, now + ttl, label
  last = math.max(last, tonumber(ARGV[5]))
  put()
  return '1'
end

if holder then
  holder.ttl, holder.expires = ttl, now + ttl
  put()
  return 'granted ' .. string.format('%.0f', holder.token)
end
local weight, capacity, patience = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local tokens = tonumber(ARGV[8])
local place = find(waiters)
local before = held + weight
for i = 1, place and place - 1 or #waiters do
  before = before + waiters[i].weight
end
local waiter = { who = owner, weight = weight, tokens = tokens, ttl = ttl, expires = now + ttl, label = label }
if before <= capacity then
  if place then table.remove(waiters, place) end
  local token = grant(waiter)
  put()
  return 'granted ' .. token
end
local first
for _, h in ipairs(holders) do
  first = math.min(first or h.expires, h.expires)
end
first = first or waiters[1] and waiters[1].expires or now
if patience > 0 then
  waiter.ttl, waiter.expires = patience, now + patience
  waiters[place or #waiters + 1] = waiter
end
if patience > 0 or clamped then put() end
return string.format('taken %.0f %.0f', first - now, last)
