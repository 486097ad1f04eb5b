
-- What a bucket is, with all that instances lease from it.
local level, at = capacity, now

local function parse(state)
  local fields, after = split(state, 4)
  local of = number(fields[2])
  level, at = number(fields[3]), number(fields[4])
  if fields[1] ~= 'bucket' or not of or of == 0 or not level or not at or not read_leases(state, after) then
    return false
  end
  if of ~= unit then
    local whole = math.floor(level / of)
    local part = math.max(math.floor((level - whole * of) / of * unit) - 1, 0)
    level = whole >= burst and capacity or whole * unit + part
  end
  return true
end

local function room()
  return math.max(burst - leased(), 0)
end

local function flow_until(later)
  local most = room() * unit
  level = math.min(level, most)
  if later - at >= math.ceil((most - level) / flow) then
    level = most
  else
    level = level + (later - at) * flow
  end
  at = later
end

local function refill()
  local later, ended, live = math.max(now, at), nil, {}
  for _, lease in ipairs(leases) do
    if lease.expires > later then
      live[#live + 1] = lease
    else
      ended = math.max(ended or 0, lease.expires)
    end
  end
  if ended then
    flow_until(math.max(ended, at))
    leases = live
  end
  flow_until(later)
end

local function wait(units)
  return at - math.min(now, at) + math.ceil(math.max(units - level, 0) / flow)
end

local function retry_after(permits)
  local last, micros = last_lease(), wait(permits * unit)
  return last == 0 and micros or math.min(micros, last - at)
end

local function reset()
  return math.min(math.max(last_lease() - math.max(now, at), 0) + wait(capacity), LIMIT)
end

-- Whether so many were taken, how many remain, and when to ask again.
local function take(permits)
  local need = permits * unit
  if need <= level then
    level = level - need
    return true, math.floor(level / unit), 0
  end
  local retry = retry_after(permits)
  if permits > room() then
    retry = math.max(retry, last_lease() - at)
  end
  return false, math.floor(level / unit), retry
end

-- Takes back so many of an instance that keeps so many. Returns how many there are to lend.
local function settle(keep, back)
  level = math.min(level + math.min(back, burst) * unit, math.max(room() - keep, 0) * unit)
  return math.floor(level / unit)
end

local function lend(permits)
  level = level - permits * unit
end

local function store()
  local words = {'bucket', text(unit), text(level), text(at)}
  add_leases(words)
  redis.call('SET', KEYS[1], table.concat(words, ' '), 'PX', text(math.ceil((reset() + STAYS) / 1000)))
end

local moved = false
if state then
  if not parse(state) then
    return redis.error_reply('Corrupt what lies under the key is not the state of a token bucket')
  end
  refill()
end
