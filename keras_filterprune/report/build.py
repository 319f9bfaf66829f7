"""What a run of filter pruning has to report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keras_filterprune.cost import CostModel, as_tiles
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.latency import Prices, SizedOperators
from keras_filterprune.rebuild.outcome import Outcome
from keras_filterprune.rebuild.plan import PruningPlan, kept_channels
from keras_filterprune.report import LayerRow, PruneReport


def prune_report(
    original: ChannelGraph,
    graph: ChannelGraph,
    plan: PruningPlan,
    outcome: Outcome,
    adapted: ChannelGraph | None,
    channel_multiple: int | str,
    prices: Prices | None,
) -> PruneReport:
    """Put together the report of one run.

    Args:
        original: graph of the user's model.
        graph: graph of the model that was cut; another one only where adapters were inserted before.
        plan: what was kept.
        outcome: what surgery and compensation gave.
        adapted: graph of the result where it holds adapters, else None: `graph` at its kept counts.
        channel_multiple: as in `prune_model`.
        prices: those behind the budget, None where there are none.
    """
    before, cost = CostModel(original), CostModel(graph)
    keep = np.array([len(outcome.kept[g.name]) for g in graph.groups], int)
    after, operators = cost.per_layer(keep), SizedOperators.of(graph, keep)
    channels = {name: (c["channels"], len(c["kept"])) for name, c in kept_channels(graph, outcome.kept).items()}
    if adapted is not None:
        final = CostModel(adapted)
        after, operators = final.per_layer(final.sizes), SizedOperators.of(adapted, final.sizes)
        wide, narrow = (kept_channels(g, {}) for g in (original, adapted))
        channels = {n: (wide.get(n, {"channels": 0})["channels"], c["channels"]) for n, c in narrow.items()}
        costs = (("macs", before.macs, final.macs), ("params", before.params, final.params))
        plan = replace(plan, cost={kind: [b(before.sizes), f(final.sizes)] for kind, b, f in costs})
    full = before.per_layer(before.sizes)
    rows, pinned = [], _pinned(graph, plan)
    for layer, (macs, params) in after.items():
        macs_before, params_before = full.get(layer, (0, 0))
        spent = macs_before, macs, params_before, params
        rows.append(LayerRow(layer, *channels.get(layer, (0, 0)), *spent, pinned.get(layer, "")))
    cut = {g.name for g in graph.groups if len(outcome.kept[g.name]) < g.size}
    approximate = {g.name: list(g.approximate) for g in graph.groups if g.approximate and g.name in cut}
    notes = _notes(graph, outcome) + _fit(channel_multiple, rows)
    proof = approximate, outcome.difference, outcome.compensation
    both = SizedOperators.of(original, before.sizes), operators
    return PruneReport(plan, tuple(rows), *proof, notes, channel_multiple, both, prices)


def _pinned(graph: ChannelGraph, plan: PruningPlan) -> dict[str, str]:
    """{layer: why filters of it stay}; a group that was not to shrink keeps those of all layers that make it."""
    own = [pin._asdict() for pin in graph.pinned]
    reasons: dict[str, list[str]] = {}
    for pin in plan.pinned:
        group = None if pin in own else graph.by_name.get(pin["layer"])
        for layer in group.producers if group else (pin["layer"],):
            reasons.setdefault(layer, []).append(pin["reason"])
    return {layer: "; ".join(dict.fromkeys(why)) for layer, why in reasons.items()}


def _notes(graph: ChannelGraph, outcome: Outcome) -> list[str]:
    notes = list(outcome.notes)
    if graph.view.open_inputs:
        shapes = {graph.view.calls[r.call].path: graph.view.calls[r.call].output_shapes[0] for r in graph.view.inputs}
        notes.append(f"Open input sizes were counted as in {shapes}.")
    if graph.uncounted:
        notes.append(f"MACs of these layers are not known and not counted: {', '.join(graph.uncounted)}.")
    return notes


def _fit(channel_multiple: int | str, rows: list[LayerRow]) -> list[str]:
    """How many layers fit a named target; those that also have channels that stay may not."""
    widths = [row.kept for row in rows if row.macs and row.kept < row.channels]
    if not isinstance(channel_multiple, str) or not widths:
        return []
    tiles = as_tiles(channel_multiple)
    fit = sum(tiles.ceil(width) == width for width in widths)
    return [f"{channel_multiple}: widths are {tiles} in {fit} of {len(widths)} layers that became narrower."]
