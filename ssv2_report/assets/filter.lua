-- What Quarto's Markdown adds to pandoc's: cell captions, cross-references, callouts, tab sets, folded code.
local html = FORMAT:match 'html' ~= nil
local names = { fig = 'Figure', tbl = 'Table', sec = 'Section', eq = 'Equation' }
local counts, refs = { fig = 0, tbl = 0, eq = 0, tab = 0 }, {}
local pages, numbered = {}, false
local raw = function(text) return pandoc.RawBlock(html and 'html' or 'typst', text) end

local function kind(id) return (id or ''):match '^(%a+)%-' end

local function number(id)
  local k = kind(id)
  counts[k] = counts[k] + 1
  refs[id] = counts[k]
  return names[k] .. '\u{a0}' .. counts[k]
end

local function captioned(id, caption, blocks)
  local name = pandoc.Str(number(id))
  local label = pandoc.Inlines { html and pandoc.Span(name, { class = 'caption-number' }) or pandoc.Strong(name) }
  if #caption > 0 then label:extend { pandoc.Str ': ' }; label:extend(caption) end
  local attr = pandoc.Attr(id, { kind(id) })
  if not html and kind(id) == 'tbl' then
    for _, block in ipairs(blocks) do
      if block.t == 'Table' then
        block.caption, block.attr = pandoc.Caption { pandoc.Plain(label) }, pandoc.Attr(id)
        return blocks
      end
    end
  end
  return pandoc.Figure(blocks, { pandoc.Plain(label) }, attr)
end

local function read_meta(meta)
  for _, page in ipairs(meta.pages or {}) do pages[pandoc.utils.stringify(page)] = true end
  numbered = meta['section-numbers'] ~= nil
end

local function read_sections(doc)
  pandoc.Blocks(pandoc.utils.make_sections(numbered, nil, doc.blocks)):walk {
    Div = function(div)
      local head = div.content[1]
      if div.classes:includes 'section' and head and head.t == 'Header' then
        local id = div.identifier ~= '' and div.identifier or head.identifier
        refs[id] = head.attributes.number or div.attributes.number or pandoc.utils.stringify(head.content)
      end
    end }
end

local function cell(div)
  local label, caption, shown, code = div.attributes.label or '', pandoc.Inlines {}, pandoc.Blocks {}, pandoc.Blocks {}
  for _, block in ipairs(div.content) do
    if block.t == 'CodeBlock' and block.classes:includes 'cell-code' then
      local summary = block.attributes.fold
      block.attributes.fold = nil
      if html and summary then
        local open = block.attributes.open and ' open' or ''
        block.attributes.open = nil
        code:extend { raw('<details class="code"' .. open .. '><summary>' .. summary .. '</summary>'), block, raw '</details>' }
      else
        code:insert(block)
      end
    elseif block.t == 'Div' and block.classes:includes 'cell-caption' then
      caption = pandoc.utils.blocks_to_inlines(block.content)
    elseif block.t == 'Div' and block.classes:includes 'cell-output' and not html then
      shown:extend(block.content)
    else
      shown:insert(block)
    end
  end
  local k = kind(label)
  if #shown > 0 and (k == 'fig' or k == 'tbl') then
    shown = pandoc.Blocks(captioned(label, caption, shown))
  elseif #caption > 0 then
    shown:insert(pandoc.Div(pandoc.Para(caption), { class = 'caption' }))
  end
  code:extend(shown)
  if not html then return code end
  local id = k ~= 'fig' and k ~= 'tbl' and label or ''
  return pandoc.Div(code, pandoc.Attr(id, { 'cell' }))
end

local function callout(div, type)
  local title, body = div.attributes.title, div.content
  if not title and body[1] and body[1].t == 'Header' then
    title = pandoc.utils.stringify(body[1].content); body:remove(1)
  end
  title = title or (type:sub(1, 1):upper() .. type:sub(2))
  if not html then
    local blocks = pandoc.Blocks { raw('#callout("' .. type .. '")['), pandoc.Para { pandoc.Strong { pandoc.Str(title) } } }
    blocks:extend(body); blocks:insert(raw ']')
    return blocks
  end
  local fold = div.attributes.collapse
  local head, tail = pandoc.Plain { pandoc.Str(title) }, {}
  local blocks = pandoc.Blocks {}
  if fold then
    blocks:extend { raw('<details' .. (fold == 'false' and ' open' or '') .. '><summary class="callout-title">'), head, raw '</summary>' }
    tail = { raw '</details>' }
  else
    blocks:insert(pandoc.Div(head, { class = 'callout-title' }))
  end
  blocks:extend(body); blocks:extend(tail)
  return pandoc.Div(blocks, pandoc.Attr(div.identifier, { 'callout', 'callout-' .. type }, { role = 'note' }))
end

local function tabset(div)
  local level, tabs, blocks = nil, {}, pandoc.Blocks {}
  for _, block in ipairs(div.content) do
    if block.t == 'Header' and (not level or block.level == level) then
      level = block.level
      tabs[#tabs + 1] = { title = block.content, body = pandoc.Blocks {} }
    elseif #tabs > 0 then
      tabs[#tabs].body:insert(block)
    end
  end
  if not html then
    for _, tab in ipairs(tabs) do blocks:insert(pandoc.Para { pandoc.Strong(tab.title) }); blocks:extend(tab.body) end
    return blocks
  end
  counts.tab = counts.tab + 1
  local name = 'tabset-' .. counts.tab
  blocks:insert(raw('<div class="tabs" role="tablist" aria-label="Tabs ' .. counts.tab .. '">'))
  for i, tab in ipairs(tabs) do
    local button = pandoc.Inlines { pandoc.RawInline('html', ('<button role="tab" id="%s-%d-tab" aria-controls="%s-%d" aria-selected="%s"%s>')
      :format(name, i, name, i, tostring(i == 1), i == 1 and '' or ' tabindex="-1"')) }
    button:extend(tab.title); button:insert(pandoc.RawInline('html', '</button>'))
    blocks:insert(pandoc.Plain(button))
  end
  blocks:insert(raw '</div>')
  for i, tab in ipairs(tabs) do
    blocks:insert(pandoc.Div(tab.body, pandoc.Attr(name .. '-' .. i, {},
      { { 'aria-labelledby', name .. '-' .. i .. '-tab' }, { 'role', 'tabpanel' } })))  -- in this order each time
  end
  return pandoc.Div(blocks, { class = 'tabset' })
end

local function crossref_div(div)
  local last = div.content[#div.content]
  local caption = pandoc.Inlines {}
  if last and last.t == 'Para' then caption = last.content; div.content:remove() end
  return captioned(div.identifier, caption, div.content)
end

local numbering = {
  traverse = 'topdown',
  Div = function(div)
    if div.classes:includes 'cell' then return cell(div), not div.attributes.label end
    if kind(div.identifier) == 'fig' or kind(div.identifier) == 'tbl' then return crossref_div(div), false end
  end,
  Figure = function(fig)
    local caption = pandoc.utils.blocks_to_inlines(fig.caption.long)
    if kind(fig.identifier) ~= 'fig' then return nil, false end
    return captioned(fig.identifier, caption, fig.content), false
  end,
  Table = function(tbl)
    if kind(tbl.identifier) ~= 'tbl' then return nil, false end
    local id, caption = tbl.identifier, pandoc.utils.blocks_to_inlines(tbl.caption.long)
    tbl.attr, tbl.caption = pandoc.Attr(), pandoc.Caption()
    return captioned(id, caption, pandoc.Blocks { tbl }), false
  end,
  Para = function(para)
    local last, math = para.content[#para.content], para.content[1]
    local id = last and last.t == 'Str' and last.text:match '^{#(eq%-[%w_-]+)}$'
    if not id or math.t ~= 'Math' then return nil end
    number(id)
    local label = '(' .. refs[id] .. ')'
    local row = html and { pandoc.Para { math, pandoc.Space(), pandoc.Str(label) } }
      or { raw '#numbered[', pandoc.Plain { math }, raw('][' .. label .. ']') }
    return pandoc.Div(row, pandoc.Attr(id, { 'equation' })), false
  end,
}

local containers = {
  Div = function(div)
    for _, class in ipairs(div.classes) do
      local type = class:match '^callout%-(%a+)$'
      if type then return callout(div, type) end
    end
    if div.classes:includes 'panel-tabset' then return tabset(div) end
    if div.classes:includes 'source-link' and not html then return {} end
  end,
}

local finish = {
  Header = function(h)
    if html then h.level = h.level + 1; return h end
  end,
  Table = html and function(tbl) return pandoc.Div(tbl, { class = 'scroll' }) end or nil,
  Image = function(img)
    img.caption = pandoc.Inlines(img.attributes['fig-alt'] or pandoc.utils.stringify(img.caption))
    img.attributes['fig-alt'] = nil
    return img
  end,
}

local function crossref(cite)
  local out = pandoc.Inlines {}
  for i, c in ipairs(cite.citations) do
    local id = c.id:sub(1, 1):lower() .. c.id:sub(2)
    if not names[kind(id)] then return nil end
    if i > 1 then out:extend { pandoc.Str ',', pandoc.Space() } end
    if refs[id] then
      local value = tostring(refs[id])
      local text = value
      if kind(id) == 'eq' then text = '(' .. value .. ')' end
      if c.mode ~= 'SuppressAuthor' and value:match '^[%d.]+$' then text = names[kind(id)] .. '\u{a0}' .. text end
      out:insert(pandoc.Link({ pandoc.Str(text) }, '#' .. id, '', { class = 'crossref' }))
    else
      io.stderr:write('no figure, table, section or equation is labelled @' .. id .. '\n')
      out:insert(pandoc.Strong { pandoc.Str('?@' .. id) })
    end
  end
  return out
end

local function link(el)
  local stem, rest = el.target:match '^([%w_.-]+)%.ipynb(#?.*)$'
  if stem and pages[stem] then el.target = stem .. '.html' .. rest end
  if html then return el end
  if el.target:match '^#' then return refs[el.target:sub(2)] and el or el.content end
  return el.target:match '^%a+:' and el or el.content
end

local function cites(doc)
  local found = false
  local function look(cite) found = found or not names[kind(cite.citations[1].id:lower())] end
  doc:walk { Cite = look }
  if doc.meta.abstract then pandoc.Pandoc(pandoc.Blocks(doc.meta.abstract)):walk { Cite = look } end
  return found
end

function Pandoc(doc)
  read_meta(doc.meta)
  doc = doc:walk(containers)
  local above = {}
  doc = doc:walk { traverse = 'topdown', Header = function(h)
    while above[1] and above[#above] >= h.level do table.remove(above) end
    table.insert(above, h.level)
    h.level = #above
    return h
  end }
  if cites(doc) then
    local title = pandoc.Header(1, 'References', { id = 'references', class = 'unnumbered' })
    doc.blocks:extend { title, pandoc.Div({}, { id = 'refs' }) }
  end
  read_sections(doc)
  return doc:walk(numbering):walk { Cite = crossref }:walk(finish):walk { Link = link }
end
