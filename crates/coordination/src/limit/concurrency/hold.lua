
-- The transition of hold.rs. ARGV: LIMIT ID SEQ KEEP NEED WANT LENGTH WAITS LABEL.
local limit, id, seq, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local need, want, length = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local waits, label = tonumber(ARGV[8]), ARGV[9]
local MAX_LEASES, WISH = 1000, 10000000
local LEASE = '^ (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) ([!-~]+)'

local time = redis.call('TIME')
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), 0)

local function write(...)
  return string.format(' %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s', ...)
end

-- Of those others that go on: their texts and wishes, what they hold, how many lack some and which of those wait, the
-- smallest limit, since when one has had none, and when the last one ends.
local texts, wishes, others, own = {}, {}, 0, nil
local line, lacking, smallest, longest, last = {}, 0, limit, nil, 0

local function parse(state)
  local _, to, at = string.find(state, '^concurrency (%d+)')
  at = at and exact(at)
  if not at then
    return false
  end
  local back = math.max(at - now, 0)
  if back <= length then
    now, back = math.max(now, at), 0
  end
  -- What does not change is not written anew: most of the time would go into that.
  local same = back == 0 and not string.find(state, ' 0%d')
  local count, all = 0, 0
  while to < #state do
    local from, of, n, h, w, e, l, s, first, label = to + 1
    from, to, of, n, h, w, e, l, s, first, label = string.find(state, LEASE, from)
    if not from then
      return false
    end
    of, n, h, w = exact(of), exact(n), exact(h), exact(w)
    e, l, s, first = exact(e), exact(l), exact(s), exact(first)
    if not (of and n and h and w and e and l and s and first) then
      return false
    end
    count, all, e = count + 1, all + h, e - back
    if s > 0 then
      s = math.max(s - back, 1)
    end
    if e <= now then
      -- It is over.
    elseif of == id and not own then
      own = {seq = n, held = h, expires = e, since = s}
    else
      texts[#texts + 1] = same and string.sub(state, from, to) or write(of, n, h, w, e, l, s, first, label)
      wishes[#wishes + 1] = w
      others = others + h
      if w > h then
        lacking = lacking + 1
        if first > 0 then
          line[#line + 1] = {id = of, since = s, held = h, waits = first}
        end
      end
      if l < smallest then
        smallest = l
      end
      if s > 0 and (not longest or s < longest) then
        longest = s
      end
      if e > last then
        last = e
      end
    end
  end
  return count <= MAX_LEASES and all < LIMIT
end

local state = redis.call('GET', KEYS[1])
if state and not parse(state) then
  return redis.error_reply('Corrupt what lies under the key is not the state of a concurrency limit')
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
  local claims = {want, unpack(wishes)}
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

local function comes_before(one, other)
  if one.since ~= other.since then
    return one.since > 0 and (other.since == 0 or one.since < other.since)
  end
  return one.held < other.held
end

-- Of those who wait for no more than these, who comes first.
local function next(free)
  local first = nil
  for _, place in ipairs(line) do
    if place.waits <= free and (not first or comes_before(place, first)) then
      first = place
    end
  end
  return first and first.id or 0
end

local function answer(held, expires, since, asked)
  local free, granted = math.max(limit - others - held, 0), 0
  if need > 0 and held >= asked + need then
    granted = held
  end
  local left, most = math.max(expires - now, 0), math.max(cap(since), granted)
  return string.format('%.0f %.0f %.0f %.0f %.0f', held, left, most, free, next(free))
end

if own and own.seq >= seq then
  return answer(own.held, own.expires, own.since, keep)
end
if #texts == MAX_LEASES then
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

local held = keep + more
local expires = math.min(now + (held == 0 and math.min(length, WISH) or length), LIMIT - 1)
if held > 0 or want == 0 then
  since = 0
elseif since == 0 then
  since = math.max(now, 1)
end
local reply = answer(held, expires, since, asked)
if held > 0 or want > 0 then
  texts[#texts + 1] = write(id, seq, held, want, expires, limit, since, waits, label)
  last = math.max(last, expires)
end
if #texts == 0 then
  redis.call('DEL', KEYS[1])
else
  local ttl = text(math.ceil((math.max(last - now, 0) + STAYS) / 1000))
  redis.call('SET', KEYS[1], 'concurrency ' .. text(now) .. table.concat(texts), 'PX', ttl)
end
return reply
