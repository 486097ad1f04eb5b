-- Claims, renews, releases or shows a lease: the twin of the transitions in transition.rs. The state is
-- "last_token[ H owner weight token ttl since label]..[ W owner weight tokens ttl since label]..", times in
-- microseconds. The arguments:
--   claim owner ttl label weight capacity patience tokens milliseconds_kept
--   renew owner ttl label floor
--   release owner capacity last_granted last_used key_len state_after_claim
--   show -
local command, owner = ARGV[1], ARGV[2]
local REMEMBERED = 86400000000
local LIMIT = '4503599627370496'

local state = redis.call('GET', KEYS[1])

-- First what most calls meet: who held alone gives back, or nobody holds. Decided by digits: to make numbers of digits, and
-- digits of numbers, takes longer than all the rest, and even a function that is not called takes its time.
if command == 'release' and state == ARGV[7] and state ~= '' then
  -- REMEMBERED, in digits already.
  redis.call('SET', KEYS[1], ARGV[5], 'PX', '86400000')
  return '1'
end

local time = redis.call('TIME')
local digits = time[1] .. string.sub('00000' .. time[2], -6)
local plain = #digits == #LIMIT and digits < LIMIT
if command == 'claim' and plain
  and (not state or #state == #digits and state < digits and not string.find(state, '%D'))
  and (ARGV[5] == ARGV[6] or tonumber(ARGV[5]) < tonumber(ARGV[6]))
then
  local last, micros = digits, time[2] + ARGV[8] - 1
  if micros >= 1000000 then
    last = string.format('%.0f', time[1] * 1000000 + micros)
  elseif ARGV[8] ~= '1' then
    last = time[1] .. string.sub('00000' .. micros, -6)
  end
  local value = last .. ' H ' .. owner .. ' ' .. ARGV[5] .. ' ' .. digits .. ' ' .. ARGV[3] .. ' ' .. digits .. ' ' .. ARGV[4]
  redis.call('SET', KEYS[1], value, 'PX', ARGV[9])
  return 'granted ' .. digits
end

-- Those in other processes learn what a release grants them by a message: its name lies beside the key, as that of a key
-- would. The reply ends with "told" then: the caller need not tell them.
local function tell(granted, token)
  local process = string.match(granted, '^[^.]*')
  if process ~= string.match(owner, '^[^.]*') then
    local channel = string.sub(KEYS[1], 1, -1 - ARGV[6]) .. 'commonhold:released:' .. process
    -- Who may not publish leaves it to them to ask.
    redis.pcall('PUBLISH', channel, granted .. ' ' .. token)
  end
end

-- Then one who holds all there is, without a look at those who wait behind the first.
local now = time[1] * 1000000 + time[2]
do
  local function less(a, b)
    return #a == #b and a < b
  end
  local function small(digits)
    return #digits < 16 or less(digits, LIMIT)
  end

  local last, holder, weight, token, ttl, since, rest
  if state and #state > 16 then
    last, holder, weight, token, ttl, since, rest = string.match(state,
      '^([1-9]%d*) H ([!-~]+) ([1-9]%d*) ([1-9]%d*) ([1-9]%d*) ([1-9]%d*) [!-~]+()')
    if last and not (small(last) and small(weight) and small(token) and small(ttl) and small(since)) then
      last = nil
    end
  end
  local releases = command == 'release' and last and holder == owner
  if releases and last == ARGV[4] then last = ARGV[5] end
  if releases and rest > #state then
    redis.call('SET', KEYS[1], last, 'PX', '86400000')
    return '1'
  end

  local function goes_on(ttl, since)
    return tonumber(since) <= now and since + ttl > now
  end
  if last and plain and (releases or command == 'claim') then
    local next, wanted, tokens, term, asked, label, after =
      string.match(state, '^ W ([!-~]+) ([1-9]%d*) ([1-9]%d*) ([1-9]%d*) ([1-9]%d*) ([!-~]+)()', rest)
    local waits = next and small(wanted) and small(tokens) and small(term) and small(asked) and goes_on(term, asked)
    if releases and waits and next ~= owner and wanted == ARGV[3] and less(last, digits) then
      last = digits
      if tokens ~= '1' then last = string.format('%.0f', now + tokens - 1) end
      local value = last .. ' H ' .. next .. ' ' .. wanted .. ' ' .. digits .. ' ' .. term .. ' ' .. asked .. ' ' .. label
      local kept = math.ceil((asked + term - now + REMEMBERED) / 1000)
      redis.call('SET', KEYS[1], value .. string.sub(state, after), 'PX', kept)
      tell(next, digits)
      return '1 ' .. next .. ' ' .. digits .. ' told'
    elseif command == 'claim' and ARGV[7] ~= '0' and holder ~= owner and weight == ARGV[6] and goes_on(ttl, since)
      and (waits or rest > #state)
    then
      local before, behind = state, ''
      local at, to = string.find(state, ' W ' .. owner .. ' ', rest, true)
      if at then
        before = string.sub(state, 1, at - 1)
        behind = string.match(state, '^%d+ %d+ %d+ %d+ [!-~]+(.*)$', to + 1)
      end
      if behind then
        local place = ' W ' .. owner .. ' ' .. ARGV[5] .. ' ' .. ARGV[8] .. ' ' .. ARGV[7] .. ' ' .. digits .. ' ' .. ARGV[4]
        local kept = math.ceil((since + ttl - now + REMEMBERED) / 1000)
        redis.call('SET', KEYS[1], before .. place .. behind, 'PX', kept)
        return string.format('taken %.0f ', since + ttl - now) .. last
      end
    end
  end
end

local corrupt = false
local function int(digits)
  local value = #digits <= 16 and tonumber(digits) or 2 ^ 52
  corrupt = corrupt or value >= 2 ^ 52
  return value
end

-- Of the one who asks, when it releases.
local held_before, waited_before = false, false
local last, holders, waiters, held, clamped = 0, {}, {}, 0, false
local function goes_on(one)
  clamped = clamped or one.since > now
  one.since = math.min(one.since, now)
  return one.since + one.ttl > now
end
local function pass_over()
  while waiters[1] and not goes_on(waiters[1]) do table.remove(waiters, 1) end
end
if state then
  local _, at, digits = string.find(state, '^(%d+)')
  if not at then
    return redis.error_reply('Corrupt what lies under the key is not the state of a lock, a semaphore or an election')
  end
  last = int(digits)
  while at < #state do
    local _, to, who, weight, token, ttl, since, label =
      string.find(state, '^ H ([!-~]+) (%d+) (%d+) (%d+) (%d+) ([!-~]+)', at + 1)
    if not to then break end
    at = to
    local one =
      { who = who, weight = int(weight), token = int(token), ttl = int(ttl), since = int(since), label = label }
    if command == 'release' and who == owner then
      held_before = true
    elseif goes_on(one) then
      held = held + one.weight
      table.insert(holders, one)
    end
  end
  while at < #state do
    local _, to, who, weight, tokens, ttl, since, label =
      string.find(state, '^ W ([!-~]+) (%d+) (%d+) (%d+) (%d+) ([!-~]+)', at + 1)
    if not to then break end
    at = to
    local one =
      { who = who, weight = int(weight), tokens = int(tokens), ttl = int(ttl), since = int(since), label = label }
    if command == 'release' and who == owner then
      waited_before = true
    else
      table.insert(waiters, one)
    end
  end
  if at < #state or corrupt then
    return redis.error_reply('Corrupt what lies under the key is not the state of a lock, a semaphore or an election')
  end
  pass_over()
  if command == 'renew' or command == 'claim' and not holders[1] then
    local line = waiters
    waiters = {}
    for _, w in ipairs(line) do
      if goes_on(w) then table.insert(waiters, w) end
    end
  end
end

local function find(list)
  for i, one in ipairs(list) do
    if one.who == owner then return i end
  end
end

local expires = now
local function text()
  local parts = { string.format('%.0f', last) }
  for _, h in ipairs(holders) do
    expires = math.max(expires, h.since + h.ttl)
    table.insert(parts, string.format('H %s %.0f %.0f %.0f %.0f %s', h.who, h.weight, h.token, h.ttl, h.since, h.label))
  end
  for _, w in ipairs(waiters) do
    table.insert(parts, string.format('W %s %.0f %.0f %.0f %.0f %s', w.who, w.weight, w.tokens, w.ttl, w.since, w.label))
  end
  return table.concat(parts, ' ')
end

local function put()
  local value = text()
  local kept = math.ceil((expires - now + REMEMBERED) / 1000)
  redis.call('SET', KEYS[1], value, 'PX', string.format('%.0f', kept))
end

if command == 'show' then
  return string.format('%.0f', now) .. ' ' .. text()
end

local function grant(w)
  local token = math.max(now, last + 1)
  last = token + w.tokens - 1
  held = held + w.weight
  table.insert(holders, { who = w.who, weight = w.weight, token = token, ttl = w.ttl, since = w.since, label = w.label })
  return string.format('%.0f', token)
end

if command == 'release' then
  if held_before and last == tonumber(ARGV[4]) then
    last = tonumber(ARGV[5])
  elseif not held_before and not waited_before then
    last = math.max(now, last + 1)
  end
  local reply, capacity = { held_before and '1' or '0' }, tonumber(ARGV[3])
  while held < capacity do
    pass_over()
    if not waiters[1] or held + waiters[1].weight > capacity then break end
    local w = table.remove(waiters, 1)
    local token = grant(w)
    table.insert(reply, w.who)
    table.insert(reply, token)
  end
  put()
  -- What the server would not write is not granted.
  for i = 2, #reply, 2 do tell(reply[i], reply[i + 1]) end
  if reply[2] then table.insert(reply, 'told') end
  return table.concat(reply, ' ')
end

local ttl, label = tonumber(ARGV[3]), ARGV[4]
local holder = holders[find(holders)]
if command == 'renew' then
  if not holder then return '0' end
  holder.ttl, holder.since, holder.label = ttl, now, label
  last = math.max(last, tonumber(ARGV[5]))
  put()
  return '1'
end

if holder then
  holder.ttl, holder.since = ttl, now
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
local waiter = { who = owner, weight = weight, tokens = tokens, ttl = ttl, since = now, label = label }
if before <= capacity then
  if place then table.remove(waiters, place) end
  local token = grant(waiter)
  put()
  return 'granted ' .. token
end
local first
for _, h in ipairs(holders) do
  first = math.min(first or h.since + h.ttl, h.since + h.ttl)
end
first = first or waiters[1] and waiters[1].since + waiters[1].ttl or now
if patience > 0 then
  waiter.ttl = patience
  waiters[place or #waiters + 1] = waiter
end
if patience > 0 or clamped then put() end
return string.format('taken %.0f %.0f', first - now, last)
