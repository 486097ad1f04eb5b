
-- The transition of take.rs. ARGV adds how many callers there are, and the permits that each asks for.
local reply, written = {}, moved
-- None of them changes what is leased: it is added up once.
local held, last = leased(), last_lease()
leased, last_lease = function() return held end, function() return last end
for caller = 1, tonumber(ARGV[CONFIG + 1]) do
  local allowed, remaining, retry = take(tonumber(ARGV[CONFIG + 1 + caller]))
  written = written or allowed
  for _, value in ipairs({allowed and 1 or 0, remaining, retry, reset()}) do
    reply[#reply + 1] = text(value)
  end
end
if written then
  store()
end
return table.concat(reply, ' ')
