-- What Quarto's pages need besides: a drawing's type is as large as the text around it, and no heading
-- skips a level.

-- In pixels, as `_on_screen` has it for our own pages.
function Image(img)
  local file = FORMAT:match 'html' and img.src:match '%.svg$' and io.open(img.src)
  if not file then return nil end
  local points = file:read(4096):match '<svg[^>]-%swidth="([%d.]+)pt"'
  file:close()
  if points then img.attributes.width = math.floor(96 * 1.45 * points / 72 + 0.5) .. 'px' end
  return img
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
