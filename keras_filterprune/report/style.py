"""How a report looks on screens, light and dark, and on paper; and the script that sorts its tables."""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #d6dbe2; --head: #f2f4f7;
  --kept: #1f6fb2; --gone: #c9d6e4; --loss: 213, 94, 0; --rest: #b3bbc6; }
@media (prefers-color-scheme: dark) { :root { --page: #14181e; --ink: #e4e8ee; --soft: #9aa5b3; --line: #333c48;
  --head: #1f252e; --kept: #5aa9e6; --gone: #36465a; --loss: 240, 140, 60; --rest: #566171; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; max-width: 60rem; }
#part0 p, #part0 td { font-size: 1.1rem; font-weight: 600; }
.hint { color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .9rem; }
a { color: var(--kept); }
.scroll { overflow: auto; max-height: 85vh; margin: .5rem 0; border: 1px solid var(--line); border-radius: 4px;
  width: fit-content; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; width: max-content; font-size: .87rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { max-width: min(22rem, 70vw); background: rgba(var(--loss), calc(.6 * var(--shade, 0))); }
td:first-child { max-width: min(16rem, 45vw); position: sticky; left: 0; background: var(--page); }
tr:last-child td { border-bottom: 0; }
th { position: sticky; top: 0; background: var(--head); vertical-align: bottom; cursor: pointer; font-weight: 600;
  overflow-wrap: normal; z-index: 1; }
th:first-child { left: 0; z-index: 2; }
th:focus-visible { outline: 2px solid var(--kept); outline-offset: -2px; }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
.right { text-align: right; white-space: nowrap; }
th.right { white-space: normal; max-width: 6rem; }
.drawn { min-width: min(18rem, 40vw); }
svg { display: block; }
svg.bar { width: 100%; height: .8rem; margin-top: .2rem; }
.gone { fill: var(--gone); }
.kept { fill: var(--kept); }
/* By the golden angle, neighbours differ and none comes again. */
.tag { display: inline-block; width: .75em; height: .75em; margin-right: .4em; border-radius: 2px;
  background: hsl(calc(210deg + 137.5deg * var(--turn)) 60% 52%); }
figure { margin: .5rem 0; overflow-x: auto; }
svg.curves { width: 100%; min-width: 30rem; max-width: 46rem; height: auto; }
.curves text { fill: var(--soft); font-size: 12px; }
.curves .grid { stroke: var(--line); }
.curves polyline { fill: none; stroke: var(--rest); stroke-width: 1; }
.line0 { --line-colour: #d55e00; --dash: none; } .line1 { --line-colour: #2f8fd0; --dash: 7 3; }
.line2 { --line-colour: #0a9f74; --dash: 2 3; } .line3 { --line-colour: #c5689a; --dash: 9 3 2 3; }
.line4 { --line-colour: #b58900; --dash: 4 2; }
.curves polyline.named { stroke: var(--line-colour); stroke-width: 2; stroke-dasharray: var(--dash); }
.curves polygon { fill: var(--line-colour); opacity: .12; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0; padding: 0; list-style: none; font-size: .87rem; }
.legend svg { display: inline-block; width: 2rem; height: .6rem; margin-right: .35rem; }
.legend line { stroke: var(--line-colour, var(--rest)); stroke-width: 2; stroke-dasharray: var(--dash, none); }
summary { cursor: pointer; }
@media (max-width: 40rem) { table { font-size: .8rem; } #part0 td { font-size: .9rem; }
  #part0 table { width: auto; } th, td { padding: .2rem .4rem; }
  td:first-child { max-width: 32vw; } }
@page { size: landscape; margin: 12mm; }
@media print {
  :root { color-scheme: light; --page: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --head: #eeeeee;
    --kept: #1f6fb2; --gone: #c9d6e4; --loss: 213, 94, 0; --rest: #b3bbc6; }
  * { print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10px; }
  nav, .hint { display: none; }
  .scroll { overflow: visible; max-height: none; width: auto; border: 0; }
  table { width: auto; font-size: 8px; }
  #part0 p, #part0 td { font-size: 11px; }
  th, td { position: static !important; padding: 1px 4px; }
  td:first-child { max-width: none; overflow-wrap: normal; }
  .drawn { min-width: 7rem; }
  tr, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

# Sorts by the number of a cell if it has one, else by its text; paper shows what is folded.
SCRIPT = """
const sort = th => {
  const table = th.closest("table"), column = th.cellIndex;
  const falling = th.getAttribute("aria-sort") !== "descending";
  const key = row => { const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent === "" ? -Infinity : cell.textContent; };
  const order = (a, b) => a === b ? 0 : typeof a === typeof b ? (a < b ? -1 : 1) : typeof a === "number" ? -1 : 1;
  const rows = [...table.tBodies[0].rows].sort((a, b) => (falling ? -1 : 1) * order(key(a), key(b)));
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", falling ? "descending" : "ascending");
  table.tBodies[0].append(...rows);
};
for (const th of document.querySelectorAll("th")) {
  th.onclick = () => sort(th);
  th.onkeydown = event => { if (event.key === "Enter") sort(th); };
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
"""
