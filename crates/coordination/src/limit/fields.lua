
-- States as text: what state.rs does. Numbers are below LIMIT; a state stays for STAYS microseconds after it matters.
local LIMIT, STAYS = 4503599627370496, 60000000

local function text(number)
  return string.format('%.0f', number)
end

local function number(field)
  if field and #field <= 16 and string.find(field, '^%d+$') then
    local value = tonumber(field)
    return value < LIMIT and value or nil
  end
end

local function split(state)
  local fields = {}
  for field in string.gmatch(state .. ' ', '([^ ]*) ') do
    fields[#fields + 1] = field
  end
  return fields
end
