
-- What instances hold on lease.
local MAX_LEASES = 1000
local leases = {}

-- Reads those at the end of a state, from this position on.
local function read_leases(state, position)
  -- What does not change is not written anew: most of the time would go into that.
  local same = not string.find(state, ' 0%d')
  state = state .. ' '
  while position <= #state do
    local from, to, id, seq, held, want, expires =
      string.find(state, '^(%d+) (%d+) (%d+) (%d+) (%d+) ', position)
    if not from or #leases == MAX_LEASES then
      return false
    end
    id, seq, held, want, expires = exact(id), exact(seq), exact(held), exact(want), exact(expires)
    if not (id and seq and held and want and expires) then
      return false
    end
    local words = same and string.sub(state, from, to - 1)
    leases[#leases + 1] = {id = id, seq = seq, held = held, want = want, expires = expires, words = words}
    position = to + 1
  end
  return true
end

local function add_leases(words)
  for _, lease in ipairs(leases) do
    words[#words + 1] = lease.words or string.format('%.0f %.0f %.0f %.0f %.0f',
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
