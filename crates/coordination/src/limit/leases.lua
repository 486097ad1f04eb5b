
-- What instances hold on lease.
local MAX_LEASES = 1000
local leases = {}

-- Reads those at the end of a state, from this field on.
local function read_leases(fields, start)
  local count = (#fields - start + 1) / 5
  if count ~= math.floor(count) or count > MAX_LEASES then
    return false
  end
  for first = start, #fields, 5 do
    local id, seq, held = number(fields[first]), number(fields[first + 1]), number(fields[first + 2])
    local want, expires = number(fields[first + 3]), number(fields[first + 4])
    if not id or not seq or not held or not want or not expires then
      return false
    end
    leases[#leases + 1] = {id = id, seq = seq, held = held, want = want, expires = expires}
  end
  return true
end

local function add_leases(words)
  for _, lease in ipairs(leases) do
    words[#words + 1] = string.format('%.0f %.0f %.0f %.0f %.0f',
      lease.id, lease.seq, lease.held, lease.want, lease.expires)
  end
end

local function leased()
  local held = 0
  for _, lease in ipairs(leases) do
    held = held + lease.held
  end
  return held
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
