
-- The transition of hold.rs. ARGV: LIMIT ID SEQ KEEP NEED WANT LENGTH.
local limit, id, seq, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local need, want, length = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local time = redis.call('TIME')
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), 0)

local function parse(state)
  local fields = split(state)
  local at = number(fields[2])
  if fields[1] ~= 'concurrency' or not at or not read_leases(fields, 3) or leased() >= LIMIT then
    return false
  end
  local back, live = math.max(at - now, 0), {}
  for _, lease in ipairs(leases) do
    lease.expires = lease.expires - back
    if lease.expires > now then
      live[#live + 1] = lease
    end
  end
  leases = live
  return true
end

local state = redis.call('GET', KEYS[1])
if state and not parse(state) then
  return redis.error_reply('Corrupt what lies under the key is not the state of a concurrency limit')
end

local own
for index, lease in ipairs(leases) do
  if lease.id == id then
    own = table.remove(leases, index)
    break
  end
end

local others, lacking = leased(), 0
for _, lease in ipairs(leases) do
  if lease.want > lease.held then
    lacking = lacking + 1
  end
end

local function cap()
  if lacking == 0 then
    return limit
  end
  local claims = {want}
  for _, lease in ipairs(leases) do
    claims[#claims + 1] = lease.want
  end
  table.sort(claims)
  local left, count = limit, #claims
  for _, claim in ipairs(claims) do
    local share = math.floor(left / count)
    if claim > share then
      return share == 0 and 0 or math.ceil(left / count)
    end
    left, count = left - claim, count - 1
  end
  return limit
end
local most = cap()

local function answer(held, expires, kept)
  local free, granted = math.max(limit - others - held, 0), 0
  if need > 0 and held >= kept + need then
    granted = held
  end
  return string.format('%.0f %.0f %.0f %.0f', held, math.max(expires - now, 0), math.max(most, granted), free)
end

if own and own.seq >= seq then
  return answer(own.held, own.expires, keep)
end
if #leases == MAX_LEASES then
  return redis.error_reply('Overloaded ' .. MAX_LEASES .. ' instances hold permits of this limit, and no more can')
end

local free, asked = math.max(limit - others, 0), keep
keep = math.min(keep, math.max(own and own.held or 0, free))
local available, more = math.max(free - keep, 0), 0
local yields = keep > 0 and keep + need > most
if available >= need and not (need > 0 and yields) then
  local share = math.min(math.floor(available / (lacking + 2)), math.max(most - keep, 0))
  more = math.min(math.max(want - keep, 0), math.max(share, need))
end

local held, expires = keep + more, math.min(now + length, LIMIT - 1)
local reply = answer(held, expires, asked)
if held > 0 or want > 0 then
  leases[#leases + 1] = {id = id, seq = seq, held = held, want = want, expires = expires}
end
local last = 0
for _, lease in ipairs(leases) do
  last = math.max(last, lease.expires)
end
if last == 0 then
  redis.call('DEL', KEYS[1])
else
  local words = {'concurrency', text(now)}
  add_leases(words)
  redis.call('SET', KEYS[1], table.concat(words, ' '), 'PX', text(math.ceil((math.max(last - now, 0) + STAYS) / 1000)))
end
return reply
