
-- The sliding window of window.rs, with all that instances lease from it. ARGV: SLICE PERMITS, and what the command adds.
local CONFIG = 2
local slice, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local TOUCHED = 17

local time = redis.call('TIME')
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), 0)

local newest, counts, moved = math.floor(now / slice), {}, false
for index = 1, TOUCHED do
  counts[index] = 0
end

local function parse(state)
  local fields, after = split(state, 3 + TOUCHED)
  local of, last = number(fields[2]), number(fields[3])
  if fields[1] ~= 'window' or not of or of == 0 or not last or of * last >= LIMIT then
    return false
  end
  local all, read = 0, {}
  for index = 1, TOUCHED do
    read[index] = number(fields[3 + index])
    if not read[index] then
      return false
    end
    all = all + read[index]
  end
  if not read_leases(state, after) or all + leased() >= LIMIT then
    return false
  end
  if of ~= slice then
    local begun = of * last
    local ended = begun + of - 1
    moved = of > slice and now < ended
    local latest, cut = moved and math.max(now, begun) or ended, {}
    for index = 1, TOUCHED do
      cut[index] = 0
    end
    for ago = 0, math.min(TOUCHED - 1, last) do
      local taken_at = ago == 0 and latest or (last - ago + 1) * of - 1
      local index = math.floor(latest / slice) - math.floor(taken_at / slice) + 1
      if index <= TOUCHED then
        cut[index] = cut[index] + read[ago + 1]
      end
    end
    last, read = math.floor(latest / slice), cut
  end
  local passed = math.min(math.max(newest - last, 0), TOUCHED)
  for index = passed + 1, TOUCHED do
    counts[index] = read[index - passed]
  end
  newest = math.max(newest, last)
  return true
end

local state = redis.call('GET', KEYS[1])
if state and not parse(state) then
  return redis.error_reply('Corrupt what lies under the key is not the state of a sliding window')
end

local at, live = math.max(now, newest * slice), {}
for _, lease in ipairs(leases) do
  local index = newest - math.floor(lease.expires / slice) + 1
  if lease.expires > at then
    live[#live + 1] = lease
  elseif index <= TOUCHED then
    counts[index] = counts[index] + lease.held
  end
end
leases = live

local taken = 0
for index = 1, TOUCHED do
  taken = taken + counts[index]
end

-- How long until a slice is forgotten; the newest is 1.
local function leaves(index)
  return math.max((newest + TOUCHED + 1 - index) * slice - now, 0)
end

local function retry_after(permits)
  local excess, left, freed = taken + leased() + permits - limit, math.max(last_lease() - at, 0), 0
  for index = TOUCHED, 1, -1 do
    freed = freed + counts[index]
    if freed >= excess then
      return left > 0 and math.min(leaves(index), left) or leaves(index)
    end
  end
  return left
end

local function reset()
  local last, micros = last_lease(), 0
  for index = TOUCHED, 1, -1 do
    if counts[index] > 0 then
      micros = leaves(index)
    end
  end
  if last > 0 then
    micros = math.max(micros, (math.floor(last / slice) + TOUCHED) * slice - now)
  end
  return micros
end

local function add(permits)
  counts[1] = counts[1] + permits
  taken = taken + permits
end

-- Whether so many were taken, how many remain, and when to ask again.
local function take(permits)
  local free = math.max(limit - taken - leased(), 0)
  if permits > free then
    return false, free, retry_after(permits)
  end
  add(permits)
  return true, free - permits, 0
end

-- Counts what an instance has spent that keeps so many. Returns how many there are to lend.
local function settle(keep, _, spent)
  add(spent)
  return math.max(limit - taken - leased() - keep, 0)
end

-- What is held on lease is not free.
local function lend() end

local function store()
  local words = {'window', text(slice), text(newest)}
  for index = 1, TOUCHED do
    words[#words + 1] = text(counts[index])
  end
  add_leases(words)
  redis.call('SET', KEYS[1], table.concat(words, ' '), 'PX', text(math.ceil((reset() + STAYS) / 1000)))
end
