-- Decides on a call, takes results or sets a circuit breaker by hand: the twin of machine.rs. The state is
-- "generation state until passed trips streak[ P id expires]..[ R id serial in_streak]..[ B serial calls failures slow]..",
-- times in microseconds.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local command = ARGV[1]
local function arg(i) return tonumber(ARGV[i]) end
local threshold, failure_rate, slow_rate, minimum = arg(2), arg(3), arg(4), arg(5)
local width, window, wait, longest = arg(6), arg(7), arg(8), arg(9)
local most_probes, lease, needed = arg(10), arg(11), arg(12)
local TENTHS, MOST, REMEMBERED = 10, 1000000000, 172800000000

local corrupt = false
local function int(digits, most)
  local value = #digits <= 16 and tonumber(digits) or 2 ^ 53
  corrupt = corrupt or value > (most or 2 ^ 53 - 1)
  return value
end

local stored = redis.call('GET', KEYS[1])
local m = { generation = 0, state = 'closed', till = 0, passed = 0, trips = 0, streak = 0 }
local probes, reporters, buckets = {}, {}, {}
if stored then
  local _, at, generation, state, till, passed, trips, streak =
    string.find(stored, '^(%d+) ([%l-]+) (%d+) (%d+) (%d+) (%d+)')
  if not at or not (state == 'closed' or state == 'open' or state == 'half-open' or state == 'isolated') then
    return redis.error_reply('Corrupt what lies under the key is not the state of a circuit breaker')
  end
  m.generation, m.state, m.till = int(generation), state, int(till)
  m.passed, m.trips, m.streak = int(passed, MOST), int(trips, MOST), int(streak, MOST)
  while at < #stored do
    local _, to, id, expires = string.find(stored, '^ P (%d+) (%d+)', at + 1)
    if not to then break end
    at = to
    table.insert(probes, { id = int(id), expires = int(expires) })
  end
  while at < #stored do
    local _, to, id, serial, in_streak = string.find(stored, '^ R (%d+) (%d+) ([01])', at + 1)
    if not to then break end
    at = to
    table.insert(reporters, { id = int(id), serial = int(serial), in_streak = in_streak == '1' })
  end
  while at < #stored do
    local _, to, serial, calls, failures, slow = string.find(stored, '^ B (%d+) (%d+) (%d+) (%d+)', at + 1)
    if not to then break end
    at = to
    table.insert(buckets,
      { serial = int(serial), calls = int(calls, MOST), failures = int(failures, MOST), slow = int(slow, MOST) })
  end
  if at < #stored or corrupt or #probes > 64 or #reporters > 16 or #buckets > TENTHS + 1 then
    return redis.error_reply('Corrupt what lies under the key is not the state of a circuit breaker')
  end
end

local function whole(number) return string.format('%.0f', number) end

local function text()
  local parts = { whole(m.generation), m.state, whole(m.till), whole(m.passed), whole(m.trips), whole(m.streak) }
  for _, p in ipairs(probes) do
    table.insert(parts, 'P ' .. whole(p.id) .. ' ' .. whole(p.expires))
  end
  for _, r in ipairs(reporters) do
    table.insert(parts, 'R ' .. whole(r.id) .. ' ' .. whole(r.serial) .. ' ' .. (r.in_streak and '1' or '0'))
  end
  for _, b in ipairs(buckets) do
    table.insert(parts, string.format('B %.0f %.0f %.0f %.0f', b.serial, b.calls, b.failures, b.slow))
  end
  return table.concat(parts, ' ')
end

if command == 'show' then
  return whole(now) .. ' ' .. text()
end

local function keep(list, is_kept)
  local kept = {}
  for _, one in ipairs(list) do
    if is_kept(one) then table.insert(kept, one) end
  end
  return kept
end

local function wait_now()
  local term = wait
  for _ = 2, m.trips do
    if term >= longest then break end
    term = term * 2
  end
  return math.min(term, longest)
end

local function turn(state)
  m.generation, m.state = math.max(now, m.generation + 1), state
  m.till, m.passed, m.streak = 0, 0, 0
  probes, reporters, buckets = {}, {}, {}
  if state == 'closed' then m.trips = 0 end
end

local function open()
  m.trips = math.min(m.trips + 1, MOST)
  turn('open')
  m.till = now + wait_now()
end

local function has_room()
  return #probes + m.passed < most_probes
end

local function remove_probe(id)
  for i, p in ipairs(probes) do
    if p.id == id then
      table.remove(probes, i)
      return true
    end
  end
  return false
end

-- Time has passed, or stepped back.
if m.state == 'open' then
  m.till = math.min(m.till, now + wait_now())
elseif m.state == 'half-open' then
  m.passed = math.min(m.passed, most_probes - 1)
  for _, p in ipairs(probes) do p.expires = math.min(p.expires, now + lease) end
  probes = keep(probes, function(p) return p.expires > now end)
end

local function slide()
  local newest = buckets[#buckets] or { serial = 0, calls = 0 }
  local serial = 0
  if window > 0 then
    local tenth = math.floor((window + TENTHS - 1) / TENTHS)
    serial = newest.serial + (newest.calls >= tenth and 1 or 0)
  elseif width > 0 then
    serial = math.floor(now / width)
    if newest.serial - serial > TENTHS then
      buckets, reporters = {}, {}
    else
      serial = math.max(serial, newest.serial)
    end
  end
  return serial
end

local function held()
  local calls, failures, slow = 0, 0, 0
  for _, b in ipairs(buckets) do
    calls, failures, slow = calls + b.calls, failures + b.failures, slow + b.slow
  end
  return calls, failures, slow
end

local function forget(serial)
  if window > 0 then
    local calls = held()
    while buckets[1] do
      calls = calls - buckets[1].calls
      if calls < window then break end
      table.remove(buckets, 1)
    end
  else
    buckets = keep(buckets, function(b) return b.serial >= serial - TENTHS and b.serial <= serial end)
  end
  while #buckets > TENTHS + 1 do table.remove(buckets, 1) end
  local kept = math.max(TENTHS, needed)
  reporters = keep(reporters, function(r) return r.serial >= serial - kept end)
end

local function count(reporter, calls, failures, slow, streak)
  local serial = slide()
  if width > 0 or window > 0 then
    local newest = buckets[#buckets]
    if not newest or newest.serial ~= serial then
      newest = { serial = serial, calls = 0, failures = 0, slow = 0 }
      table.insert(buckets, newest)
    end
    newest.calls = math.min(newest.calls + calls, MOST)
    newest.failures = math.min(newest.failures + failures, MOST)
    newest.slow = math.min(newest.slow + slow, MOST)
  end
  if calls > failures then
    m.streak = 0
    for _, r in ipairs(reporters) do r.in_streak = false end
  end
  m.streak = math.min(m.streak + streak, MOST)
  if needed > 1 and (failures > 0 or slow > 0) then
    reporters = keep(reporters, function(r) return r.id ~= reporter end)
    table.insert(reporters, { id = reporter, serial = serial, in_streak = streak > 0 })
    while #reporters > needed do table.remove(reporters, 1) end
  end
  forget(serial)
end

local function is_bad()
  local function enough(number) return needed <= 1 or number >= needed end
  local in_streak = #keep(reporters, function(r) return r.in_streak end)
  if threshold > 0 and m.streak >= threshold and enough(in_streak) then return true end
  if (width == 0 and window == 0) or not enough(#reporters) then return false end
  local calls, failures, slow = held()
  return calls >= minimum and ((failure_rate > 0 and failures * 10000 >= failure_rate * calls)
    or (slow_rate > 0 and slow * 10000 >= slow_rate * calls))
end

local function acquire(id)
  if m.state == 'open' and m.till <= now then turn('half-open') end
  if m.state == 'closed' then return 'pass' end
  if m.state ~= 'half-open' then return 'refuse' end
  for _, p in ipairs(probes) do
    if p.id == id then return 'probe' end
  end
  if not has_room() then return 'refuse' end
  table.insert(probes, { id = id, expires = now + lease })
  return 'probe'
end

local function report(generation, probe, reporter, calls, failures, slow, streak)
  if generation ~= m.generation or calls == 0 then return 'late' end
  if m.state == 'closed' then
    count(reporter, calls, failures, slow, streak)
    if is_bad() then open() end
    return 'done'
  end
  if m.state ~= 'half-open' or not remove_probe(probe) then return 'late' end
  if failures > 0 or (slow_rate > 0 and slow > 0) then
    open()
  else
    m.passed = m.passed + 1
    if m.passed >= most_probes then turn('closed') end
  end
  return 'done'
end

local said = 'done'
if command == 'acquire' then
  said = acquire(arg(13))
elseif command == 'report' then
  said = report(arg(13), arg(14), arg(15), arg(16), arg(17), arg(18), arg(19))
elseif command == 'release' then
  said = remove_probe(arg(13)) and 'done' or 'late'
elseif command == 'open' then
  if m.state ~= 'isolated' then open() end
elseif command == 'isolate' then
  if m.state ~= 'isolated' then turn('isolated') end
elseif command == 'reset' or m.state ~= 'closed' then
  turn('closed')
end

local left = 0
if m.state == 'open' then
  left = math.max(m.till - now, 0)
elseif m.state == 'half-open' and not has_room() then
  local first
  for _, p in ipairs(probes) do first = math.min(first or p.expires, p.expires) end
  left = math.max((first or now) - now, 0)
end

local value = text()
if value ~= (stored or '0 closed 0 0 0 0') then
  if m.state == 'isolated' then
    redis.call('SET', KEYS[1], value)
  else
    redis.call('SET', KEYS[1], value, 'PX', whole(math.ceil((REMEMBERED + left) / 1000)))
  end
end
return said .. ' ' .. whole(m.generation) .. ' ' .. m.state .. ' ' .. whole(left)
