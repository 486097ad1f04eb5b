
-- The transition of take.rs. ARGV adds how many callers there are, and the permits that each asks for.
local reply, written = {}, false
for caller = 1, tonumber(ARGV[4]) do
  local permits, retry = tonumber(ARGV[4 + caller]), 0
  local need = permits * unit
  local allowed = need <= level
  if allowed then
    level = level - need
    written = true
  else
    retry = retry_after(need)
    if permits > room() then
      retry = math.max(retry, last_lease() - at)
    end
  end
  for _, value in ipairs({allowed and 1 or 0, math.floor(level / unit), retry, reset()}) do
    reply[#reply + 1] = text(value)
  end
end
if written then
  store()
end
return table.concat(reply, ' ')
