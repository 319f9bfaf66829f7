"""What a run of filter pruning has to report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keras_filterprune.cost import Budget, CostModel, Tiles, as_widths
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.latency import SizedOperators
from keras_filterprune.outcome import Outcome
from keras_filterprune.rebuild.plan import PruningPlan
from keras_filterprune.report import LayerRow, PruneReport
from keras_filterprune.report.prune_report import Spent


def prune_report(
    original: CostModel,
    plan: PruningPlan,
    outcome: Outcome,
    final: CostModel | None,
    channel_multiple: int | str | Tiles,
    budget: Budget | None,
) -> PruneReport:
    """Put together the report of one run.

    Args:
        original: costs of the user's model.
        plan: what was kept.
        outcome: what surgery and compensation gave, from the model that was cut: the user's, or one with adapters.
        final: costs of the result where that is another model than the outcome's, with adapters; None: those of the
            original at its kept counts.
        channel_multiple: as in `prune_model`.
        budget: what was to be spent, None where a plan was replayed.
    """
    kept, graph = outcome.kept, outcome.kept.graph
    if final is None:
        after, operators = original.per_layer(kept.counts), SizedOperators.of(graph, kept.counts)
        channels = {name: (c["channels"], len(c["kept"])) for name, c in kept.channels.items()}
    else:
        after, operators = final.per_layer(final.sizes), SizedOperators.of(final.graph, final.sizes)
        wide, narrow = (Kept(costs.graph).channels for costs in (original, final))
        channels = {n: (wide.get(n, {"channels": 0})["channels"], c["channels"]) for n, c in narrow.items()}
        costs = (("macs", original.macs, final.macs), ("params", original.params, final.params))
        plan = replace(plan, cost={kind: [b(original.sizes), f(final.sizes)] for kind, b, f in costs})
    full = original.per_layer(original.sizes)
    rows, pinned, groups = [], _pinned(graph, plan), _groups(graph)
    for layer, (macs, params) in after.items():
        macs_before, params_before = full.get(layer, (0, 0))
        numbers = macs_before, macs, params_before, params
        named = LayerRow(layer, *channels.get(layer, (0, 0)), *numbers, pinned.get(layer, ""), groups.get(layer, ()))
        rows.append(named)
    cut = [group for group, count in zip(graph.groups, kept.counts, strict=True) if count < group.size]
    approximate = {group.name: list(group.approximate) for group in cut if group.approximate}
    notes = _notes(graph, outcome) + _fit(channel_multiple, rows)
    proof = approximate, outcome.difference, outcome.compensation
    both = SizedOperators.of(original.graph, original.sizes), operators
    spent = None if budget is None else _spent(budget, original, kept.counts, final)
    prices = None if budget is None else budget.prices
    return PruneReport(plan, tuple(rows), *proof, notes, channel_multiple, both, prices, spent)


def _spent(budget: Budget, original: CostModel, counts: np.ndarray, final: CostModel | None) -> Spent | None:
    """What the budget counts, None for what every report has."""
    if budget.unit in ("MACs", "parameters"):
        return None
    before = budget.cost(original)
    after = before(counts) if final is None else budget.cost(final)(final.sizes)
    return Spent(budget.unit, before(original.sizes), after)


def _pinned(graph: ChannelGraph, plan: PruningPlan) -> dict[str, str]:
    """{layer: why filters of it stay}; a group that was not to shrink keeps those of all layers that make it."""
    own = [pin._asdict() for pin in graph.pinned]
    reasons: dict[str, list[str]] = {}
    for pin in plan.pinned:
        group = None if pin in own else graph.by_name.get(pin["layer"])
        for layer in group.producers if group else (pin["layer"],):
            reasons.setdefault(layer, []).append(pin["reason"])
    return {layer: "; ".join(dict.fromkeys(why)) for layer, why in reasons.items()}


def _groups(graph: ChannelGraph) -> dict[str, tuple[str, ...]]:
    """{layer: names of the groups that its filters are in}."""
    return {
        layer: tuple(graph.groups[number].name for number in np.unique(graph.group_of_id[ids]) if number >= 0)
        for layer, ids in graph.filter_ids.items()
    }


def _notes(graph: ChannelGraph, outcome: Outcome) -> list[str]:
    notes = list(outcome.notes)
    if graph.view.open_inputs:
        shapes = {graph.view.calls[r.call].path: graph.view.calls[r.call].output_shapes[0] for r in graph.view.inputs}
        notes.append(f"Open input sizes were counted as in {shapes}.")
    if graph.uncounted:
        notes.append(f"MACs of these layers are not known and not counted: {', '.join(graph.uncounted)}.")
    return notes


def _fit(channel_multiple: int | str | Tiles, rows: list[LayerRow]) -> list[str]:
    """How many layers fit a named target; those that also have channels that stay may not."""
    narrower = [row for row in rows if row.macs and row.kept < row.channels]
    if not isinstance(channel_multiple, str) or not narrower:
        return []
    tiles = as_widths(channel_multiple)
    fit = sum(row.kept in tiles.rungs(row.channels) for row in narrower)
    return [f"{channel_multiple}: widths are {tiles} in {fit} of {len(narrower)} layers that became narrower."]
