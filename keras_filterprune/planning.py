"""From a method and a budget to a plan: which groups may shrink, how far, and which of their units stay."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np

from keras_filterprune.allocators.base import Allocation
from keras_filterprune.cost import Budget, CostModel, FiltersBudget
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import InfeasibleBudgetError, UnknownNameError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.methods import Method
from keras_filterprune.probe import Weights
from keras_filterprune.rebuild.plan import PruningPlan, fingerprint, refreshed, versions


class Options:
    """Checked options that decide which groups may shrink, and how far; arguments as in `prune_model`."""

    def __init__(self, include: Any, exclude: Any, min_filters: int, channel_multiple: int):
        self.include = None if include is None else _patterns(include)
        self.exclude = _patterns(exclude or ())
        for name, value in (("min_filters", min_filters), ("channel_multiple", channel_multiple)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise InfeasibleBudgetError(f"{name} is a positive integer. Received: {name}={value!r}.")
        self.min_filters, self.multiple = int(min_filters), int(channel_multiple)

    def refusals(self, graph: ChannelGraph, criterion: Criterion) -> dict[str, str]:
        """{group: why it stays whole}."""
        layers = [call.path for call in graph.view.calls]
        for pattern in (*(self.include or ()), *self.exclude):
            if not fnmatch.filter(layers, pattern):
                near = difflib.get_close_matches(pattern, layers, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else " analyze(model).groups lists the layers."
                raise UnknownNameError(f"no layer matches {pattern!r}.{hint}")
        refused = {}
        for group in graph.groups:
            names = {m.layer for m in group.members if m.role == "filter"}
            hit = next((p for p in self.exclude if fnmatch.filter(names, p)), None)
            if hit is not None:
                refused[group.name] = f"is excluded by '{hit}'"
            elif self.include is not None and not any(fnmatch.filter(names, p) for p in self.include):
                refused[group.name] = "is not included"
            elif (why := criterion.refuses(group)) is not None:
                refused[group.name] = why
        return refused


def _patterns(names: str | Iterable[str]) -> tuple[str, ...]:
    patterns = (names,) if isinstance(names, str) else tuple(names)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UnknownNameError(f"include and exclude take layer names or globs. Received: {pattern!r}.")
    return patterns


def make_plan(
    graph: ChannelGraph, weights: Weights, recipe: Method, name: str, budget: Budget, options: Options, seed: int
) -> tuple[PruningPlan, dict[str, np.ndarray]]:
    """The plan, and {group name: indices of the units that stay}; `recipe`'s criterion has seen its data."""
    refused = options.refusals(graph, recipe.criterion)
    cost = CostModel(graph)
    keep = _counts(graph, weights, recipe, cost, budget, options, refused)
    kept = {
        group.name: np.arange(group.size) if n == group.size else recipe.criterion.select(group, int(n), weights)
        for group, n in zip(graph.groups, keep, strict=True)
    }
    pins = [p._asdict() for p in graph.pinned]
    pins += [{"layer": name, "channels": graph.by_name[name].size, "reason": why} for name, why in refused.items()]
    plan = PruningPlan(
        model=fingerprint(graph, weights),
        method=name,
        budget=repr(budget),
        seed=int(seed),
        versions=versions(),
        groups=[],
        layers={},
        pinned=pins,
        cost={},
    )
    return refreshed(plan, graph, cost, kept), kept


def _counts(
    graph: ChannelGraph,
    weights: Weights,
    recipe: Method,
    cost: CostModel,
    budget: Budget,
    options: Options,
    refused: dict[str, str],
) -> np.ndarray:
    """Kept units of every group under the budget."""
    if not graph.groups:
        reasons = [f"'{p.layer}' {p.reason}" for p in graph.pinned[:3]] or ["no layer with a handler makes filters"]
        raise InfeasibleBudgetError(
            f"model '{graph.view.name}' has no filter that can be removed: {'; '.join(reasons)}."
        )
    floors = np.minimum(cost.sizes, options.min_filters)
    for number, group in enumerate(graph.groups):
        if group.name in refused:
            floors[number] = group.size
        elif group.approximate:
            # Normalising a single channel leaves a constant.
            floors[number] = min(group.size, max(2, floors[number]))
    fixed = isinstance(budget, FiltersBudget)
    problem = Allocation(
        sizes=cost.sizes,
        floors=floors,
        multiple=options.multiple,
        cost=cost.macs if fixed else budget.cost(cost),
        limit=0 if fixed else budget.limit(cost),
        scores=lambda number: recipe.criterion.scores(graph.groups[number], weights).copy(),
    )
    if fixed:
        fractions = np.array(budget.fractions([g.producers for g in graph.groups]))
        return problem.legal(np.floor(fractions * cost.sizes + 0.5).astype(int))
    least = problem.legal(floors)
    if not problem.feasible(least):
        raise InfeasibleBudgetError(_infeasible(graph, cost, budget, problem, least, refused))
    return recipe.allocator.allocate(problem)


def _infeasible(
    graph: ChannelGraph,
    cost: CostModel,
    budget: Budget,
    problem: Allocation,
    least: np.ndarray,
    refused: dict[str, str],
) -> str:
    full, reachable = problem.cost(cost.sizes), problem.cost(least)
    spent = np.bincount(problem.cost.owners, problem.cost.terms(least), minlength=len(cost.layers))
    reasons = {p.layer: p.reason for p in graph.pinned} | {
        layer: why for name, why in refused.items() for layer in graph.by_name[name].producers
    }
    named = [
        f"'{cost.layers[n]}' ({int(spent[n]):,}{', ' + reasons[cost.layers[n]] if cost.layers[n] in reasons else ''})"
        for n in np.argsort(-spent, kind="stable")[:3]
    ]
    return (
        f"{budget} asks for at most {problem.limit:,} {budget.unit}; the smallest reachable is {reachable:,} "
        f"({100 * reachable / full:.1f} % of {full:,}) with min_filters and channel_multiple as given. What is left is "
        f"mostly in layers {', '.join(named)}."
    )
