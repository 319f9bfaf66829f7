"""Drawings of a report as SVG; colours come from its style sheet."""

from __future__ import annotations

import math
from html import escape

from keras_filterprune.report.document import Bar, Curves

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 640, 320, 60, 40, 12


def draw_bar(bar: Bar) -> str:
    """What is left in front of what there was."""
    before, after = (100 * n / bar.scale if bar.scale else 0.0 for n in (bar.before, bar.after))
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{bar.after:,.6g} of {bar.before:,.6g}">'
        f'<rect class="gone" width="{before:.2f}" height="10"></rect>'
        f'<rect class="kept" width="{after:.2f}" height="10"></rect></svg>'
    )


def draw_curves(curves: Curves) -> str:
    """Lines with grid, axes and a legend; the grey lines are drawn first."""
    points = [point for line in curves.lines.values() for point in line]
    values = [value for _, *ys in points for value in ys if math.isfinite(value)]
    ticks = _ticks(min(values, default=0.0), max(values, default=1.0))
    xs = [x for x, *_ in points] or [0.0, 1.0]
    across, up = (max(xs), min(xs)), (ticks[0], ticks[-1])

    def place(x: float, y: float) -> str:
        right = _LEFT + (_WIDTH - _LEFT - _EDGE) * (across[0] - x) / ((across[0] - across[1]) or 1)
        down = _EDGE + (_HEIGHT - _BOTTOM - _EDGE) * (up[1] - y) / (up[1] - up[0])
        return f"{right:.1f},{down:.1f}"

    parts = [
        f'<figure><svg class="curves" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(curves.y)} over {escape(curves.x)}">'
    ]
    parts += [_grid_line(place(across[0], y), place(across[1], y), f"{y:.4g}") for y in ticks]
    parts += [_mark(place(x, up[0]), f"{x:.4g}") for x in sorted(set(xs))]
    middle = (_LEFT + _WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(curves.x)}</text>')
    parts.append(
        f'<text transform="translate(12 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(curves.y)}</text>'
    )
    rest = [name for name in curves.lines if name not in curves.named]
    for name in (*rest, *reversed(curves.named)):
        line = [point for point in curves.lines[name] if all(map(math.isfinite, point))]
        style = f"line{curves.named.index(name)}" if name in curves.named else ""
        parts.append(_line(line, style, name, place))
    return "".join([*parts, "</svg>", _legend(curves, bool(rest)), "</figure>"])


def _line(line: list, style: str, name: str, place) -> str:
    dots = " ".join(place(x, y) for x, y, _, _ in line)
    if not style:
        return f'<polyline points="{dots}"><title>{escape(name)}</title></polyline>'
    band = " ".join([*(place(x, high) for x, _, _, high in line), *(place(x, low) for x, _, low, _ in line[::-1])])
    return (
        f'<polygon class="{style}" points="{band}"></polygon>'
        f'<polyline class="named {style}" points="{dots}"><title>{escape(name)}</title></polyline>'
    )


def _grid_line(start: str, end: str, label: str) -> str:
    (x1, y1), (x2, y2) = start.split(","), end.split(",")
    return (
        f'<line class="grid" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"></line>'
        f'<text x="{_LEFT - 6}" y="{y1}" dy="4" text-anchor="end">{escape(label)}</text>'
    )


def _mark(where: str, label: str) -> str:
    x, y = where.split(",")
    return f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{escape(label)}</text>'


def _legend(curves: Curves, others: bool) -> str:
    entries = [(f"line{n}", name) for n, name in enumerate(curves.named)] + [("", "other groups")] * others
    swatch = '<svg viewBox="0 0 32 10"><line x1="0" y1="5" x2="32" y2="5"></line></svg>'
    return (
        '<ul class="legend">'
        + "".join(f'<li class="{style}">{swatch}{escape(name)}</li>' for style, name in entries)
        + "</ul>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers that span an interval."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.8 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, max(last, first + 1) + 1)]
