"""prune_model and its two halves, plan_pruning and apply_plan: orchestration only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, overload

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_flags, wrong
from keras_filterprune.compensators import Adapters, Compensator, Reconstruct
from keras_filterprune.compensators.adapted_models import merge_adapters
from keras_filterprune.compensators.adapter_costs import counts_params
from keras_filterprune.compensators.by_name import as_compensator
from keras_filterprune.cost import Budget, CostModel, Tiles, as_budget
from keras_filterprune.criteria import Criterion, Dead
from keras_filterprune.criteria.dead import warn_of_none
from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.interrupts import interruptible
from keras_filterprune.measuring import require_faster
from keras_filterprune.methods import Method, as_method, list_methods
from keras_filterprune.outcome import Outcome, Run, operate
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import check_data
from keras_filterprune.probe.proof import prove_linear
from keras_filterprune.pruning.adapted import cut_by, task_for
from keras_filterprune.pruning.options import Options
from keras_filterprune.pruning.planner import Planner
from keras_filterprune.pruning.rounds import carry_out, choose
from keras_filterprune.pruning.task import Task
from keras_filterprune.rebuild.plan import PruningPlan, check_fingerprint, refreshed, units_of
from keras_filterprune.report import PruneReport
from keras_filterprune.report.build import prune_report


@overload
def prune_model(
    model: keras.Model,
    method: str | Method | Criterion = "auto",
    budget: float | Budget = 0.5,
    *,
    data: Any = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    min_filters: int = 1,
    channel_multiple: int | str | Tiles = 1,
    compensate: str | Compensator = "auto",
    seconds: float | None = None,
    finetune: Callable[[keras.Model], Any] | None = None,
    seed: int = 0,
    verify: bool = True,
    return_report: Literal[True],
    progress: bool = True,
) -> tuple[keras.Model, PruneReport]: ...


@overload
def prune_model(
    model: keras.Model,
    method: str | Method | Criterion = "auto",
    budget: float | Budget = 0.5,
    *,
    data: Any = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    min_filters: int = 1,
    channel_multiple: int | str | Tiles = 1,
    compensate: str | Compensator = "auto",
    seconds: float | None = None,
    finetune: Callable[[keras.Model], Any] | None = None,
    seed: int = 0,
    verify: bool = True,
    return_report: Literal[False] = False,
    progress: bool = True,
) -> keras.Model: ...


@interruptible()
def prune_model(
    model: keras.Model,
    method: str | Method | Criterion = "auto",
    budget: float | Budget = 0.5,
    *,
    data: Any = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    min_filters: int = 1,
    channel_multiple: int | str | Tiles = 1,
    compensate: str | Compensator = "auto",
    seconds: float | None = None,
    finetune: Callable[[keras.Model], Any] | None = None,
    seed: int = 0,
    verify: bool = True,
    return_report: bool = False,
    progress: bool = True,
) -> keras.Model | tuple[keras.Model, PruneReport]:
    """Rebuild a model with fewer filters, within a budget, and prove that nothing else changed.

    Args:
        model: a built `keras.Model`, functional, Sequential or subclassed. It is not modified.
        method: a name from `list_methods()`, or a `Method` or criterion object, as `kfp.criteria.L2(aggregate="max")`.
            "auto" is the best measured one: with data `"pursuit"`, and then up to two minutes in which the original
            teaches (`Reconstruct`); without, `"l2"` and `Linear` ("auto").
        budget: the fraction of multiply-accumulates to keep, in (0, 1]; or a `MacsBudget`, `ParamsBudget`,
            `BopsBudget`, `LatencyBudget`, `FiltersBudget` or `RedundancyBudget`. Never exceeded; met within 1 % or one
            unit (one `channel_multiple`). A latency is also measured, and refused if not below the original's (0.5).
        data: calibration inputs: array(s), `(x, y)`, `tf.data.Dataset`, `PyDataset`, a PyTorch loader or batches, of
            which the first 2 048 samples are read, once. Labels are looked at by methods that need them alone (None).
        include, exclude: layer names or globs; only groups with filters in a matching layer are pruned (None: all), or
            such groups stay whole (None).
        min_filters: the fewest units a group keeps (1).
        channel_multiple: kept counts are multiples of this, or the whole group (1); "auto", multiples of 8 in groups of
            32 or more and any in narrower ones; or the target whose steps they fit: "arm64", "arm64-int8", "arm32" (8),
            "arm64-dotprod-int8", "arm64-fp16", "x86-avx512-int8" (16), "x86-avx512" (32, 16); or `budgets.Tiles`.
        compensate: "auto" (default), the method's compensator, if it has the data it needs; "none"; a name
            ("least_squares", "reconstruct", "bn", "mean_shift", "linear", "merge", "adapter"); or a compensator object.
        seconds: the most that `"reconstruct"` may train for, 0 for not at all (None: 120 in `"auto"`, else no limit).
            How far it comes depends on the machine then; `Reconstruct(steps=)` does not.
        finetune: called with the smaller model after every round of the method (most have one; `"pursuit"`,
            `"search"`, `"fp_omp_search"` and a `Method` with `rounds` have more) and every group of `"hu_ga"`, to train
            it in place, say with `fit` (None).
        seed: seed of everything random (0).
        verify, return_report, progress: compare with the masked original on a random batch (True), return
            `(model, PruneReport)` (False), show progress bars on stderr (True).

    Returns:
        An ordinary `keras.Model`, compiled like the original if that was; with `return_report`, also the report.

    Raises:
        UnsupportedModelError: the model is not built or cannot be opened, or weights are NaN.
        InfeasibleBudgetError: the budget is out of range or below what can be reached.
        UnknownNameError, InvalidValueError: no such method, target or layer; another argument is out of range.
        UnsupportedLayerError: a handler is wrong about a layer of yours.
        CalibrationDataError: data is missing where the method needs it, or does not fit.
        SurgeryError: the result does not equal the masked original.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(2, 1)]
        >>> kfp.prune_model(keras.Sequential(layers), budget=0.5).layers[0].filters
        8
    """
    recipe = as_method(method, seed, data is not None)
    run = Run(data, seed, verify, progress, _compensator(compensate, recipe, data, seconds), finetune)
    check_flags(return_report=return_report)
    options, budget = Options(include, exclude, min_filters, channel_multiple), as_budget(budget)
    costs = CostModel(analyze(model))
    check_data(data, costs.graph.view)
    planner = Planner(task_for(costs.graph.model, costs, recipe, budget, options, run))
    outcome = carry_out(planner)
    small = _merged(outcome, repr(budget), run, recipe.criterion)
    outcome = _priced(costs.graph.model, small, planner.task, outcome)
    if not return_report:
        return small
    plan = planner.plan(_name(method, recipe), outcome.kept)
    if plan.method == "auto":
        outcome = replace(outcome, notes=(*outcome.notes, f"auto: {recipe.name}, {type(run.compensator).__name__}."))
    return small, _report(costs, small, plan, outcome, channel_multiple, budget)


@interruptible()
def plan_pruning(
    model: keras.Model,
    method: str | Method | Criterion = "auto",
    budget: float | Budget = 0.5,
    *,
    data: Any = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    min_filters: int = 1,
    channel_multiple: int | str | Tiles = 1,
    seed: int = 0,
    progress: bool = True,
) -> PruningPlan:
    """Decide what `prune_model` would remove, without removing it.

    Args:
        model: a built `keras.Model`, functional, Sequential or subclassed. It is not modified.
        method, budget, data, include, exclude, min_filters, channel_multiple, seed, progress: as in `prune_model`.

    Returns:
        A `PruningPlan` to inspect, save and hand to `apply_plan`.

    Raises:
        FilterPruneError: what `prune_model` raises before it removes anything.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(8, 3, name="conv")(x)
        >>> y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(y))
        >>> plan = kfp.plan_pruning(keras.Model(x, y), "l1", kfp.FiltersBudget(keep=0.25))
        >>> len(plan.kept["conv"])
        2
    """
    recipe = as_method(method, seed, data is not None)
    run = Run(data, int(seed), False, progress, _compensator("auto", recipe, data))
    options, budget = Options(include, exclude, min_filters, channel_multiple), as_budget(budget)
    costs = CostModel(analyze(model))
    check_data(data, costs.graph.view)
    planner = Planner(task_for(costs.graph.model, costs, recipe, budget, options, run))
    return planner.plan(_name(method, recipe), choose(planner))


@overload
def apply_plan(
    model: keras.Model,
    plan: PruningPlan,
    *,
    data: Any = None,
    compensate: str | Compensator = "auto",
    seconds: float | None = None,
    verify: bool = True,
    return_report: Literal[True],
    progress: bool = True,
) -> tuple[keras.Model, PruneReport]: ...


@overload
def apply_plan(
    model: keras.Model,
    plan: PruningPlan,
    *,
    data: Any = None,
    compensate: str | Compensator = "auto",
    seconds: float | None = None,
    verify: bool = True,
    return_report: Literal[False] = False,
    progress: bool = True,
) -> keras.Model: ...


@interruptible()
def apply_plan(
    model: keras.Model,
    plan: PruningPlan,
    *,
    data: Any = None,
    compensate: str | Compensator = "auto",
    seconds: float | None = None,
    verify: bool = True,
    return_report: bool = False,
    progress: bool = True,
) -> keras.Model | tuple[keras.Model, PruneReport]:
    """Replay a plan on the model it was made for.

    Args:
        model: the model, with the very weights that the plan was made from. It is not modified.
        plan: from `plan_pruning` or `PruningPlan.load`.
        data, compensate, seconds, verify, return_report, progress: as in `prune_model`. With `compensate="auto"` the
            compensator is that of the plan's method, batch normalization recalibration for a method without a
            registered name.

    Returns:
        An ordinary `keras.Model`, as from `prune_model`; with `return_report`, also the report.

    Raises:
        PlanMismatchError: topology or weights are not those the plan was made for.
        SurgeryError: the result does not equal the masked original.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> model = keras.Sequential(layers)
        >>> plan = kfp.plan_pruning(model, "l2", 0.5)
        >>> kfp.apply_plan(model, plan).get_layer("conv").filters
        4
    """
    if not isinstance(plan, PruningPlan):
        raise wrong("plan", plan, "a PruningPlan, see PruningPlan.load(path)")
    known = [name for name, _, _ in list_methods()]
    recipe = as_method(plan.method if plan.method in known else "l2", plan.seed, data is not None)
    run = Run(data, plan.seed, verify, progress, _compensator(compensate, recipe, data, seconds))
    check_flags(return_report=return_report)
    costs = CostModel(analyze(model))
    check_data(data, costs.graph.view)
    subject, wide = cut_by(plan, costs.graph.model, costs, run)
    weights = Weights(wide.graph.view)
    weights.check_finite()
    prove_linear(wide.graph.view)
    check_fingerprint(plan, wide.graph, weights)
    kept = units_of(plan, wide.graph)
    outcome = operate(subject, wide, kept, run)
    small = _merged(outcome, plan.budget, run)
    return (small, _report(costs, small, refreshed(plan, wide, kept), outcome)) if return_report else small


def _name(method: Any, recipe: Method) -> str:
    return method if isinstance(method, str) else recipe.name


def _compensator(
    compensate: str | Compensator, recipe: Method, data: Any, seconds: float | None = None
) -> Compensator | None:
    chosen: Compensator | None = None
    how = compensate if isinstance(compensate, str) else None
    if how == "auto":
        chosen = None if recipe.compensator.requires and data is None else recipe.compensator
    elif how != "none":
        chosen = as_compensator(compensate)
        if chosen.requires and data is None:
            raise CalibrationDataError(f"{chosen!r} needs calibration inputs: pass data=. A few hundred are enough.")
    if seconds is None:
        return chosen
    if not isinstance(chosen, Reconstruct):
        raise wrong("seconds", seconds, "a limit for compensate='reconstruct' (method='auto' with data=), else None")
    return chosen.within(seconds)


def _merged(outcome: Outcome, budget: str, run: Run, criterion: Criterion | None = None) -> keras.Model:
    """The smaller model; adapters that cost more than they save are merged."""
    if outcome.kept.whole and isinstance(criterion, Dead):
        warn_of_none()
    between_adapters = isinstance(run.compensator, Adapters)
    return merge_adapters(outcome.model, counts_params(budget)) if between_adapters else outcome.model


def _priced(model: keras.Model, small: keras.Model, task: Task, outcome: Outcome) -> Outcome:
    """With what can be said of prices; where they were measured on this device, so is the smaller model."""
    prices = task.budget.prices
    if prices is None:
        return outcome
    notes = [] if prices.tiles == Tiles(1) else [f"{prices!r} rises at widths that are {prices.tiles}."]
    if task.spent.unknown:
        named = ", ".join(f"{layer} ({kind})" for layer, kind in task.spent.unknown.items())
        notes.append(f"Without a price, and left out: {named}.")
    if task.run.verify and not outcome.kept.whole:
        notes.append(require_faster(model, small, prices))
    return replace(outcome, notes=(*outcome.notes, *notes))


def _report(
    original: CostModel,
    small: keras.Model,
    plan: PruningPlan,
    outcome: Outcome,
    channel_multiple: int | str | Tiles = 1,
    budget: Budget | None = None,
) -> PruneReport:
    """What was done to the original, given the smaller model."""
    final = None if small is outcome.model else CostModel(analyze(small))
    return prune_report(original, plan, outcome, final, channel_multiple, budget)
