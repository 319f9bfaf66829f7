"""How much of a model can shrink, and what stands in the way of the rest, by share of the multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_filterprune.checks import visible
from keras_filterprune.graph.values import Group, ModelView, Pinned, Shape, Term

_NAMES, _ROWS = 3, 20


class LayerMacs(NamedTuple):
    """Multiply-accumulates of one layer for one sample.

    Attributes:
        macs: how many.
        reached: how many of them fall when filters go.
        estimated: nobody counts them, and they are taken for one at every position of the output for each weight of a
            matrix.
    """

    macs: int
    reached: int
    estimated: bool = False


class Obstacle(NamedTuple):
    """Why filters stay.

    Attributes:
        reason: as in `Pinned`, with what would help.
        layers: whose filters these are, in the order of the model.
        channels: how many.
        macs: multiply-accumulates of these layers that no removal lowers.
        share: that as a share of the model's, between 0 and 1.
    """

    reason: str
    layers: tuple[str, ...]
    channels: int
    macs: int
    share: float

    def __str__(self) -> str:
        names = _listed([f"'{name}'" for name in self.layers])
        return f"{names} ({percent(self.share)} of the MACs) {self.reason}"


def percent(share: float) -> str:
    """A share as text, never rounded to all or nothing."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %" if 0.0005 <= share < 0.9995 else "< 0.1 %" if share < 0.5 else "> 99.9 %"


def macs_by_layer(
    view: ModelView,
    terms: Iterable[Term],
    falls: np.ndarray,
    weights: Mapping[str, Mapping[str, Shape]],
    uncounted: Iterable[str],
) -> dict[str, LayerMacs]:
    """{layer: its multiply-accumulates}.

    Args:
        view: of the model.
        terms: what its calls spend.
        falls: boolean array over channel ids: which can go.
        weights, uncounted: as in `ChannelGraph`.
    """
    spent: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    # Vectors that are passed on are the same array.
    goes = {id(ids): bool(falls[ids].any()) for term in terms for ids in term.axes}
    for term in terms:
        macs = term.coefficient * math.prod(len(ids) for ids in term.axes)
        spent[term.layer] += macs
        reached[term.layer] += macs if any(goes[id(ids)] for ids in term.axes) else 0
    found = {layer: LayerMacs(macs, reached[layer]) for layer, macs in spent.items()}
    unknown = {
        layer: sum(math.prod(map(_at_least_one, s)) for s in weights[layer].values() if len(s) > 1)
        for layer in uncounted
    }
    about: Counter[str] = Counter()
    for call in view.calls:
        if call.path in unknown and call.per_sample:
            about[call.path] += unknown[call.path] * math.prod(map(_at_least_one, call.output_shapes[0][1:-1]))
    return found | {layer: LayerMacs(macs, 0, True) for layer, macs in about.items()}


def obstacles_of(pinned: Iterable[Pinned], spent: Mapping[str, LayerMacs]) -> tuple[Obstacle, ...]:
    """Pins by their reasons, the reason that keeps most multiply-accumulates whole first."""
    total = max(1, sum(layer.macs for layer in spent.values()))
    by_reason: defaultdict[str, Counter[str]] = defaultdict(Counter)
    of_layer: Counter[str] = Counter()
    for layer, channels, reason in pinned:
        by_reason[reason][layer] += channels
        of_layer[layer] += channels
    found = []
    for reason, layers in by_reason.items():
        whole = 0.0
        for layer, channels in layers.items():
            macs, reached, _ = spent.get(layer, LayerMacs(0, 0))
            whole += (macs - reached) * channels / max(1, of_layer[layer])
        found.append(Obstacle(reason, tuple(layers), layers.total(), round(whole), whole / total))
    return tuple(sorted(found, key=lambda obstacle: -obstacle.macs))


def summary_of(
    view: ModelView, groups: tuple[Group, ...], obstacles: tuple[Obstacle, ...], spent: Mapping[str, LayerMacs]
) -> str:
    """What `ChannelGraph.summary` shows."""
    total, reached = (sum(getattr(layer, name) for layer in spent.values()) for name in ("macs", "reached"))
    about = "about " if any(layer.estimated for layer in spent.values()) else ""
    part = "all" if reached == total else percent(reached / max(1, total))
    made = f"{len(groups)} group{'s' * (len(groups) != 1)} of {sum(group.size for group in groups):,} units"
    title = f"{view.name}: {part} of its {about}{total:,} MACs can fall, in {made}"
    rows = [(g.name, str(g.size), percent(_made(g, spent) / max(1, total)), _described(g)) for g in groups]
    stays = [(_listed(o.layers), str(o.channels), percent(o.share), o.reason) for o in obstacles]
    lines = [title, *_table(("group", "units", "of the MACs", ""), rows)]
    lines += _table(("stays whole", "filters", "of the MACs", "because it"), stays)
    if view.open_inputs:
        shapes = ", ".join(
            f"'{view.calls[ref.call].path}' {view.calls[ref.call].output_shapes[0]}" for ref in view.inputs
        )
        lines.append(f"\nSides that inputs leave open are counted as in {shapes}.")
    if about:
        names = [layer for layer, macs in spent.items() if macs.estimated]
        lines.append(f"\nMACs of {_listed(names)} are estimated from weights and the size of the output.")
    return visible("\n".join(lines))


def _made(group: Group, spent: Mapping[str, LayerMacs]) -> float:
    """Multiply-accumulates of the layers whose filters a group's units are."""
    return sum(spent[layer].macs for layer in group.producers if layer in spent)


def _described(group: Group) -> str:
    """Which layers make a group, and why its removal is not exact."""
    made = f"made by {_listed(group.producers)}" if len(group.producers) > 1 else ""
    return "; ".join([*([made] if made else []), *(f"approximate: {reason}" for reason in group.approximate)])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns side by side, numbers to the right; what is too much is counted."""
    if not rows:
        return []
    shown = [head, *rows[:_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in shown]
    more = [f"... and {len(rows) - _ROWS} more"] if len(rows) > _ROWS else []
    return ["", *lines, *more]


def _at_least_one(size: int | None) -> int:
    return 1 if size is None else size
