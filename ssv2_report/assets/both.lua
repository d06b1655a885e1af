-- What both renderers need before all else: no link runs code; in print, tables written as HTML are
-- tables, and their columns fit the page.

-- A link leads to a page, a place or an address; one that would run code keeps its words alone.
local function leads(target)
  local scheme = target:gsub('[%c%s]', ''):lower():match '^([^/?#:]*):'
  return not scheme or scheme == 'http' or scheme == 'https' or scheme == 'mailto'
end

local function link(el)
  if not leads(el.target) then return el.content end
end

local function read(el)
  if el.format ~= 'html' then return nil end
  return el.text:lower():find '<table' and pandoc.read(el.text, 'html').blocks or {}
end

-- Letters of a line of print, and what stands between two columns.
local line, between = 112, 3

-- Columns that do not fit side by side: short ones keep what they need, long ones share the rest by the
-- roots of their lengths, and none is narrower than its longest word.
local function shared(tbl)
  local n, longest, word = #tbl.colspecs, {}, {}
  local function measure(row)
    for i, cell in ipairs(row.cells) do
      local text = pandoc.utils.stringify(cell.contents)
      longest[i] = math.max(longest[i] or 0, utf8.len(text) or #text)
      for part in text:gmatch '%S+' do word[i] = math.max(word[i] or 0, utf8.len(part) or #part) end
    end
  end
  for _, row in ipairs(tbl.head.rows) do measure(row) end
  for _, body in ipairs(tbl.bodies) do for _, row in ipairs(body.body) do measure(row) end end
  local all = n * between
  for i = 1, n do all = all + (longest[i] or 0) end
  if all <= line then return end
  for _, short in ipairs { 22, 0 } do -- a table of short columns alone breaks what can be broken
    local left, roots, wide, fits = line - n * between, 0, {}, true
    local function gives(i) return (longest[i] or 0) > math.max(short, word[i] or 0) end
    for i = 1, n do
      if gives(i) then roots = roots + longest[i] ^ 0.5 else left = left - (longest[i] or 0) end
    end
    for i = 1, n do
      wide[i] = gives(i) and left * longest[i] ^ 0.5 / roots or longest[i] or 0
      fits = fits and wide[i] >= (word[i] or 0)
    end
    if roots > 0 and fits then
      for i, spec in ipairs(tbl.colspecs) do tbl.colspecs[i] = { spec[1], (wide[i] + between) / line } end
      return
    end
  end
end

local function aligned(tbl)
  shared(tbl)
  for i, spec in ipairs(tbl.colspecs) do
    local digits = true
    for _, body in ipairs(tbl.bodies) do
      for _, row in ipairs(body.body) do
        local cell = row.cells[i]
        if cell and pandoc.utils.stringify(cell.contents):match '%a%a%a' then digits = false end
      end
    end
    if spec[1] == 'AlignDefault' then tbl.colspecs[i] = { digits and 'AlignRight' or 'AlignLeft', spec[2] } end
  end
  for _, rows in ipairs { tbl.head.rows, table.unpack(tbl.bodies:map(function(b) return b.body end)) } do
    for _, row in ipairs(rows) do
      for _, cell in ipairs(row.cells) do cell.alignment = 'AlignDefault' end
    end
  end
  return tbl
end

-- Outputs of a cell from one heading to the next, as those of a case, stay on one page: they float, and
-- the text goes on beside them.
local function kept(div)
  if not div.classes:includes 'cell' then return nil end
  local function headed(block)
    return block.t == 'Header' or block.content and type(block.content[1]) == 'userdata' and headed(block.content[1])
  end
  local blocks, open = pandoc.Blocks {}, false
  for _, block in ipairs(div.content) do
    if headed(block) then
      if open then blocks:insert(pandoc.RawBlock('typst', ']')) end
      blocks:insert(pandoc.RawBlock('typst', '#place(auto, float: true, clearance: 2em)['))
      open = true
    end
    blocks:insert(block)
  end
  if not open then return nil end
  blocks:insert(pandoc.RawBlock('typst', ']'))
  div.content = blocks
  return div
end

if not FORMAT:match 'typst' then return { { Link = link } } end
return { { RawBlock = read }, { Div = kept, Table = aligned, Link = link } }
