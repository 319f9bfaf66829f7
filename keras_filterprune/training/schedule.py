"""Callbacks that remove filters little by little while `fit` runs: masked for good, or shrunk and free to come back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_integer, check_number, entries
from keras_filterprune.cost import CostModel, MacsBudget
from keras_filterprune.cost.base import check_fraction
from keras_filterprune.criteria import Criterion, Dead
from keras_filterprune.errors import InfeasibleBudgetError, UnsupportedModelError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import named_weights, scale_slices, view_model
from keras_filterprune.graph.types import ChannelGraph, Group
from keras_filterprune.methods import Method, as_method
from keras_filterprune.outcome import Run
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import Samples
from keras_filterprune.pruning.options import Options
from keras_filterprune.pruning.planner import Planner
from keras_filterprune.pruning.task import Task
from keras_filterprune.tracing import trace_model
from keras_filterprune.training.base import wrappers_of
from keras_filterprune.training.callback import TrainingCallback
from keras_filterprune.training.filter_pruning import FilterPruning
from keras_filterprune.training.logs import if_pruned
from keras_filterprune.training.wrapping import maskable, stripped


class _Lasting(Criterion):
    """A criterion under which units that are dead already go first."""

    def __init__(self, criterion: Criterion):
        self.inner = criterion
        self.requires = criterion.requires

    def __repr__(self) -> str:
        return repr(self.inner)

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        return _Lasting(self.inner.observe(graph, weights, data, progress))

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        scores = self.inner.scores(group, weights).copy()
        # Below every score, in a ranking by score per cost too.
        scores[Dead().scores(group, weights) == 0] = -1e30
        return scores

    def refuses(self, group: Group) -> str | None:
        return self.inner.refuses(group) or Dead().refuses(group)


class Gradual(TrainingCallback):
    """Base of the callbacks that follow a list of kept fractions."""

    def __init__(
        self,
        keep: float | Sequence[float],
        method: str | Method | Criterion = "l2",
        *,
        data: Any = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        min_filters: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        self.keep = [check_fraction("keep", fraction) for fraction in entries(keep)]
        if not self.keep or any(b > a for a, b in zip(self.keep, self.keep[1:], strict=False)):
            raise InfeasibleBudgetError(
                f"keep is a fraction, or one per epoch that never rises: filters do not come back. Received: "
                f"keep={self.keep!r}."
            )
        self.recipe = as_method(method, seed, data is not None)
        self.data, self.seed = Samples.of(data), seed
        self.options = Options(include, exclude, min_filters, 1)
        self._logs: dict[str, float] = {}

    def graph_of(self, model: keras.Model) -> ChannelGraph:
        """The groups of a plain model that are looked at."""
        return trace_model(model)

    def choose(self, model: keras.Model, epoch: int, lasting: bool) -> Kept:
        """The units of a plain model that stay at an epoch, `lasting` without dead ones; also notes the logs."""
        criterion = _Lasting(self.recipe.criterion) if lasting else self.recipe.criterion
        planner = self.planner(model, epoch, replace(self.recipe, criterion=criterion, rounds=1))
        kept = planner.select(planner.counts())
        if lasting:
            kept = _both(kept, living(planner.task.graph))
        self._logs = if_pruned(planner.task.costs, kept.counts)
        return kept

    def planner(self, model: keras.Model, epoch: int, recipe: Method) -> Planner:
        """What plans for a plain model at an epoch."""
        costs, budget = CostModel(self.graph_of(model)), MacsBudget(self.keep[min(epoch, len(self.keep) - 1)])
        run = Run(self.data, self.seed, progress=False)
        return Planner(Task(model, costs, recipe, budget, self.options, run))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs.update(self._logs)

    def macs_left(self, plain: keras.Model) -> float:
        """Multiply-accumulates that the living units of a plain model need."""
        costs = CostModel(self.graph_of(plain))
        return if_pruned(costs, living(costs.graph).counts)["macs_if_pruned"]


class PruningSchedule(Gradual):
    """Masks more and more filters while a model trains that `apply_filter_pruning` has prepared.

    At the beginning of every epoch whose fraction is a new one, filters are chosen as `prune_model` would, those masked
    before among them, and masked in all their readers. After training, `strip_wrappers` gives a plain model with the
    same outputs, and `prune_model(plain, "dead", RedundancyBudget())` the smaller one. Adds `kept_filters`,
    `filter_sparsity` and `macs_if_pruned` to the logs of every epoch, for loggers before it in the list too.

    Masked filters stay masked, in a second `fit` as well. Callbacks that look for the best epoch find one from before
    the last cut: a warning says so. Give them to a second `fit`, or `EarlyStopping(start_from_epoch=)` the last cut's.

    Args:
        keep: fraction of the multiply-accumulates that is kept; or one per epoch, never rising, the last of which
            holds on (`polynomial`, `exponential`, or any list).
        method: how filters are chosen, as in `prune_model`; its compensator is not used ("l2").
        data: calibration data for methods that need it (None).
        include, exclude, min_filters, seed: as in `prune_model`.

    Raises:
        InfeasibleBudgetError: fractions outside (0, 1], or that rise.
        UnknownNameError: the method is not known.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.PruningSchedule(kfp.callbacks.polynomial(0.5, epochs=2, power=1)).keep
        [0.75, 0.5]
    """

    def graph_of(self, model: keras.Model) -> ChannelGraph:
        return maskable(super().graph_of(model))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if all(wrapper.gates for wrapper in wrappers_of(self.model, FilterPruning)):
            raise UnsupportedModelError(
                f"PruningSchedule found no FilterPruning layer in model '{self.model.name}': train "
                "apply_filter_pruning(model)."
            )
        self._reached: float | None = None
        self._logs = {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        wanted = self.keep[min(epoch, len(self.keep) - 1)]
        if wanted == self._reached:
            return
        self._reached = wanted
        kept = self.choose(stripped(self.model), epoch, lasting=True)
        self.note(kept.graph, self._logs["macs_if_pruned"])
        for _, wrapper, ids in self.wrappers(kept.graph):
            wrapper.mask.assign(kept.alive[ids].astype("float32"))

    def wrappers(self, graph: ChannelGraph) -> Iterator[tuple[str, FilterPruning, np.ndarray]]:
        """The path of every masked layer, its wrapper, and the channels that it reads of the plain model's graph."""
        # The same calls in the same order, with and without wrappers.
        for call, plain, (inputs, _) in zip(view_model(self.model).calls, graph.view.calls, graph.tensors, strict=True):
            if isinstance(call.op, FilterPruning):
                yield plain.path, call.op, inputs[0].ids

    @property
    def last_cut(self) -> int:
        """The epoch from which on masks stay."""
        return self.keep.index(self.keep[-1])

    def note(self, graph: ChannelGraph, macs: float) -> None:
        """Note in the model what its masks leave, for the files that are saved of it."""
        costs = CostModel(graph)
        full = costs.macs(costs.sizes)
        for wrapper in wrappers_of(self.model, FilterPruning):
            wrapper.reached = macs / full, MacsBudget(self.keep[-1]).limit(full) / full

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._reached == self.keep[-1]:
            self.settle(epoch)
        super().on_epoch_end(epoch, logs)

    def finish(self) -> None:
        if self._reached is None:
            return
        plain = stripped(self.model)
        claimed, found, undone = self._logs["macs_if_pruned"], self.macs_left(plain), None
        self.note(self.graph_of(plain), found)
        if found > claimed:
            undone = (
                f"the logs end with {claimed:,.0f} multiply-accumulates, and the weights need {found:,.0f}: they were "
                "written over after the last epoch, by EarlyStopping(restore_best_weights=True) for one."
            )
        elif self._trainer.stop_training and self._reached > self.keep[-1]:
            undone = f"training was stopped at keep={self._reached:.3g}, before the last fraction, {self.keep[-1]:.3g}."
        self.warn_of_earlier_weights(undone, self.last_cut)


class SoftPruning(Gradual):
    """Shrinks the filters that would be pruned, again and again, while the model trains; useful ones grow back.

    `rho=0` is soft filter pruning (He et al. 2018). With `rho=0.95, every=1` and `Method(L2(), Uniform())`, the step is
    that of iterative soft shrinkage by percentage (after Wang et al. 2023, there of single weights): of every layer,
    the share of filters that are the smallest now is multiplied by rho, and the others stay what they are. The filters
    chosen last lose their readers' weights when training ends, so that
    `prune_model(model, "dead", RedundancyBudget())` removes them and changes nothing. In files that are saved while it
    trains they are small, and read: `prune_model(loaded, "l2", 0.5, compensate="none")` removes them, with method and
    `keep` as here. Adds `kept_filters`, `filter_sparsity` and `macs_if_pruned` to the logs of every epoch.

    Args:
        keep: fraction of the multiply-accumulates that is kept, or one per epoch, see `PruningSchedule`.
        method: how filters are chosen, as in `prune_model` ("l2").
        rho: what kernels, biases, scales and shifts of the chosen filters are multiplied by, in [0, 1) (0).
        every: shrink after so many steps; None: after every epoch.
        **options: `data`, `include`, `exclude`, `min_filters` and `seed`, as in `prune_model`.

    Raises:
        InfeasibleBudgetError: fractions outside (0, 1], or that rise.
        UnknownNameError: the method is not known.
        InvalidValueError: rho is outside [0, 1) or every is not a positive number.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.SoftPruning(0.5, "fpgm", rho=0.9, every=100).rho
        0.9
    """

    def __init__(
        self,
        keep: float | Sequence[float],
        method: str | Method | Criterion = "l2",
        rho: float = 0.0,
        every: int | None = None,
        **options,
    ):
        super().__init__(keep, method, **options)
        self.rho = float(check_number("rho", rho, "a factor", least=0, below=1))
        self.every = check_integer("every", every, "a number of steps", optional=True)
        self._epoch, self._steps = 0, 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        # Counted from the first epoch of all, a training that is resumed shrinks at the same steps.
        self._steps = epoch * self.epoch_steps if self.epoch_steps else self._steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        before, self._steps = self._steps, self._steps + self.steps(batch)
        if self.every is not None and self._steps // self.every > before // self.every:
            self.sync()
            self._scale(("filter", "channel"), self.rho)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.every is None:
            self._scale(("filter", "channel"), self.rho)
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._scale(("input",), 0.0)
        super().on_train_end(logs)

    def finish(self) -> None:
        # Others may have restored weights of another epoch since.
        if self.macs_left(self.model) > self._logs["macs_if_pruned"]:
            self._scale(("input",), 0.0)
        if self.others(keras.callbacks.ModelCheckpoint):
            warnings.warn(
                "SoftPruning: in the files that ModelCheckpoint wrote while it trained, filters are small and still "
                f"read. Not 'dead' removes them, but prune_model(loaded, method, {self.keep[-1]:.3g}, "
                f"compensate='none') with this method, {self.recipe.name}.",
                stacklevel=2,
            )

    def _scale(self, roles: tuple[str, ...], factor: float) -> None:
        """Multiply the weights of all units that would go now, but for statistics."""
        kept = self.choose(self.model, self._epoch, lasting=False)
        graph = kept.graph
        layers = {call.path: call.op for call in graph.view.calls if call.inputs}
        for group in graph.groups:
            gone = np.delete(np.arange(group.size), kept[group.name])
            for member in group.members:
                if member.role in roles and not member.weight.startswith("moving_"):
                    variable = named_weights(layers[member.layer])[member.weight]
                    scale_slices(variable, member.axis, member.positions[gone].ravel(), factor)


def living(graph: ChannelGraph) -> Kept:
    """The units of a plain model that some layer reads; one of every group at least."""
    dead, weights, units = Dead(), Weights(graph.view), {}
    for group in graph.groups:
        if dead.refuses(group) is None:
            scores = dead.scores(group, weights)
            units[group.name] = np.flatnonzero(scores) if scores.any() else np.array([0])
    return Kept(graph, units)


def _both(kept: Kept, other: Kept) -> Kept:
    """The units that stay in both; where a group has none, those that stay in the first."""
    units = {group.name: np.intersect1d(kept[group.name], other[group.name]) for group in kept.graph.groups}
    return Kept(kept.graph, {name: both if len(both) else kept[name] for name, both in units.items()})
