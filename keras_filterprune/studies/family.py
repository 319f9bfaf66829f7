"""One network at several sizes: each is cut from the one before, refitted, and taught by the original."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
from rich.table import Table

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import (
    check_callable,
    check_packages,
    check_returned,
    entries,
    is_number,
    wrong,
)
from keras_filterprune.compensators import Reconstruct
from keras_filterprune.cost import CostModel, MacsBudget
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import InfeasibleBudgetError, InvalidValueError
from keras_filterprune.files import load_keras, replacing, save_keras
from keras_filterprune.folder import Folder
from keras_filterprune.graph.kept import Kept
from keras_filterprune.interrupts import interruptible
from keras_filterprune.latency import LatencyTable
from keras_filterprune.methods import Method, as_method
from keras_filterprune.probe.data import Samples, check_data
from keras_filterprune.probe.inputs import Inputs
from keras_filterprune.probe.trial import digest_of
from keras_filterprune.probe.weights import Weights
from keras_filterprune.pruning import prune_model
from keras_filterprune.rebuild.plan import PruningPlan, fingerprint, refreshed, units_of

# Of half as many steps each as a network that is cut once: it starts from one that was taught already.
_STEPS = 300
_UNTAUGHT = "; not taught"
_INDEX, _PARTS = "family.json", "model, method, data, budgets, options or fine-tuning"


@dataclass(frozen=True)
class FamilyRow:
    """What one size costs and still knows.

    Attributes:
        keep: the share of the multiply-accumulates that was asked for; 1 is the original.
        macs, params: of one sample.
        bytes: of the weights, as they are stored.
        score: what `evaluate` returned, None without.
        ms: what `latency` predicts in milliseconds, None without.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(2, 1)]
        >>> row = kfp.prune_family(keras.Sequential(layers), (0.5,)).rows[0]
        >>> row.keep, row.macs, row.params, row.bytes
        (1.0, 16704, 482, 1928)
    """

    keep: float
    macs: int
    params: int
    bytes: int
    score: float | None
    ms: float | None


@dataclass(frozen=True, eq=False)
class Family:
    """What `prune_family` made.

    Attributes:
        rows: one `FamilyRow` per size, the original first.
        models: the networks, the original first.
        plans: which of the original's units each of them keeps, as a `PruningPlan`; None for the original.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(2, 1)]
        >>> family = kfp.prune_family(keras.Sequential(layers), (0.5,), evaluate=lambda model: model.count_params())
        >>> family.smallest(200).count_params()
        242
    """

    rows: tuple[FamilyRow, ...]
    models: tuple[keras.Model, ...]
    plans: tuple[PruningPlan | None, ...] = ()

    def smallest(self, score: float) -> keras.Model:
        """The smallest network with at least this score.

        Raises:
            InfeasibleBudgetError: none has it, or nothing was scored.
        """
        for row, model in reversed(list(zip(self.rows, self.models, strict=True))):
            if row.score is not None and row.score >= score:
                return model
        best = max((row.score for row in self.rows if row.score is not None), default=None)
        raise InfeasibleBudgetError(f"no network of the family has a score of {score!r}; the best is {best!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"rows": [asdict(row) for row in self.rows]}

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table(title="one network at several sizes")
        for name in ("keep", "MACs", "parameters", "bytes", "score", "ms"):
            table.add_column(name, justify="right")
        for row in self.rows:
            counts = (f"{count:,}" for count in (row.macs, row.params, row.bytes))
            measured = ("" if value is None else f"{value:.4g}" for value in (row.score, row.ms))
            table.add_row(f"{row.keep:g}", *counts, *measured)
        return table

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw scores against what the networks cost, one panel per cost, into an image.

        Raises:
            InvalidValueError: nothing was scored.
            MissingPackageError: matplotlib is not installed.
            FileError: the image cannot be written.
        """
        check_packages("Family.plot", "plots", "matplotlib.figure")
        from matplotlib.figure import Figure

        scores = [row.score for row in self.rows if row.score is not None]
        if len(scores) < len(self.rows):
            raise InvalidValueError("there is no score to draw: pass evaluate= to prune_family.")
        costs = {"million MACs": [row.macs / 1e6 for row in self.rows], "kB": [row.bytes / 1e3 for row in self.rows]}
        if all(row.ms is not None for row in self.rows):
            costs["ms"] = [row.ms or 0.0 for row in self.rows]
        figure = Figure(figsize=(4 * len(costs), 4), layout="constrained")
        for number, (name, values) in enumerate(costs.items()):
            axes = figure.add_subplot(1, len(costs), number + 1)
            axes.plot(values, scores, marker="o")
            for row, place in zip(self.rows, zip(values, scores, strict=True), strict=True):
                axes.annotate(f"{row.keep:g}", place, textcoords="offset points", xytext=(4, -12))
            axes.set(xlabel=name, xlim=(0, None), ylabel="" if number else "score")
            axes.grid(alpha=0.3)
        with replacing(path) as draft:
            figure.savefig(draft, dpi=150)
        return Path(path)


@interruptible()
def prune_family(
    model: keras.Model,
    budgets: Sequence[float] = (0.75, 0.5, 0.35, 0.25),
    method: str | Method | Criterion = "auto",
    *,
    data: Any = None,
    evaluate: Callable[[keras.Model], float] | None = None,
    latency: LatencyTable | None = None,
    finetune: Callable[[keras.Model], Any] | None = None,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
    **options: Any,
) -> Family:
    """Prune a network to several sizes, each cut from the one before: the units of the smaller stay in the larger.

    Every size is one round of the method on what the size before has become. With data, the original then teaches it
    (`recover`, 300 steps), unless `compensate` says otherwise. One pass gives the whole front, which is the aim of CACP
    (Liu et al. 2021).

    Args:
        model: a built model. It is not modified.
        budgets: shares of its multiply-accumulates, falling, in (0, 1) ((0.75, 0.5, 0.35, 0.25)).
        method, data: as in `prune_model` ("auto", None).
        evaluate: `evaluate(model)` returns a score, the higher the better; of samples that decide nothing else (None).
        latency: table that predicts milliseconds (None).
        finetune: trains every size in place before the next is cut (None).
        folder: where to save every size as `keep-0.5.keras` as soon as it is made, and `family.json`; an interrupted
            family goes on from there (None).
        progress: progress bars on stderr (True).
        **options: `include`, `exclude`, `min_filters`, `channel_multiple`, `compensate`, `seed` and `verify`, as in
            `prune_model`.

    Returns:
        A `Family`: networks, table and plot.

    Raises:
        FilterPruneError: what `prune_model` raises.
        InvalidValueError: the budgets do not fall.
        FileError: the folder holds files of another family, or cannot be written.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(2, 1)]
        >>> family = kfp.prune_family(keras.Sequential(layers), (0.5, 0.25))
        >>> [model.layers[0].filters for model in family.models]
        [16, 8, 4]
    """
    shares = _falling(budgets)
    _check(evaluate, finetune, latency)
    seed = options.get("seed", 0)
    costs = CostModel(analyze(model))
    recipe = _in_one_round(as_method(method, seed, data is not None), costs.graph.model, seed)
    check_data(data := Samples.of(data), costs.graph.view)
    whole = costs.macs(costs.sizes)
    origin, settings = fingerprint(costs.graph, Weights(costs.graph.view)), sorted(options.items())
    key = origin, recipe.name, recipe.compensator, settings, shares, _digest_of(data, costs), finetune is None
    store = Folder("folder", folder, _INDEX, repr(key), "family", _PARTS)
    models: list[keras.Model] = [costs.graph.model]
    plans: list[PruningPlan | None] = [None]
    for share in shares:
        name = f"keep-{share:g}"
        if path := store.find(f"{name}.keras"):
            small, plan = load_keras(path), PruningPlan(**store.facts[name])
        else:
            given = options | {"data": data, "progress": progress, "return_report": True}
            small, report = prune_model(models[-1], recipe, _share_of(models[-1], share * whole), **given)
            plan = replace(report.plan, model=origin, budget=repr(MacsBudget(share)))
            plan = _of_the_original(plan, models[-1], plans[-1], costs)
            if _UNTAUGHT in report.compensation:
                why = report.compensation.partition(_UNTAUGHT)[2]
                warnings.warn(f"keep={share:g} is refitted{_UNTAUGHT}{why}", stacklevel=3)
            if finetune is not None:
                finetune(small)
            store.write(f"{name}.keras", partial(save_keras, small, overwrite=True), **{name: vars(plan)})
        models.append(small)
        plans.append(plan)
    models[0] = model
    rows = [_row(share, made, evaluate, latency) for share, made in zip((1.0, *shares), models, strict=True)]
    return Family(tuple(rows), tuple(models), tuple(plans))


def _in_one_round(recipe: Method, original: keras.Model, seed: int) -> Method:
    """A recipe for one size; where the network that is cut would teach, the original does."""
    compensator = recipe.compensator.between
    if isinstance(recipe.compensator, Reconstruct):
        compensator = Reconstruct(_STEPS, first=compensator, seed=seed, teacher=original)
    return replace(recipe, rounds=1, compensator=compensator)


def _digest_of(data: Samples | None, costs: CostModel) -> str | None:
    """Of the samples, whose labels a method may look at."""
    if data is None:
        return None
    parts = data.read(costs.graph.view)
    return digest_of(Inputs(parts, costs.graph.view, least=1), [part.labels for part in parts])


def _check(evaluate: Any, finetune: Any, latency: Any) -> None:
    check_callable("evaluate", evaluate, "a function of the model", optional=True)
    check_callable("finetune", finetune, "a function of the model", optional=True)
    if latency is not None and not isinstance(latency, LatencyTable):
        raise wrong("latency", latency, "a LatencyTable, or None")


def _of_the_original(
    plan: PruningPlan, model: keras.Model, before: PruningPlan | None, costs: CostModel
) -> PruningPlan:
    """The plan of one cut, of a model that `before` made of the original, as one of the original."""
    kept = Kept(costs.graph) if before is None else units_of(before, costs.graph)
    return refreshed(plan, costs, kept.then(units_of(plan, analyze(model))))


def _share_of(model: keras.Model, macs: float) -> MacsBudget:
    """So many multiply-accumulates, as a share of a model's."""
    costs = CostModel(analyze(model))
    return MacsBudget(keep=min(1.0, macs / costs.macs(costs.sizes)))


def _falling(budgets: Any) -> list[float]:
    shares = entries(budgets)
    falling = all(a > b for a, b in itertools.pairwise(shares)) if all(map(is_number, shares)) else False
    if not shares or not falling or not 0 < shares[-1] <= shares[0] < 1:
        raise wrong("budgets", budgets, "shares of the multiply-accumulates, falling, in (0, 1)")
    return [float(share) for share in shares]


def _row(share: float, model: keras.Model, evaluate: Any, latency: LatencyTable | None) -> FamilyRow:
    costs = CostModel(analyze(model))
    score = None
    if evaluate is not None:
        found = evaluate(model)
        check_returned(is_number(found), "evaluate", "return a number", found)
        score = float(found)
    size = sum(keras.ops.convert_to_numpy(weight.value).nbytes for weight in model.weights)
    ms = None if latency is None else latency.predict(model)
    return FamilyRow(share, costs.macs(costs.sizes), costs.params(costs.sizes), size, score, ms)
