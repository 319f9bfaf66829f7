"""prune_model and its two halves, plan_pruning and apply_plan: orchestration only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.compensators import Compensator
from keras_filterprune.cost import Budget, CostModel, as_budget
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import CalibrationDataError, PlanMismatchError, SurgeryError, UnknownNameError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.methods import Method, as_method, list_methods
from keras_filterprune.planning import Options, make_plan
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import check_data
from keras_filterprune.rebuild.clone import rebuild
from keras_filterprune.rebuild.plan import PruningPlan, fingerprint, kept_channels, refreshed, units_of
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
    options = Options(include, exclude, min_filters, channel_multiple)
    recipe = _observed(recipe, graph, weights, data, progress)
    plan, kept = make_plan(graph, weights, recipe, _name(method, recipe), as_budget(budget), options, seed)
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
    options, weights = Options(include, exclude, min_filters, channel_multiple), Weights(graph.view)
    recipe = _observed(recipe, graph, weights, data, progress)
    return make_plan(graph, weights, recipe, _name(method, recipe), as_budget(budget), options, seed)[0]


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

    With `compensate="auto"` the compensator is that of the plan's method, batch normalization recalibration for a
    method without a registered name.

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
    known = [name for name, _, _ in list_methods()]
    recipe = as_method(plan.method if plan.method in known else "l2", plan.seed)
    compensator = _compensator(compensate, recipe, data)
    return _apply(model, graph, plan, kept, compensator, data, verify, return_report, progress)


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
