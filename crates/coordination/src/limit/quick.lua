
-- One caller at a bucket of this rate from which nobody leases, as nearly always: twice as fast as what follows, which
-- does the same.
local of, level_text, at_text = string.match(state or '', '^bucket (%d+) (%d+) (%d+)$')
if of == ARGV[1] and #level_text <= 16 and #at_text <= 16 and ARGV[4] == '1' then
  local level, at = tonumber(level_text), tonumber(at_text)
  if level <= capacity and at <= now then
    if now - at >= math.ceil((capacity - level) / flow) then
      level = capacity
    else
      level = level + (now - at) * flow
    end
    local need = tonumber(ARGV[5]) * unit
    if need > level then
      local retry, reset = math.ceil((need - level) / flow), math.ceil((capacity - level) / flow)
      return string.format('0 %.0f %.0f %.0f', math.floor(level / unit), retry, reset)
    end
    level = level - need
    local reset = math.ceil((capacity - level) / flow)
    local text = string.format('bucket %s %.0f %.0f', of, level, now)
    redis.call('SET', KEYS[1], text, 'PX', string.format('%.0f', math.ceil((reset + 60000000) / 1000)))
    return string.format('1 %.0f 0 %.0f', math.floor(level / unit), reset)
  end
end
