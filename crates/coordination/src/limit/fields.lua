
-- States as text: what state.rs does. Numbers are below LIMIT; a state stays for STAYS microseconds after it matters.
local LIMIT, STAYS = 4503599627370496, 60000000

local function text(number)
  return string.format('%.0f', number)
end

-- The number of these digits.
local function exact(digits)
  local value = #digits <= 16 and tonumber(digits)
  return value and value < LIMIT and value or nil
end

local function number(field)
  return field and string.find(field, '^%d+$') and exact(field) or nil
end

-- The first so many fields, and where what follows begins.
local function split(state, count)
  local fields, after = {}, nil
  for field, position in string.gmatch(state .. ' ', '([^ ]*) ()') do
    fields[#fields + 1], after = field, position
    if #fields == count then
      break
    end
  end
  return fields, after
end
