"""A report as Markdown: tables as on GitHub, bars as characters."""

from __future__ import annotations

import re

from keras_filterprune.report.document import Bar, Cell, Number, Section, Table, Tag

_BAR = 20


def render(title: str, sections: list[Section]) -> str:
    """The text of a report; figures are left out, their numbers are in the tables."""
    parts = [f"# {_text(title)}"]
    for section in sections:
        parts.append(f"## {_text(section.title)}")
        if section.text:
            parts.append("\n".join(f"- {_text(line)}" for line in section.text))
        if section.table:
            parts.append(_table(section.table))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    kinds = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    rules = ["--:" if any(isinstance(cell, Number) for cell in column) else "---" for column in kinds]
    lines = [[_text(name) for name in table.columns], rules, *([_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Bar):
        before, after = (round(_BAR * n / cell.scale) if cell.scale else 0 for n in (cell.before, cell.after))
        return "█" * after + "░" * (before - after)
    return _text(cell.text if isinstance(cell, Number | Tag) else cell or "")


def _text(text: str) -> str:
    """Text that Markdown shows as it is; an underscore within a word is left alone."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]|~$#])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])", r"\\\g<0>", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
