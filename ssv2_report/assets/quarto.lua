-- What Quarto's pages need besides: no heading skips a level, and no link runs code.
-- A link leads to a page, a place or an address; one that would run code keeps its words alone.
local function leads(target)
  local scheme = target:gsub('[%c%s]', ''):lower():match '^([^/?#:]*):'
  return not scheme or scheme == 'http' or scheme == 'https' or scheme == 'mailto'
end

function Link(el)
  if not leads(el.target) then return el.content end
end

function Pandoc(doc)
  local above, top = {}, nil
  return doc:walk { traverse = 'topdown', Header = function(h)
    top = top or h.level
    while above[1] and above[#above] >= h.level do table.remove(above) end
    table.insert(above, h.level)
    h.level = math.min(h.level, top + #above - 1)
    return h
  end }
end
