"""A picture of a channel graph: a row for each layer that makes or joins channels, in the colour of its group."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_filterprune.checks import check_packages
from keras_filterprune.files import replacing
from keras_filterprune.graph.reach import LayerMacs, percent
from keras_filterprune.graph.values import Bind, Call, Group, ModelView, Pinned, Tensor, TensorRef

# Inches: height of a row, room for arcs, a character of each column, the longest bar.
_ROW, _ARCS, _CHARACTER, _BAR = 0.27, 1.3, 0.078, 1.6
_LONGEST_NAME, _LONGEST_NOTE = 36, 96
# What a bitmap may have of pixels along a side, and has of them per inch where that is no matter.
_MOST_PIXELS, _DPI = 60_000, 130
_GREY, _STAYS = "0.6", "0.78"


class Row(NamedTuple):
    """One layer of the picture.

    Attributes:
        name, kind: of the layer, its class and how many channels it gives.
        groups: numbers of the groups that its channels are in.
        falls: of those by which its cost falls: these, or else what it reads.
        share: of the model's multiply-accumulates.
        reached: how much of that falls when filters go.
        note: the groups by name, and why what stays whole does.
        sources: (row that it reads, number of the group that comes from there or -1).
    """

    name: str
    kind: str
    groups: tuple[int, ...]
    falls: tuple[int, ...]
    share: float
    reached: float
    note: str
    sources: tuple[tuple[int, int], ...]


def rows_of(
    view: ModelView,
    tensors: Sequence[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]],
    binds: Iterable[Bind],
    groups: Sequence[Group],
    group_of_id: np.ndarray,
    pinned: Iterable[Pinned],
    spent: Mapping[str, LayerMacs],
) -> list[Row]:
    """The rows of a graph in its order; what passes channels on has none. Arguments as in `ChannelGraph`."""
    total = max(1, sum(layer.macs for layer in spent.values()))
    own, read = (_groups_of(binds, role, group_of_id) for role in ("filter", "input"))
    reasons = {layer: reason for layer, _, reason in pinned}
    rows: list[Row] = []
    behind: dict[TensorRef, tuple[int, ...]] = {}
    for number, (call, (inputs, outputs)) in enumerate(zip(view.calls, tensors, strict=True)):
        # What is no function of the batch, a weight, reads nothing.
        above = tuple(dict.fromkeys(row for ref in call.inputs for row in behind[ref])) if call.per_sample else ()
        shown = call.path in own or call.path in reasons or call.path in spent or len(above) > 1
        if not call.inputs or (shown and call.per_sample):
            found = own.get(call.path) or (_numbers(outputs[0].ids, group_of_id) if outputs else [])
            flows = {row: _main(x, group_of_id) for r, x in zip(call.inputs, inputs, strict=True) for row in behind[r]}
            macs, reached, _ = spent.get(call.path, LayerMacs(0, 0))
            rows.append(
                Row(
                    call.path,
                    _kind(call),
                    tuple(found),
                    tuple(found or read.get(call.path, ())),
                    macs / total,
                    reached / total,
                    _note(found, groups, reasons.get(call.path, "")),
                    tuple((row, flows[row]) for row in above),
                )
            )
            above = (len(rows) - 1,)
        behind.update({TensorRef(number, index): above for index in range(len(call.output_shapes))})
    return rows


def _groups_of(binds: Iterable[Bind], role: str, group_of_id: np.ndarray) -> dict[str, list[int]]:
    """{layer: numbers of the groups that index weights of it in a role}."""
    found: dict[str, dict[int, None]] = {}
    for bind in binds:
        if bind.role == role:
            found.setdefault(bind.layer, {}).update(dict.fromkeys(_numbers(bind.ids, group_of_id)))
    return {layer: list(numbers) for layer, numbers in found.items()}


def _numbers(ids: np.ndarray, group_of_id: np.ndarray) -> list[int]:
    """Groups of channels in their order, without those that stay."""
    found = group_of_id[ids]
    return list(dict.fromkeys(found[found >= 0].tolist()))


def _main(tensor: Tensor, group_of_id: np.ndarray) -> int:
    """The group of most channels of a tensor, -1 where most of them stay."""
    found = group_of_id[tensor.ids]
    return int(np.bincount(found + 1).argmax()) - 1 if len(found) else -1


def _kind(call: Call) -> str:
    name = type(call.op).__name__ if call.inputs else "input"
    shape = call.output_shapes[0] if call.output_shapes else ()
    return f"{name} {shape[-1]}" if len(shape) > 1 else name


def _note(numbers: Sequence[int], groups: Sequence[Group], reason: str) -> str:
    found = [groups[number] for number in numbers]
    names = ", ".join(group.name + " (approximate)" * bool(group.approximate) for group in found[:2])
    names += f" and {len(found) - 2} more" if len(found) > 2 else ""
    notes = [f"group {names}"] if found else []
    return "; ".join([*notes, f"stays{' in part' * bool(found)}: {reason}"] if reason else notes)


def draw(path: str | os.PathLike, title: str, rows: Sequence[Row]) -> Path:
    """Draw rows into an image; arguments and errors as in `ChannelGraph.plot`."""
    check_packages("ChannelGraph.plot", "plots", "matplotlib.figure")
    from matplotlib.figure import Figure

    names = _ARCS + 0.15
    kinds = names + _CHARACTER * min(_LONGEST_NAME, max(len(row.name) for row in rows)) + 0.2
    bars = kinds + _CHARACTER * max(len(row.kind) for row in rows) + 0.2
    notes = bars + _BAR + 0.65
    longest = max(len(line) for row in rows for line in (*_wrapped(row), ""))
    width = max(notes + 0.72 * _CHARACTER * longest, 1.3 * _CHARACTER * len(title)) + 0.3
    height = _ROW * (len(rows) + 2)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(0.15, 0.75 * _ROW, title, fontsize=10, weight="bold", va="center")
    most = max(row.share for row in rows) or 1
    for number, row in enumerate(rows):
        y = _ROW * (number + 2)
        for source, group in row.sources:
            axes.add_patch(_arc(_ROW * (source + 2), y, number - source, _colour(group)))
        axes.plot(_ARCS, y, "o", color=_colour(row.groups[-1] if row.groups else -1), markersize=6, zorder=3)
        axes.text(names, y, _middle(row.name), fontsize=8, va="center")
        axes.text(kinds, y, row.kind, fontsize=8, va="center", color="0.35")
        _draw_bar(axes, bars, y, row, most)
        lines = _wrapped(row)
        size, grey = 7.5 if len(lines) < 2 else 6.5, "0.2" if row.groups else "0.45"
        axes.text(notes, y, "\n".join(lines), va="center", fontsize=size, color=grey)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=min(_DPI, _MOST_PIXELS / max(width, height)))
    return Path(path)


def _draw_bar(axes: Any, x: float, y: float, row: Row, most: float) -> None:
    """The share of a layer: what can fall in the colours of its groups, the rest in grey."""
    from matplotlib.patches import Rectangle

    if not row.share:
        return
    falls = _BAR * row.reached / most
    part = falls / max(1, len(row.falls))
    for number, group in enumerate(row.falls):
        axes.add_patch(Rectangle((x + number * part, y - 0.3 * _ROW), part, 0.6 * _ROW, color=_colour(group), lw=0))
    whole = _BAR * row.share / most
    axes.add_patch(Rectangle((x + falls, y - 0.3 * _ROW), whole - falls, 0.6 * _ROW, color=_STAYS, lw=0))
    axes.text(x + whole + 0.06, y, percent(row.share), fontsize=7, va="center", color="0.35")


def _arc(above: float, below: float, rows: int, colour: str) -> Any:
    """A line to the next row, an arc around the rows between."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    out = 0 if rows == 1 else min(1.25 * _ARCS, 0.22 * rows**0.5 + 0.1)
    points = [(_ARCS, above), (_ARCS - out, above), (_ARCS - out, below), (_ARCS, below)]
    return PathPatch(Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3]), fill=False, edgecolor=colour, lw=1.6)


def _colour(group: int) -> str:
    """Neighbouring groups differ; grey is for what stays."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # The light half of the palette comes after the dark one; its greys are left out.
    order = [n for first in (0, 1) for n in range(first, 20, 2) if n not in (14, 15)]
    return to_hex(colormaps["tab20"](order[group % len(order)])) if group >= 0 else _GREY


def _middle(name: str) -> str:
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}...{name[2 - half :]}"


def _wrapped(row: Row) -> list[str]:
    """The note in two lines at most."""
    first, *more = textwrap.wrap(row.note, _LONGEST_NOTE) or [""]
    return [first, textwrap.shorten(" ".join(more), _LONGEST_NOTE, placeholder=" ...")] if more else [first]
