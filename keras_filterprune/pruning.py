"""prune_model and its two halves, plan_pruning and apply_plan: orchestration only."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral
from typing import Any

import keras
import numpy as np

from keras_filterprune.allocators.base import Allocation
from keras_filterprune.analysis import analyze
from keras_filterprune.compensators import Compensator
from keras_filterprune.cost import Budget, CostModel, FiltersBudget, as_budget
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import (
    CalibrationDataError,
    InfeasibleBudgetError,
    PlanMismatchError,
    SurgeryError,
    UnknownNameError,
)
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.methods import Method, as_method
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import check_data
from keras_filterprune.rebuild.clone import rebuild
from keras_filterprune.rebuild.plan import PruningPlan, fingerprint, kept_channels, refreshed, units_of, versions
from keras_filterprune.rebuild.verify import verify as verify_surgery
from keras_filterprune.report import LayerRow, PruneReport


def prune_model(
    model: keras.Model,
    method: str | Method | Criterion = "l2",
    budget: float | Budget = 0.5,
    *,
    data: Any = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    min_filters: int = 1,
    channel_multiple: int = 1,
    compensate: str | Compensator = "auto",
    seed: int = 0,
    verify: bool = True,
    return_report: bool = False,
    progress: bool = True,
) -> keras.Model | tuple[keras.Model, PruneReport]:
    """Rebuild a model with fewer filters, within a budget, and prove that nothing else changed.

    Args:
        model: a built functional or Sequential model, channels last. It is not modified.
        method: a name from `list_methods()`, or a configured `Method` or criterion (`kfp.L2(aggregate="max")`).
        budget: the fraction of multiply-accumulates to keep, in (0, 1]; or a `MacsBudget`, `ParamsBudget` or
            `FiltersBudget`. Never exceeded; met within 1 % or one unit (one `channel_multiple`).
        data: unlabelled calibration inputs: array(s), `(x, y)`, `tf.data.Dataset`, `PyDataset` or batches. None is
            fine for methods that need nothing.
        include: layer names or globs; only groups that make filters in a matching layer are pruned. None: all.
        exclude: layer names or globs; groups with filters in a matching layer stay whole.
        min_filters: the fewest units a group keeps (1).
        channel_multiple: kept counts are multiples of this, or the whole group (1); 8 suits Arm CPUs.
        compensate: "auto" (the method's compensator if there is data), "none", or a compensator.
        seed: seed of everything random (0).
        verify: compare with the masked original on a random batch (True).
        return_report: return `(model, PruneReport)` (False).
        progress: progress bars on stderr (True).

    Returns:
        An ordinary `keras.Model`, compiled like the original if that was; with `return_report`, also the report.

    Raises:
        UnsupportedModelError: subclassed, unbuilt or channels_first models, NaN weights.
        InfeasibleBudgetError: the budget is out of range or below what can be reached.
        UnknownNameError: an unknown method or layer name.
        CalibrationDataError: data is missing where the method needs it, or does not fit.
        SurgeryError: the result does not equal the masked original.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((32, 32, 3))
        >>> y = keras.layers.Conv2D(16, 3, activation="relu")(x)
        >>> y = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(y))
        >>> small = kfp.prune_model(keras.Model(x, y), method="l2", budget=0.5)
        >>> small.layers[1].filters
        8
    """
    graph = analyze(model)
    recipe = as_method(method, seed)
    compensator = _compensator(compensate, recipe, data)
    weights = Weights(graph.view)
    options = _Options(include, exclude, min_filters, channel_multiple)
    recipe = _observed(recipe, graph, weights, data, progress)
    plan, kept = _plan(graph, weights, recipe, _name(method, recipe), as_budget(budget), options, seed)
    return _apply(model, graph, plan, kept, compensator, data, verify, return_report, progress)


def plan_pruning(
    model: keras.Model,
    method: str | Method | Criterion = "l2",
    budget: float | Budget = 0.5,
    *,
    data: Any = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    min_filters: int = 1,
    channel_multiple: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> PruningPlan:
    """Decide what `prune_model` would remove, without removing it. Arguments as there.

    Returns:
        A `PruningPlan` to inspect, save and hand to `apply_plan`.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(8, 3, name="conv")(x)
        >>> y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(y))
        >>> plan = kfp.plan_pruning(keras.Model(x, y), "l1", kfp.FiltersBudget(keep=0.25))
        >>> len(plan.kept["conv"])
        2
    """
    graph = analyze(model)
    recipe = as_method(method, seed)
    options, weights = _Options(include, exclude, min_filters, channel_multiple), Weights(graph.view)
    recipe = _observed(recipe, graph, weights, data, progress)
    return _plan(graph, weights, recipe, _name(method, recipe), as_budget(budget), options, seed)[0]


def apply_plan(
    model: keras.Model,
    plan: PruningPlan,
    *,
    data: Any = None,
    compensate: str | Compensator = "auto",
    verify: bool = True,
    return_report: bool = False,
    progress: bool = True,
) -> keras.Model | tuple[keras.Model, PruneReport]:
    """Replay a plan on the model it was made for. Other arguments and the result as in `prune_model`.

    Args:
        model: the model, with the very weights that the plan was made from.
        plan: from `plan_pruning` or `PruningPlan.load`.

    Raises:
        PlanMismatchError: topology or weights are not those the plan was made for.
    """
    if not isinstance(plan, PruningPlan):
        raise PlanMismatchError(f"apply_plan takes a PruningPlan, see PruningPlan.load(path). Received: {plan!r}.")
    graph = analyze(model)
    check_data(data, graph.view)
    weights = Weights(graph.view)
    weights.check_finite()
    found = fingerprint(graph, weights)
    for part in ("topology", "weights"):
        if found[part] != plan.model.get(part):
            raise PlanMismatchError(
                f"the plan was made for model '{plan.model.get('name')}' with {part} {str(plan.model.get(part))[:12]}; "
                f"model '{model.name}' has {part} {found[part][:12]}. Make a new plan with plan_pruning()."
            )
    kept = units_of(plan, graph)
    plan = refreshed(plan, graph, CostModel(graph), kept)
    compensator = _compensator(compensate, as_method("l2", plan.seed), data)
    return _apply(model, graph, plan, kept, compensator, data, verify, return_report, progress)


class _Options:
    """Checked options that decide which groups may shrink, and how far."""

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


def _name(method: Any, recipe: Method) -> str:
    return method if isinstance(method, str) else recipe.name


def _observed(recipe: Method, graph: ChannelGraph, weights: Weights, data: Any, progress: bool) -> Method:
    """The recipe, its criterion having seen the calibration data."""
    check_data(data, graph.view)
    weights.check_finite()
    if recipe.criterion.requires and data is None:
        raise CalibrationDataError(
            f"{recipe.criterion!r} needs calibration inputs: pass data=. A few hundred unlabelled ones are enough."
        )
    return replace(recipe, criterion=recipe.criterion.observe(graph, weights, data, progress))


def _compensator(compensate: str | Compensator, recipe: Method, data: Any) -> Compensator | None:
    if compensate == "none":
        return None
    if compensate == "auto":
        return recipe.compensator if data is not None else None
    if not isinstance(compensate, Compensator):
        raise UnknownNameError(f"compensate is 'auto', 'none' or a compensator. Received: compensate={compensate!r}.")
    if compensate.requires and data is None:
        raise CalibrationDataError(f"{compensate!r} needs calibration inputs: pass data=. A few hundred are enough.")
    return compensate


def _plan(
    graph: ChannelGraph, weights: Weights, recipe: Method, name: str, budget: Budget, options: _Options, seed: int
) -> tuple[PruningPlan, dict[str, np.ndarray]]:
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
    options: _Options,
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


def _apply(
    model: keras.Model,
    graph: ChannelGraph,
    plan: PruningPlan,
    kept: dict[str, np.ndarray],
    compensator: Compensator | None,
    data: Any,
    verify: bool,
    return_report: bool,
    progress: bool,
) -> keras.Model | tuple[keras.Model, PruneReport]:
    cost = CostModel(graph)
    rebuilt = rebuild(model, graph, kept)
    keep = np.array([len(kept.get(g.name, g.units)) for g in graph.groups], int)
    if rebuilt.model.count_params() != cost.params(keep):
        raise SurgeryError(
            f"surgery failed: the rebuilt model has {rebuilt.model.count_params():,} parameters, "
            f"{cost.params(keep):,} were predicted."
        )
    difference = verify_surgery(graph, rebuilt, plan.seed, progress) if verify else None
    compensation = compensator.apply(rebuilt, data, progress) if compensator else "none"
    if not return_report:
        return rebuilt.model
    channels = kept_channels(graph, kept)
    before, after = cost.per_layer(cost.sizes), cost.per_layer(keep)
    rows = tuple(
        LayerRow(
            layer,
            channels.get(layer, {"channels": 0})["channels"],
            len(channels.get(layer, {"kept": ()})["kept"]),
            before[layer][0],
            after[layer][0],
            before[layer][1],
            after[layer][1],
        )
        for layer in cost.layers
    )
    approximate = {g.name: list(g.approximate) for g in graph.groups if g.approximate and len(kept[g.name]) < g.size}
    notes = list(rebuilt.notes)
    if graph.view.open_inputs:
        shapes = {graph.view.calls[r.call].path: graph.view.calls[r.call].output_shapes[0] for r in graph.view.inputs}
        notes.append(f"Open input sizes were counted as in {shapes}.")
    if graph.uncounted:
        notes.append(f"MACs of these layers are not known and not counted: {', '.join(graph.uncounted)}.")
    return rebuilt.model, PruneReport(plan, rows, approximate, difference, compensation, notes)
