"""prune_layers: whole blocks and layers, the least important ones at once (Elkerdawy et al. 2020, "LayerPrune")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, overload

import keras
import numpy as np

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_flags, check_integer, renamed_arguments
from keras_filterprune.cost import Budget, Cost, CostModel, as_cost_budget
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import InfeasibleBudgetError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.interrupts import interruptible
from keras_filterprune.latency import SizedOperators
from keras_filterprune.layer_pruning.importance import Importance, as_importance
from keras_filterprune.layer_pruning.removal import verify_removal, without_units
from keras_filterprune.layer_pruning.units import Unit, find_units
from keras_filterprune.measuring import require_faster
from keras_filterprune.outcome import Run
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import check_data
from keras_filterprune.pruning.options import Options
from keras_filterprune.report import LayerReport, UnitRow


@overload
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
    return_report: Literal[True],
    progress: bool = True,
) -> tuple[keras.Model, LayerReport]: ...


@overload
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
    return_report: Literal[False] = False,
    progress: bool = True,
) -> keras.Model: ...


@interruptible()
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
        model: a built `keras.Model`, functional, Sequential or subclassed. It is not modified.
        n_layers: how many units go; or
        budget: what may be left: a fraction of the MACs, `MacsBudget`, `ParamsBudget`, `BopsBudget` or `LatencyBudget`.
        method: a method's name or a criterion object, whose mean over a unit's filters counts; "block_gate", what the
            loss loses with what a unit adds; "ensemble", the sum of ranks by l2, taylor and taylor_gate; or
            "imprinting", what a unit adds to the accuracy of a classifier of class means ("l2").
        data: calibration inputs, with labels for "block_gate", "ensemble", "imprinting" and methods that need them
            (None).
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
        UnknownNameError: an unknown method; a name that matches no layer.
        InvalidValueError: the method says nothing about layers, or an argument is out of range.
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
    wanted, run = _checked(n_layers, budget), Run(data, seed, verify, progress)
    check_flags(projections=projections, return_report=return_report)
    costs = CostModel(analyze(model))
    graph = costs.graph
    check_data(data, graph.view)
    Weights(graph.view).check_finite()
    goal = _Goal(n_layers, wanted, _Spent(costs.macs if wanted is None else wanted.cost(costs), costs))
    units, unremovable = _allowed(graph, projections, Options(include, exclude, 1, 1))
    goal.check(graph, units, unremovable)
    found = _scored(graph, units, unremovable, importance, run)
    goal.check(graph, found.units, found.unremovable)
    gone = goal.least_important(found)
    small = without_units(graph.model, graph, gone)
    difference = verify_removal(graph, small, gone, seed) if verify else None
    notes = []
    if verify and gone and goal.budget is not None and goal.budget.prices is not None:
        notes.append(require_faster(model, small, goal.budget.prices))
    return (small, _report(costs, found, goal, gone, difference, notes)) if return_report else small


class _Spent:
    """What a model costs, and what some units of it do; their layers are called nowhere else."""

    def __init__(self, cost: Cost, costs: CostModel):
        self.whole, self._by_layer = cost(costs.sizes), cost.by_layer(costs.sizes)

    def by(self, units: Iterable[Unit]) -> int:
        return sum(self._by_layer.get(layer, 0) for unit in units for layer in unit.layers)

    def without(self, units: Iterable[Unit]) -> int:
        return self.whole - self.by(units)


@dataclass(frozen=True, eq=False)
class _Scored:
    """Units that may go.

    Attributes:
        criterion: what scored them, as text.
        units: those with a score.
        scores: float64 of shape (units,).
        unremovable: {layer: why not} of all others.
    """

    criterion: str
    units: list[Unit]
    scores: np.ndarray
    unremovable: dict[str, str]


@dataclass(frozen=True, eq=False)
class _Goal:
    """How much goes: a number of units, or as many as it takes to meet a budget."""

    n_layers: int | None
    budget: Budget | None
    spent: _Spent

    def check(self, graph: ChannelGraph, units: list[Unit], unremovable: dict[str, str]) -> None:
        """Raise `InfeasibleBudgetError` if all these units are not enough."""
        if not units:
            reasons = "; ".join(f"'{layer}' {why}" for layer, why in list(unremovable.items())[:3])
            raise InfeasibleBudgetError(
                f"model '{graph.view.name}' has no layer that can be removed: that takes a block with an identity "
                f"shortcut, or a layer of equal input and output shape. {reasons or 'No layer of it multiplies'}."
            )
        if self.budget is None:
            if self.n_layers is not None and self.n_layers > len(units):
                names = ", ".join(f"'{unit.name}'" for unit in units)
                raise InfeasibleBudgetError(
                    f"n_layers={self.n_layers}, and {len(units)} units can be removed: {names}."
                )
            return
        full, least = self.spent.whole, self.spent.without(units)
        limit = self.budget.limit(full)
        if least > limit:
            raise InfeasibleBudgetError(
                f"{self.budget!r} asks for at most {limit:,} {self.budget.unit}; without all {len(units)} units "
                f"that can be removed, {least:,} are left ({100 * least / full:.1f} % of {full:,}). prune_model makes "
                "the rest narrower."
            )

    def least_important(self, found: _Scored) -> list[Unit]:
        """Units that go, the least important first; not those without which the budget is met as well."""
        order = [found.units[number] for number in np.argsort(found.scores, kind="stable")]
        if self.budget is None:
            return order[: self.n_layers]
        limit, gone = self.budget.limit(self.spent.whole), list[Unit]()
        for unit in order:
            if self.spent.without(gone) <= limit:
                break
            gone.append(unit)
        for unit in reversed(gone.copy()):
            others = [other for other in gone if other is not unit]
            if self.spent.without(others) <= limit:
                gone = others
        return gone


def _checked(n_layers: Any, budget: Any) -> Budget | None:
    """The budget as an object, None where units are counted."""
    if (n_layers is None) == (budget is None):
        raise InfeasibleBudgetError(
            f"prune_layers expects n_layers= or budget=. Received: n_layers={n_layers!r}, budget={budget!r}."
        )
    if budget is None:
        check_integer("n_layers", n_layers, "a number of units")
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
    graph: ChannelGraph, units: list[Unit], unremovable: dict[str, str], importance: Importance, run: Run
) -> _Scored:
    """Units with a score; those without are unremovable."""
    scores = importance.scores(graph, units, run.data, run.progress)
    said = ~np.isnan(scores)
    silent = {
        layer: f"is in '{unit.name}', of which {importance!r} says nothing"
        for unit, known in zip(units, said, strict=True)
        for layer in (() if known else unit.layers)
    }
    known = [unit for unit, known in zip(units, said, strict=True) if known]
    return _Scored(repr(importance), known, scores[said], unremovable | silent)


def _report(
    costs: CostModel,
    found: _Scored,
    goal: _Goal,
    gone: list[Unit],
    difference: float | None,
    notes: list[str],
) -> LayerReport:
    rows = tuple(
        UnitRow(unit.name, unit.kind, unit.layers, float(score), goal.spent.by([unit]), unit in gone)
        for unit, score in zip(found.units, found.scores, strict=True)
    )
    spent = {kind: _Spent(cost, costs) for kind, cost in (("macs", costs.macs), ("params", costs.params))}
    whole = SizedOperators.of(costs.graph, costs.sizes)
    dropped = {layer for unit in gone for layer in unit.layers}
    channels = {name: c["channels"] for name, c in Kept(costs.graph).channels.items()}
    return LayerReport(
        model=costs.graph.view.name,
        criterion=found.criterion,
        units=rows,
        unremovable=found.unremovable,
        cost={kind: (cost.whole, cost.without(gone)) for kind, cost in spent.items()},
        unit="MACs" if goal.budget is None else goal.budget.unit,
        verification=difference,
        notes=notes,
        kept={name: np.arange(0 if name in dropped else width) for name, width in channels.items()},
        operators=(whole, whole.without(dropped)),
        prices=None if goal.budget is None else goal.budget.prices,
    )
