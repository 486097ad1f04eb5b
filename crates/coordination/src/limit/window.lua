-- The sliding window of window.rs and the transition of take.rs. ARGV: SLICE PERMITS CALLERS, and the permits
-- that each caller asks for.
local slice, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local TOUCHED = 17

local time = redis.call('TIME')
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), 0)

local newest, counts, moved = math.floor(now / slice), {}, false
for index = 1, TOUCHED do
  counts[index] = 0
end

local function parse(state)
  local fields = split(state)
  local of, last = number(fields[2]), number(fields[3])
  if fields[1] ~= 'window' or not of or of == 0 or not last or of * last >= LIMIT or #fields ~= 3 + TOUCHED then
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
  if all >= LIMIT then
    return false
  end
  if of ~= slice then
    local begun = of * last
    local ended = begun + of - 1
    moved = of > slice and now < ended
    last = math.floor((moved and math.max(now, begun) or ended) / slice)
    for index = 2, TOUCHED do
      read[index] = 0
    end
    read[1] = all
  end
  local passed = math.min(math.max(newest - last, 0), TOUCHED)
  for index = passed + 1, TOUCHED do
    counts[index] = read[index - passed]
  end
  newest = math.max(newest, last)
  return true
end

-- How long until a slice is forgotten; the newest is 1.
local function leaves(index)
  return math.max((newest + TOUCHED + 1 - index) * slice - now, 0)
end

local function reset()
  for index = 1, TOUCHED do
    if counts[index] > 0 then
      return leaves(index)
    end
  end
  return 0
end

local state = redis.call('GET', KEYS[1])
if state and not parse(state) then
  return redis.error_reply('Corrupt what lies under the key is not the state of a sliding window')
end

local taken = 0
for index = 1, TOUCHED do
  taken = taken + counts[index]
end

local reply, written = {}, moved
for caller = 1, tonumber(ARGV[3]) do
  local permits = tonumber(ARGV[3 + caller])
  local excess, retry = taken + permits - limit, 0
  local allowed = excess <= 0
  if allowed then
    counts[1] = counts[1] + permits
    taken = taken + permits
    written = true
  else
    local freed = 0
    for index = TOUCHED, 1, -1 do
      freed = freed + counts[index]
      if freed >= excess then
        retry = leaves(index)
        break
      end
    end
  end
  for _, value in ipairs({allowed and 1 or 0, math.max(limit - taken, 0), retry, reset()}) do
    reply[#reply + 1] = text(value)
  end
end
if written then
  local words = {'window', text(slice), text(newest)}
  for index = 1, TOUCHED do
    words[#words + 1] = text(counts[index])
  end
  redis.call('SET', KEYS[1], table.concat(words, ' '), 'PX', text(math.ceil((reset() + STAYS) / 1000)))
end
return table.concat(reply, ' ')
