"""prune_layers: whole blocks and layers, the least important ones at once (Elkerdawy et al. 2020, "LayerPrune")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import renamed_arguments
from keras_filterprune.cost import Budget, Cost, CostModel, as_cost_budget
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import InfeasibleBudgetError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.latency import SizedOperators
from keras_filterprune.layer_pruning.importance import Importance, as_importance
from keras_filterprune.layer_pruning.removal import verify_removal, without_units
from keras_filterprune.layer_pruning.units import Unit, find_units
from keras_filterprune.measuring import require_faster
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import check_data
from keras_filterprune.pruning.options import Options
from keras_filterprune.report import LayerReport, UnitRow


@renamed_arguments(criterion="method")
def prune_layers(
    model: keras.Model,
    n_layers: int | None = None,
    budget: float | Budget | None = None,
    *,
    method: str | Criterion | Importance = "l2",
    data: Any = None,
    projections: bool = False,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    seed: int = 0,
    verify: bool = True,
    return_report: bool = False,
    progress: bool = True,
) -> keras.Model | tuple[keras.Model, LayerReport]:
    """Rebuild a model without its least important blocks or layers, in one shot, and prove that nothing else changed.

    Removable are residual blocks with an identity shortcut, and layers of equal input and output shape where the
    network is one tensor wide, with their normalization and activation. Train the result; before or after,
    `prune_model` makes it narrower.

    Args:
        model: a built functional or Sequential model, channels last. It is not modified.
        n_layers: how many units go; or
        budget: what may be left: a fraction of the MACs, `MacsBudget`, `ParamsBudget`, `BopsBudget` or `LatencyBudget`.
        method: a method's name or a criterion object, whose mean over a unit's filters counts; "ensemble", the sum
            of ranks by l2, taylor and taylor_gate; or "imprinting", what a unit adds to the accuracy of a classifier of
            class means ("l2").
        data: calibration inputs, with labels for "taylor", "taylor_gate", "ensemble" and "imprinting" (None).
        projections: also offer the main branch of a block next to a projection shortcut (False).
        include: names or globs; only units with a layer that matches may go (None: all).
        exclude: names or globs; units with a layer that matches stay (None).
        seed: of everything random (0).
        verify: compare with the original that skips the units, on a random batch (True).
        return_report: return `(model, LayerReport)` (False).
        progress: progress bars on stderr (True).

    Returns:
        An ordinary `keras.Model`, compiled like the original if that was; with `return_report`, also the report.

    Raises:
        InfeasibleBudgetError: nothing can be removed, or not as much as is asked for.
        UnknownNameError: an unknown method, or one that says nothing about layers; a name that matches no layer.
        CalibrationDataError: data is missing where the criterion needs it, or does not fit.
        SurgeryError: the result does not equal the original without the units.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> inputs = keras.Input((8, 8, 4))
        >>> x = inputs
        >>> for name in ("one", "two", "three"):
        ...     x = keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same", name=name)(x)])
        ...
        >>> small = kfp.prune_layers(keras.Model(inputs, keras.layers.Flatten()(x)), n_layers=1)
        >>> sum(layer.name in ("one", "two", "three") for layer in small.layers)
        2
    """
    importance = as_importance(method, seed, data is not None)
    budget = _checked(n_layers, budget)
    graph = analyze(model)
    check_data(data, graph.view)
    Weights(graph.view).check_finite()
    units, unremovable = _allowed(graph, projections, Options(include, exclude, 1, 1))
    units, scores = _scored(graph, units, unremovable, importance, data, progress)
    costs = CostModel(graph)
    gone = _count(units, scores, n_layers) if budget is None else _within(units, scores, costs, budget)
    small = without_units(model, graph, gone)
    difference = verify_removal(graph, small, gone, seed) if verify else None
    timed = verify and gone and budget is not None and budget.prices is not None
    notes = [require_faster(model, small, budget.prices)] if timed else []
    if not return_report:
        return small
    return small, _report(costs, repr(importance), units, scores, gone, budget, unremovable, difference, notes)


def _report(
    costs: CostModel,
    criterion: str,
    units: list[Unit],
    scores: np.ndarray,
    gone: list[Unit],
    budget: Budget | None,
    unremovable: dict[str, str],
    difference: float | None,
    notes: list[str],
) -> LayerReport:
    kind, price = ("MACs", costs.macs) if budget is None else (budget.unit, budget.cost(costs))
    rows = tuple(
        UnitRow(unit.name, unit.kind, unit.layers, float(score), _spent(unit, price, costs), unit in gone)
        for unit, score in zip(units, scores, strict=True)
    )
    cost = {k: (c(costs.sizes), _left(gone, c, costs)) for k, c in (("macs", costs.macs), ("params", costs.params))}
    whole = SizedOperators.of(costs.graph, costs.sizes)
    operators = whole, whole.without(layer for unit in gone for layer in unit.layers)
    prices = None if budget is None else budget.prices
    found = rows, unremovable, cost, kind, difference, notes, operators, prices
    return LayerReport(costs.graph.view.name, criterion, *found)


def _checked(n_layers: Any, budget: Any) -> Budget | None:
    """The budget as an object, None where units are counted."""
    if (n_layers is None) == (budget is None):
        raise InfeasibleBudgetError(
            f"prune_layers expects n_layers= or budget=. Received: n_layers={n_layers!r}, budget={budget!r}."
        )
    if budget is None:
        return None
    return as_cost_budget(budget, "prune_layers removes whole layers, by n_layers or until a cost is met")


def _allowed(graph: ChannelGraph, projections: bool, options: Options) -> tuple[list[Unit], dict[str, str]]:
    """Units that may go, and {layer: why not} of the others'."""
    options.check_names(graph)
    found, unremovable = find_units(graph, projections)
    units = []
    for unit in found:
        why = options.refusal([unit.name, *unit.layers])
        if why is None:
            units.append(unit)
        else:
            unremovable |= dict.fromkeys(unit.layers, why)
    return units, unremovable


def _scored(
    graph: ChannelGraph,
    units: list[Unit],
    unremovable: dict[str, str],
    importance: Importance,
    data: Any,
    progress: bool,
) -> tuple[list[Unit], np.ndarray]:
    """Units with a score, and the scores; the others are entered in `unremovable`."""
    scores = importance.scores(graph, units, data, progress) if units else np.zeros(0)
    for unit, score in zip(units, scores, strict=True):
        if np.isnan(score):
            unremovable |= dict.fromkeys(unit.layers, f"is in '{unit.name}', of which {importance!r} says nothing")
    units = [unit for unit, score in zip(units, scores, strict=True) if not np.isnan(score)]
    if not units:
        reasons = "; ".join(f"'{layer}' {why}" for layer, why in list(unremovable.items())[:3])
        raise InfeasibleBudgetError(
            f"model '{graph.view.name}' has no layer that can be removed: that takes a block with an identity "
            f"shortcut, or a layer of equal input and output shape. {reasons or 'No layer of it multiplies'}."
        )
    return units, scores[~np.isnan(scores)]


def _count(units: Sequence[Unit], scores: np.ndarray, n_layers: Any) -> list[Unit]:
    """The `n_layers` least important units."""
    if isinstance(n_layers, bool) or not isinstance(n_layers, Integral) or n_layers < 1:
        raise InfeasibleBudgetError(f"n_layers is a positive number of units. Received: n_layers={n_layers!r}.")
    if n_layers > len(units):
        names = ", ".join(f"'{unit.name}'" for unit in units)
        raise InfeasibleBudgetError(f"n_layers={n_layers}, and {len(units)} units can be removed: {names}.")
    return [units[number] for number in np.argsort(scores, kind="stable")[:n_layers]]


def _within(units: Sequence[Unit], scores: np.ndarray, costs: CostModel, budget: Budget) -> list[Unit]:
    """The least important units until the budget is met, less those that then fit again, the most important first."""
    price = budget.cost(costs)
    full, least = price(costs.sizes), _left(units, price, costs)
    limit = budget.limit(full)
    if least > limit:
        raise InfeasibleBudgetError(
            f"{budget} asks for at most {limit:,} {budget.unit}; without all {len(units)} units that can be removed, "
            f"{least:,} are left ({100 * least / full:.1f} % of {full:,}). prune_model makes the rest narrower."
        )
    gone: list[Unit] = []
    for number in np.argsort(scores, kind="stable"):
        if _left(gone, price, costs) <= limit:
            break
        gone.append(units[number])
    for unit in reversed(gone.copy()):
        others = [other for other in gone if other is not unit]
        if _left(others, price, costs) <= limit:
            gone = others
    return gone


def _left(gone: Iterable[Unit], price: Cost, costs: CostModel) -> Any:
    """What a model costs without some units; their layers are called nowhere else."""
    return price(costs.sizes) - sum(_spent(unit, price, costs) for unit in gone)


def _spent(unit: Unit, price: Cost, costs: CostModel) -> Any:
    by_layer = price.by_layer(costs.sizes)
    return sum(by_layer.get(layer, 0) for layer in unit.layers)
