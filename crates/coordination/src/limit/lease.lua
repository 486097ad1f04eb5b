
-- The transition of lease.rs. ARGV adds ID SEQ KEEP BACK NEED WANT LENGTH.
local id, seq = tonumber(ARGV[CONFIG + 1]), tonumber(ARGV[CONFIG + 2])
local keep, back = tonumber(ARGV[CONFIG + 3]), tonumber(ARGV[CONFIG + 4])
local need, want, length = tonumber(ARGV[CONFIG + 5]), tonumber(ARGV[CONFIG + 6]), tonumber(ARGV[CONFIG + 7])

local function answer(held, expires)
  local retry = 0
  if held < need then
    retry = math.max(retry_after(need), 1)
  end
  return text(held) .. ' ' .. text(math.max(expires - at, 0)) .. ' ' .. text(retry)
end

local held = 0
for index, lease in ipairs(leases) do
  if lease.id == id then
    table.remove(leases, index)
    if lease.seq >= seq then
      return answer(lease.held, lease.expires)
    end
    held = lease.held
    break
  end
end
if #leases == MAX_LEASES then
  return redis.error_reply('Overloaded ' .. MAX_LEASES .. ' instances lease from this limiter, and no more can')
end

keep = math.min(keep, held)
back = math.min(back, held - keep)
local available, lacking, grant = settle(keep, back, held - keep - back), math.max(need - keep, 0), 0
if available >= lacking then
  local others = 0
  for _, lease in ipairs(leases) do
    if lease.want > 0 then
      others = others + 1
    end
  end
  local share = math.floor(available / (others + 2))
  grant = math.min(math.max(want, need, keep) - keep, math.max(share, lacking))
end

lend(grant)
held = keep + grant
local expires = math.min(at + length, LIMIT - 1)
local reply = answer(held, expires)
if held > 0 or want > 0 then
  leases[#leases + 1] = {id = id, seq = seq, held = held, want = want, expires = expires}
end
store()
return reply
