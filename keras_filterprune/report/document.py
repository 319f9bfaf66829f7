"""A report as a value: sections of sentences, one table and one figure each. Renderers turn it into text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A cell that is sorted by its value and aligned right.

    Attributes:
        value: what it is sorted by.
        text: what is shown.
        shade: how much of it there is, from 0 to 1, as a background (0).
    """

    value: float
    text: str
    shade: float = 0.0


@dataclass(frozen=True)
class Bar:
    """A cell that draws what is left of what there was.

    Attributes:
        before, after: the two amounts, not negative.
        scale: the amount that fills the cell.
    """

    before: float
    after: float
    scale: float


@dataclass(frozen=True)
class Tag:
    """A cell with a mark in a colour of its number, the same wherever that is the same.

    Attributes:
        number: of what it names, from 0 on.
        text: what is shown.
    """

    number: int
    text: str


Cell = str | Number | Bar | Tag | None


@dataclass(frozen=True)
class Table:
    """Rows of cells, one per column; None is an empty cell."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis that falls from left to right.

    Attributes:
        x, y: what the axes say.
        lines: {name: [(x, y, low, high), ...]}, the points of each line with the interval of y.
        named: lines that get a colour and a place in the legend, the others are grey.
    """

    x: str
    y: str
    lines: dict[str, list[tuple[float, float, float, float]]]
    named: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One part of a report; `figure` is left out where a text cannot hold it, so the table has its numbers too."""

    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    figure: Curves | None = None


def count(value: float | None) -> Number | None:
    """A whole number with thousands separators."""
    return None if value is None else Number(value, f"{value:,}")


def percent(value: float, digits: int = 1) -> Number:
    """A share of 1."""
    return Number(value, f"{100 * value:.{digits}f} %")


def number(value: float | None, pattern: str) -> Number | None:
    """A value in a format, empty where there is none."""
    return None if value is None else Number(value, format(value, pattern))


def share(after: float, before: float) -> Number | None:
    """What is left, empty where there was nothing."""
    return percent(after / before) if before else None


def without_empty_columns(table: Table) -> Table:
    """The table without the columns in which no row has anything."""
    used = [i for i in range(len(table.columns)) if any(row[i] not in (None, "") for row in table.rows)]
    return Table(tuple(table.columns[i] for i in used), tuple(tuple(row[i] for i in used) for row in table.rows))
