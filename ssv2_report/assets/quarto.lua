-- What Quarto's pages need besides: no heading skips a level, whatever the outputs among the text begin with.
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
