"""A report as one HTML file that loads nothing: style, script and drawings are in it."""

from __future__ import annotations

from html import escape

from keras_filterprune.report.document import Bar, Cell, Number, Section, Table, Tag
from keras_filterprune.report.figures import draw_bar, draw_curves
from keras_filterprune.report.style import SCRIPT, STYLE

# Longer tables are folded until they are asked for; drawings are always open.
_LONG = 60
# Nothing is fetched, whatever a name may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(title: str, sections: list[Section]) -> str:
    """The text of a report."""
    links = "".join(f'<a href="#part{n}">{escape(section.title)}</a>' for n, section in enumerate(sections))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>",
            f"<body>\n<h1>{escape(title)}</h1>\n<nav>{links}</nav>",
            "<p class='hint'>A click on the heading of a column sorts.</p>",
            *(_section(number, section) for number, section in enumerate(sections)),
            f"<script>{SCRIPT}</script>\n</body></html>\n",
        ]
    )


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="part{number}"><h2>{escape(section.title)}</h2>']
    parts += [f"<p>{escape(line)}</p>" for line in section.text]
    if section.figure:
        parts.append(draw_curves(section.figure))
    if section.table:
        parts.append(_table(section.table))
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    numeric = [any(isinstance(row[i], Number) for row in table.rows) for i in range(len(table.columns))]
    names = zip(table.columns, numeric, strict=True)
    head = "".join(f'<th{_right(right)} scope="col" tabindex="0">{escape(name)}</th>' for name, right in names)
    body = "\n".join("<tr>" + "".join(map(_cell, row, numeric)) + "</tr>" for row in table.rows)
    text = f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    drawn = any(isinstance(cell, Bar) for row in table.rows for cell in row)
    if len(table.rows) <= _LONG or drawn:
        return text
    return f"<details><summary>{len(table.rows)} rows</summary>{text}</details>"


def _cell(cell: Cell, numeric: bool) -> str:
    if isinstance(cell, Bar):
        return f'<td class="drawn" data-v="{cell.after:.9g}">{draw_bar(cell)}</td>'
    if isinstance(cell, Number):
        shade = f' style="--shade:{cell.shade:.2f}"' if cell.shade else ""
        return f'<td class="right" data-v="{cell.value:.17g}"{shade}>{escape(cell.text)}</td>'
    if isinstance(cell, Tag):
        return f'<td><span class="tag" style="--turn:{cell.number}"></span>{escape(cell.text)}</td>'
    return f"<td{_right(numeric)}>{escape(cell or '')}</td>"


def _right(numeric: bool) -> str:
    return ' class="right"' if numeric else ""
