
-- What a bucket is, with all that instances lease from it.
local MAX_LEASES = 1000

local level, at, leases = capacity, now, {}

local function parse(state)
  local fields = split(state)
  local of = number(fields[2])
  level, at = number(fields[3]), number(fields[4])
  if fields[1] ~= 'bucket' or not of or of == 0 or not level or not at then
    return false
  end
  local count = (#fields - 4) / 5
  if count ~= math.floor(count) or count > MAX_LEASES then
    return false
  end
  for first = 5, #fields, 5 do
    local id, seq, held = number(fields[first]), number(fields[first + 1]), number(fields[first + 2])
    local want, expires = number(fields[first + 3]), number(fields[first + 4])
    if not id or not seq or not held or not want or not expires then
      return false
    end
    leases[#leases + 1] = {id = id, seq = seq, held = math.min(held, burst), want = want, expires = expires}
  end
  if of ~= unit then
    level = math.min(math.floor(level / of), burst) * unit
  end
  return true
end

local function room()
  local held = 0
  for _, lease in ipairs(leases) do
    held = held + lease.held
  end
  return math.max(burst - held, 0)
end

local function last_lease()
  local last = 0
  for _, lease in ipairs(leases) do
    if lease.held > 0 then
      last = math.max(last, lease.expires)
    end
  end
  return last
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

local function retry_after(units)
  local last = last_lease()
  return last == 0 and wait(units) or math.min(wait(units), last - at)
end

local function reset()
  return math.min(math.max(last_lease() - math.max(now, at), 0) + wait(capacity), LIMIT)
end

local function store()
  local words = {'bucket', text(unit), text(level), text(at)}
  for _, lease in ipairs(leases) do
    for _, field in ipairs({'id', 'seq', 'held', 'want', 'expires'}) do
      words[#words + 1] = text(lease[field])
    end
  end
  redis.call('SET', KEYS[1], table.concat(words, ' '), 'PX', text(math.ceil((reset() + STAYS) / 1000)))
end

if state then
  if not parse(state) then
    return redis.error_reply('Corrupt what lies under the key is not the state of a token bucket')
  end
  refill()
end
