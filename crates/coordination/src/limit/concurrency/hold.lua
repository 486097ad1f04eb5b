
-- The transition of hold.rs. ARGV: LIMIT ID SEQ KEEP NEED WANT LENGTH LABEL.
local limit, id, seq, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local need, want, length, label = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local MAX_LEASES, FIELDS = 1000, {'id', 'seq', 'held', 'want', 'expires', 'limit', 'since'}

local time = redis.call('TIME')
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), 0)

-- Those that go on, and what the others hold.
local leases, others, own = {}, 0, nil

local function parse(state)
  local fields = split(state)
  local each = #FIELDS + 1
  local at, count, all = number(fields[2]), (#fields - 2) / each, 0
  if fields[1] ~= 'concurrency' or not at or count ~= math.floor(count) or count > MAX_LEASES then
    return false
  end
  local back = math.max(at - now, 0)
  if back <= length then
    now, back = math.max(now, at), 0
  end
  for first = 3, #fields, each do
    local lease = {label = fields[first + #FIELDS]}
    if not string.find(lease.label, '^[!-~]+$') then
      return false
    end
    for index, name in ipairs(FIELDS) do
      lease[name] = number(fields[first + index - 1])
      if not lease[name] then
        return false
      end
    end
    all = all + lease.held
    lease.expires = lease.expires - back
    if lease.since > 0 then
      lease.since = math.max(lease.since - back, 1)
    end
    if lease.expires <= now then
      -- It is over.
    elseif lease.id == id and not own then
      own = lease
    else
      leases[#leases + 1] = lease
      others = others + lease.held
    end
  end
  return all < LIMIT
end

local state = redis.call('GET', KEYS[1])
if state and not parse(state) then
  return redis.error_reply('Corrupt what lies under the key is not the state of a concurrency limit')
end

local function comes_before(one, other)
  if one.since ~= other.since then
    return one.since > 0 and (other.since == 0 or one.since < other.since)
  end
  return one.held < other.held
end

local lacking, smallest, longest, next = 0, limit, nil, nil
for _, lease in ipairs(leases) do
  if lease.want > lease.held then
    lacking = lacking + 1
    if not next or comes_before(lease, next) then
      next = lease
    end
  end
  smallest = math.min(smallest, lease.limit)
  if lease.since > 0 then
    longest = math.min(longest or lease.since, lease.since)
  end
end

local function is_behind(since)
  return longest and longest + length <= now and (since == 0 or longest < since)
end

local function cap(since)
  if lacking == 0 then
    return limit
  end
  if is_behind(since) then
    return 0
  end
  local claims = {want}
  for _, lease in ipairs(leases) do
    claims[#claims + 1] = lease.want
  end
  table.sort(claims)
  local left, count = smallest, #claims
  for _, claim in ipairs(claims) do
    local share = math.floor(left / count)
    if claim > share then
      return share == 0 and 0 or math.ceil(left / count)
    end
    left, count = left - claim, count - 1
  end
  return limit
end

local function answer(held, expires, since, asked)
  local free, granted = math.max(limit - others - held, 0), 0
  if need > 0 and held >= asked + need then
    granted = held
  end
  local left, most = math.max(expires - now, 0), math.max(cap(since), granted)
  return string.format('%.0f %.0f %.0f %.0f %.0f', held, left, most, free, next and next.id or 0)
end

if own and own.seq >= seq then
  return answer(own.held, own.expires, own.since, keep)
end
if #leases == MAX_LEASES then
  return redis.error_reply('Overloaded ' .. MAX_LEASES .. ' instances hold permits of this limit, and no more can')
end

local had, since = own and own.held or 0, own and own.since or 0
local free, asked = math.max(limit - others, 0), keep
keep = math.min(keep, math.max(had, free))
local available, most, more = math.max(free - keep, 0), cap(since), 0
local refused = lacking > 0
if need > 0 then
  refused = available < need or keep > 0 and keep + need > most or is_behind(since)
end
if not refused then
  local share = math.min(math.floor(available / (lacking + 2)), math.max(most - keep, 0))
  more = math.min(math.max(want - keep, 0), math.max(share, need))
end

local held, expires = keep + more, math.min(now + length, LIMIT - 1)
if held > 0 or want == 0 then
  since = 0
elseif since == 0 then
  since = math.max(now, 1)
end
local reply = answer(held, expires, since, asked)
if held > 0 or want > 0 then
  leases[#leases + 1] =
    {id = id, seq = seq, held = held, want = want, expires = expires, limit = limit, since = since, label = label}
end
local last = 0
for _, lease in ipairs(leases) do
  last = math.max(last, lease.expires)
end
if #leases == 0 then
  redis.call('DEL', KEYS[1])
else
  local words = {'concurrency', text(now)}
  for _, lease in ipairs(leases) do
    for _, name in ipairs(FIELDS) do
      words[#words + 1] = text(lease[name])
    end
    words[#words + 1] = lease.label
  end
  redis.call('SET', KEYS[1], table.concat(words, ' '), 'PX', text(math.ceil((math.max(last - now, 0) + STAYS) / 1000)))
end
return reply
