"""The page around a report: its style, its script, and how rows are embedded. No text of a user is ever markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--muted:#5b6470;--grid:#e3e6ea;--line:#d5d9df;
--link:#0b62a8;--good:#0a6b48;--good-bg:#dff3ea;--bad:#9c2f00;--bad-bg:#fde8dc;--open:#4d5560;--open-bg:#e9ecf0;
--c0:#0072b2;--c1:#d55e00;--c2:#008f68;--c3:#b8578d;--c4:#b97f00;--c5:#2f97cf;--c6:#7f5aa2;--c7:#70767e}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--card:#1c2026;--ink:#e8eaed;--muted:#a3abb6;--grid:#30363e;
--line:#3a414a;--link:#7cc0f5;--good:#7fdcb4;--good-bg:#173a2d;--bad:#ffb08a;--bad-bg:#46230f;--open:#c3c9d1;
--open-bg:#2c323a;--c0:#4aa8e0;--c1:#f08a45;--c2:#2fc79a;--c3:#e39cc3;--c4:#edb53d;--c5:#8acff5;--c6:#b99adb;
--c7:#a7adb5}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
Helvetica,Arial,sans-serif;overflow-wrap:break-word}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:34px}header p{max-width:78ch}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:44px 0 10px}h3{font-size:1rem;margin:0 0 4px}
p{margin:8px 0}a{color:var(--link)}.muted,figcaption{color:var(--muted)}.small,figcaption{font-size:.875rem}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:14px 0 0;font-size:.9rem}
.lead{background:var(--card);border:1px solid var(--line);border-left:5px solid var(--c0);border-radius:8px;
padding:14px 20px;margin:20px 0}.lead p{margin:6px 0;font-size:1.05rem;max-width:85ch}
figure,.card{background:var(--card);border:1px solid var(--line);border-radius:8px;margin:16px 0;padding:16px 18px}
figure .draw{overflow-x:auto}figure svg{display:block;width:100%;height:auto;margin:10px 0 4px}
figcaption{max-width:90ch}
.key{display:flex;flex-wrap:wrap;gap:2px 18px;list-style:none;margin:8px 0 0;padding:0;font-size:.84rem}
.key li{display:inline-flex;align-items:center;gap:6px}
figure .key svg{display:inline-block;width:18px;height:14px;margin:0;flex:none}
.key li.line{margin-right:-14px}details>summary{cursor:pointer;color:var(--link);margin:10px 0}
.checks{list-style:none;margin:0;padding:0}.checks li{display:grid;grid-template-columns:8.6em 1fr;gap:2px 14px;
padding:10px 0;border-top:1px solid var(--grid)}.checks li:first-child{border-top:0}
.checks .found{grid-column:2;color:var(--muted);font-size:.9rem}
.verdict{justify-self:start;align-self:start;font-size:.8rem;font-weight:600;padding:2px 10px;border-radius:99px;
white-space:nowrap}.holds{color:var(--good);background:var(--good-bg)}.does-not-hold{color:var(--bad);background:var(--bad-bg)}
.cannot-tell{color:var(--open);background:var(--open-bg)}
.scroll{overflow-x:auto;margin:0 -4px;padding:0 4px}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:5px 9px;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
td.n,th.n{text-align:right;white-space:nowrap}td .ci{display:block;color:var(--muted);font-size:.78rem}
td.l{min-width:8em;max-width:22em}
thead th{font-weight:600;border-bottom:2px solid var(--line);vertical-align:bottom}
thead th button{font:inherit;font-weight:600;
color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:inherit}
thead th .u{display:block;font-weight:400;color:var(--muted)}
th[aria-sort=ascending] button::after{content:" \\25B2";font-size:.7em}
th[aria-sort=descending] button::after{content:" \\25BC";font-size:.7em}
tbody tr:hover{background:color-mix(in srgb,var(--grid) 45%,transparent)}
.tools{display:flex;flex-wrap:wrap;gap:8px 12px;align-items:end;margin:10px 0}
.tools label{font-size:.8rem;color:var(--muted);display:flex;flex-direction:column;gap:2px;max-width:100%}
.tools label.row{flex-direction:row;align-items:center;gap:6px}
input,select,.tools button{font:inherit;font-size:.88rem;color:var(--ink);
background:var(--page);border:1px solid var(--line);
border-radius:6px;padding:5px 8px;max-width:17em}.tools button{cursor:pointer}.tools button:disabled{opacity:.45}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:0}dt{color:var(--muted)}dd{margin:0}
footer{padding-top:26px;padding-bottom:40px}:focus-visible{outline:2px solid var(--link);outline-offset:2px}
@media (max-width:640px){main,header,footer{padding:0 12px}header{padding-top:22px}.checks li{grid-template-columns:1fr}
.checks .found{grid-column:1}dl{grid-template-columns:1fr}dd{margin-bottom:8px}figure,.card{padding:12px}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--muted:#444;--grid:#ddd;--line:#bbb}body{font-size:11px}
nav,.tools,details>summary{display:none}figure,.checks li,tr{break-inside:avoid}.scroll{overflow:visible}}
"""

SCRIPT = """
"use strict";
(function(){
function el(tag,cls,text){const e=document.createElement(tag);if(cls)e.className=cls;
  if(text!==undefined)e.textContent=text;return e}
function order(a,b){if(a===null||a===undefined)return b===null||b===undefined?0:2;if(b===null||b===undefined)return -2;
  if(typeof a==="number"&&typeof b==="number")return a<b?-1:a>b?1:0;
  return String(a).localeCompare(String(b),"en",{numeric:true})}
function by(get,down){return function(p,q){const c=order(get(p),get(q));
  return Math.abs(c)===2?c:(down?-c:c)||p-q}}
function mark(row,th,down){for(const h of row.cells)h.removeAttribute("aria-sort");
  th.setAttribute("aria-sort",down?"descending":"ascending")}

for(const table of document.querySelectorAll("table.static")){
  const head=table.tHead.rows[0],body=table.tBodies[0],rows=Array.from(body.rows);
  Array.from(head.cells).forEach(function(th,k){
    th.querySelector("button").addEventListener("click",function(){
      const down=th.getAttribute("aria-sort")==="ascending"||
        (th.classList.contains("n")&&!th.hasAttribute("aria-sort"));
      const get=function(i){const v=rows[i].cells[k].dataset.v;if(v===undefined)return rows[i].cells[k].textContent;
        return v===""?null:Number(v)};
      mark(head,th,down);
      const ids=rows.map(function(_,i){return i}).sort(by(get,down));
      for(const i of ids)body.appendChild(rows[i]);
    })})}

const data=JSON.parse(document.getElementById("data").textContent);
function big(box,spec){
  const size=50,columns=spec.columns,state={page:0,sort:null,down:false,q:"",pick:{},all:false};
  const at=function(c,i){const v=c.data[i];return c.dict&&v!==null?c.dict[v]:v};
  let found=[];
  const tools=el("div","tools"),info=el("span","small muted");
  const scroll=el("div","scroll"),table=el("table"),foot=el("div","tools");
  const search=el("input");search.type="search";search.placeholder="words in any column";
  const wrap=function(text,control,row){const l=el("label",row?"row":"",row?undefined:text);
    if(row){l.append(control,text)}else l.append(control);return l};
  tools.append(wrap("search",search));
  const picks={};
  for(const c of columns)if(c.pick){const s=el("select");s.append(new Option("all",""));
    for(const v of c.dict.slice().sort(function(a,b){return order(a,b)}))s.append(new Option(String(v),String(v)));
    s.addEventListener("change",function(){state.pick[c.name]=s.value;state.page=0;filter()});
    picks[c.name]=s;tools.append(wrap(c.name.replace(/_/g," "),s))}
  const wide=el("input");wide.type="checkbox";tools.append(wrap("all columns",wide,true));
  const save=el("button","","Save these rows as CSV");save.type="button";
  const prev=el("button","","Previous"),next=el("button","","Next");prev.type=next.type="button";
  foot.append(prev,next,info,save);scroll.append(table);box.append(tools,scroll,foot);
  function shown(){return columns.filter(function(c){return state.all||c.shown})}
  function filter(){
    const words=state.q.toLowerCase().split(/\\s+/).filter(Boolean),ids=[];
    const want=Object.entries(state.pick).filter(function(e){return e[1]!==""}).map(function(e){
      return [columns.find(function(c){return c.name===e[0]}),e[1]]});
    outer:for(let i=0;i<spec.rows;i++){
      for(const w of want)if(String(at(w[0],i))!==w[1])continue outer;
      if(words.length){let text="";for(const c of columns){const v=at(c,i);if(v!==null)text+=" "+v}
        text=text.toLowerCase();for(const w of words)if(!text.includes(w))continue outer}
      ids.push(i)}
    found=ids;sort()}
  function sort(){const c=state.sort;if(c)found.sort(by(function(i){return at(c,i)},state.down));
    else found.sort(function(a,b){return a-b});draw()}
  function text(v){if(v===null)return "\\u2013";if(typeof v!=="number")return String(v);
    if(Number.isInteger(v))return v.toLocaleString("en-US");
    const a=Math.abs(v);return a>=1e-4&&a<1e7?String(Number(v.toPrecision(6))):v.toExponential(4)}
  function draw(){
    const cols=shown(),head=el("tr"),body=el("tbody");
    for(const c of cols){const th=el("th",c.number?"n":""),b=el("button","",c.name.replace(/_/g," "));b.type="button";
      th.title=c.meaning;if(c.unit)b.append(el("span","u",c.unit));
      if(state.sort===c)th.setAttribute("aria-sort",state.down?"descending":"ascending");
      b.addEventListener("click",function(){if(state.sort===c){if(state.down===!!c.number){state.down=!state.down}
        else{state.sort=null}}else{state.sort=c;state.down=!!c.number}state.page=0;state.sort?sort():filter()});
      th.append(b);head.append(th)}
    const pages=Math.max(1,Math.ceil(found.length/size));state.page=Math.min(state.page,pages-1);
    for(const i of found.slice(state.page*size,state.page*size+size)){const tr=el("tr");
      for(const c of cols){const v=at(c,i),td=el("td",c.number?"n":"",text(v));
        if(typeof v==="number"&&!Number.isInteger(v))td.title=String(v);tr.append(td)}
      body.append(tr)}
    const top=el("thead");top.append(head);table.replaceChildren(top,body);
    prev.disabled=state.page===0;next.disabled=state.page>=pages-1;
    info.textContent=found.length.toLocaleString("en-US")+" of "+spec.rows.toLocaleString("en-US")+" rows, page "+
      (state.page+1)+" of "+pages}
  function csv(){const quote=function(v){if(v===null)return "";let s=String(v);
      if(typeof v==="string"&&/^[=+\\-@\\t\\r]/.test(s))s="'"+s;
      return /[",\\r\\n]/.test(s)?'"'+s.replace(/"/g,'""')+'"':s};
    const lines=[columns.map(function(c){return c.name}).join(",")];
    for(const i of found)lines.push(columns.map(function(c){return quote(at(c,i))}).join(","));
    const a=el("a");a.href=URL.createObjectURL(new Blob([lines.join("\\n")+"\\n"],{type:"text/csv"}));
    a.download=spec.id+".csv";a.click();setTimeout(function(){URL.revokeObjectURL(a.href)},1000)}
  search.addEventListener("input",function(){state.q=search.value;state.page=0;filter()});
  wide.addEventListener("change",function(){state.all=wide.checked;draw()});
  prev.addEventListener("click",function(){state.page--;draw()});
  next.addEventListener("click",function(){state.page++;draw()});
  save.addEventListener("click",csv);
  function fromAddress(){
    const parts=location.hash.slice(1).split("?");if(parts[0]!==spec.id){if(!table.tHead)filter();return}
    const want=new URLSearchParams(parts[1]||"");state.pick={};state.page=0;
    state.q=search.value=want.get("search")||"";
    for(const k in picks){picks[k].value=want.get(k)||"";if(picks[k].selectedIndex<0)picks[k].value="";
      state.pick[k]=picks[k].value}
    const s=want.get("sort");state.sort=null;
    if(s){state.down=s[0]==="-";state.sort=columns.find(function(c){return c.name===s.replace(/^-/,"")})||null}
    filter();box.scrollIntoView()}
  addEventListener("hashchange",fromAddress);fromAddress()}
for(const spec of data)big(document.getElementById(spec.id),spec);
})();
"""


def text(value: object) -> str:
    """Any text, made inert: markup escaped, characters that do not print replaced.

    >>> text("<b>\\x00")
    '&lt;b&gt;�'
    """
    return html.escape("".join(c if c.isprintable() else "�" for c in str(value)), quote=True)


def json_block(value: object) -> str:
    """JSON that is safe inside a script element: no `<`, `>`, `&` or line separator is left bare.

    >>> json_block("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    out = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return out.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def embedded(
    table: pl.DataFrame,
    name: str,
    *,
    facts: dict[str, tuple[str, str]],
    shown: Sequence[str],
    picks: Sequence[str],
) -> dict[str, object]:
    """A table as the page's script reads it: column by column, repeated values by number.

    Args:
        table: any frame of strings, numbers and booleans.
        name: id of the element that shows it.
        facts: unit and meaning of each column.
        shown: columns shown at first.
        picks: text columns that get a list to choose from.
    """
    import polars as pl

    columns = []
    for column in table.columns:
        series = table[column]
        values = [_plain(v) for v in series.to_list()]
        unit, meaning = facts.get(column, ("", ""))
        entry: dict[str, object] = {"name": column, "unit": unit, "meaning": meaning, "shown": column in shown}
        entry["number"] = series.dtype.is_numeric()
        distinct = list(dict.fromkeys(v for v in values if v is not None))
        as_dict = column in picks or series.dtype == pl.String or len(distinct) * 4 < len(values)
        if as_dict:
            index = {v: i for i, v in enumerate(distinct)}
            entry |= {"dict": distinct, "data": [None if v is None else index[v] for v in values]}
        else:
            entry |= {"dict": None, "data": values}
        entry["pick"] = column in picks and 1 < len(distinct) <= 500
        columns.append(entry)
    return {"id": name, "rows": table.height, "columns": columns}


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "�" for c in value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value == int(value) and abs(value) < 2**53 else value
    return value


#: A cell of a static table: what is shown, a second line, and the number that it sorts by (None for text).
Cell = tuple[str, str, float | None, bool]


def label(value: object) -> Cell:
    """A cell of text."""
    return (str(value), "", None, False)


def figure_cell(shown: str, value: float | None, note: str = "") -> Cell:
    """A cell that holds a number."""
    return (shown, note, value, True)


def static_table(head: Iterable[tuple[str, str]], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that is readable without the script, and sortable with it.

    Args:
        head: name and unit of each column.
        rows: their cells.
    """
    numeric = [bool(rows) and rows[0][k][3] for k in range(len(rows[0]))] if rows else []
    heads = "".join(
        f'<th scope="col" class="{"n" if k < len(numeric) and numeric[k] else "l"}"><button type="button">{text(name)}'
        f"{f'<span class=u>{text(unit)}</span>' if unit else ''}</button></th>"
        for k, (name, unit) in enumerate(head)
    )
    body = "".join(f"<tr>{''.join(_cell(c) for c in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="static"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: Cell) -> str:
    shown, note, value, is_number = cell
    extra = f'<span class="ci">{text(note)}</span>' if note else ""
    if not is_number:
        return f'<td class="l">{text(shown)}{extra}</td>'
    return f'<td class="n" data-v="{"" if value is None else repr(float(value))}">{text(shown)}{extra}</td>'


_SHAPES = {
    "circle": '<circle cx="9" cy="7" r="5"/>',
    "square": '<path d="M4.5 2.5h9v9h-9z"/>',
    "diamond": '<path d="M9 1l5 6-5 6-5-6z"/>',
    "triangle-up": '<path d="M9 1.5l5.5 10.5h-11z"/>',
    "triangle-down": '<path d="M9 12.5l5.5-10.5h-11z"/>',
    "triangle-right": '<path d="M14 7l-10 5.5v-11z"/>',
    "triangle-left": '<path d="M4 7l10 5.5v-11z"/>',
    "cross": '<path d="M7.2 1.5h3.6v3.7h3.7v3.6h-3.7v3.7h-3.6v-3.7h-3.7v-3.6h3.7z"/>',
    "solid": '<path d="M0 7h18"/>',
    "dashed": '<path d="M0 7h18" stroke-dasharray="6 3"/>',
    "dotted": '<path d="M0 7h18" stroke-dasharray="1.5 3"/>',
}


def key_list(items: Iterable[tuple[str, str, str, bool]]) -> str:
    """The key of a figure: (label, CSS colour, shape, hollow) each. An unlabelled line belongs to the next item."""
    out = []
    for name, colour, shape, hollow in items:
        fill = "none" if hollow or shape in ("solid", "dashed", "dotted") else colour
        drawing = f'<svg viewBox="0 0 18 14" aria-hidden="true" fill="{fill}" stroke="{colour}" stroke-width="1.6">'
        out.append(f"<li{'' if name else ' class=line'}>{drawing}{_SHAPES[shape]}</svg>{text(name)}</li>")
    return f'<ul class="key">{"".join(out)}</ul>' if out else ""


def page(title: str, body: str, data: str) -> str:
    """The whole file. Its policy lets nothing load, and no script run but the one that is written here."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    policy += "; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{data}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )
