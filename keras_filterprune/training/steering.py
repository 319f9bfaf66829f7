"""Callbacks that do what it takes to reach a budget: trained gates, and what others share with them."""

from __future__ import annotations

import abc
import bisect
import warnings
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_integer, check_number, wrong
from keras_filterprune.cost import Budget, CostModel, as_cost_budget
from keras_filterprune.errors import InfeasibleBudgetError, UnsupportedModelError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.probe import Weights
from keras_filterprune.tracing import trace_model
from keras_filterprune.training.base import wrappers_of
from keras_filterprune.training.branches import BranchCost, branches, gated_branches
from keras_filterprune.training.callback import TrainingCallback
from keras_filterprune.training.filter_pruning import FilterPruning
from keras_filterprune.training.gate import Gate
from keras_filterprune.training.logs import if_pruned
from keras_filterprune.training.scorers import GateScorer
from keras_filterprune.training.wrapping import maskable, stripped

# By how much the slope of gates that are relaxed in training rises, and a logit at which they are as good as hard.
_STEEPER, _HARD = 10.0, 1e5


class Steered(TrainingCallback, abc.ABC):
    """Knows what the network would cost, and what it may.

    Args:
        budget: what the network may cost when training ends; a fraction of the multiply-accumulates, `MacsBudget` or
            `ParamsBudget`.

    Attributes:
        advice: what to do if the budget is not reached.
    """

    advice: str

    def __init__(self, budget: Budget | float):
        super().__init__()
        self.budget = as_cost_budget(budget, f"{type(self).__name__} steers what the network costs")

    def graph_of(self, model: keras.Model) -> ChannelGraph:
        """The groups of a model that are looked at."""
        return trace_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._graph = self.graph_of(self.model)
        # Wrappers have weights of their own, which do not count.
        self._costs = CostModel(self.graph_of(stripped(self.model)))
        self._price = self.budget.cost(self._costs)
        self._limit = self.budget.limit(self._price(self._costs.sizes))
        self.prepare(self._graph)
        self._spent: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Not before: other callbacks restore weights at the beginning of training.
        if self._spent is None:
            self.read()
            self._spent = self._price(self.counts())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        keep = self.counts()
        self._spent = self._price(keep)
        self.note(self._spent)
        if self._spent <= self._limit:
            self.settle(epoch)
        if logs is not None:
            logs.update(self.logs(keep))

    def finish(self) -> None:
        if self._spent is None:
            return
        claimed, self._spent = self._spent, self._price(self.counts_left())
        self.note(self._spent)
        needed = (
            f"{self.budget!r} allows {self._limit:,} {self.budget.unit}, and after training {self._spent:,} are needed."
        )
        if claimed > self._limit:
            if self._spent > self._limit:
                warnings.warn(f"{type(self).__name__}: {needed} {self.advice}", stacklevel=2)
            return
        undone = (
            f"{needed} After the last epoch {claimed:,} were: the weights were written over since, by "
            "EarlyStopping(restore_best_weights=True) for one."
        )
        self.warn_of_earlier_weights(undone if self._spent > self._limit else None, self._settled or 0)

    @abc.abstractmethod
    def prepare(self, graph: ChannelGraph) -> None:
        """Look at the model before training; an `UnsupportedModelError` where there is nothing to steer."""

    def read(self) -> None:
        """Look at the weights from which training goes on."""

    def note(self, spent: int) -> None:
        """Note in the model what it needs, for the files that are saved of it."""

    def logs(self, keep: np.ndarray) -> dict[str, float]:
        """What an epoch that ends with these counts adds to the logs."""
        return if_pruned(self._costs, keep)

    def counts_left(self) -> np.ndarray:
        """`counts` of the weights that are there when training has ended."""
        return self.counts()

    @abc.abstractmethod
    def counts(self) -> np.ndarray:
        """Units of every group that the network needs now, int64 of shape (n_groups,)."""


class BudgetGates(Steered):
    """Trains gates until the open ones fit a budget: holistic filter pruning (Enderich et al. 2021).

    Trains a model that `apply_filter_gates` has prepared. Every filter has one gate, open above 0. The loss moves it as
    it would move a factor of 1 (straight-through); as long as the open filters cost too much, a hinge pulls it down by
    the derivative of the cost, which is the filter's own cost and that of its part in all its readers. What is
    allowed falls to the budget on a straight line. There, on the budget to one filter, gates stay as they are; the rest
    of the training is fine-tuning. Adds `kept_filters`, `filter_sparsity` and `macs_if_pruned` to the logs of every
    epoch. After training, `strip_wrappers` gives a plain model with the same outputs, and
    `prune_model(plain, "dead", RedundancyBudget())` the smaller one. An optimizer that averages weights has the gates
    themselves as their averages.

    Gates of branches (`apply_filter_gates(model, branches=True)`) are pulled by all that the layers of their branch
    still cost, as far as those of filters on average. A branch only closes where at least the budget is left, or where
    filters alone cannot meet it: filters do the rest.

    Gates move in every `fit`: give it this callback, in a second one too. Callbacks that
    look for the best epoch do well to begin when the budget is met; a warning says where they undid it.

    Gates that are "gumbel" (the sampler of KDFS, Lin et al. 2023, whose distillation is `kfp.distill`) or "sigmoid"
    (Larson et al. 2023) are moved by their own gradients and by the same hinge. Their slope rises tenfold while what is
    allowed falls, the noise of the former is drawn anew for every step, the same for all readers; with the budget met,
    gates are in training what they are at inference.

    With a `scorer`, gates of filters move as a small network says that reads their weights; nothing else changes, and
    gates of branches move on their own. A training that goes on, from a file say, goes on from its gates.

    Args:
        budget: what the open filters may cost: a fraction of the multiply-accumulates, `MacsBudget` or `ParamsBudget`.
        epochs: after so many the budget holds, at least 1 (None: half of the training's).
        strength: how far the hinge moves gates at each step, on average (0.01; gates start at 1, on average).
        min_filters: filters that stay open in every group (1; two where statistics over channels are taken).
        seed: of the noise of "gumbel" gates (0).
        scorer: a `GateScorer`: `DenseScorer()`, `AttentionScorer()` or `PrunerNetwork()`, say (None: gates are free).

    Raises:
        InfeasibleBudgetError: a budget that says how many filters to keep, or one below what `min_filters` cost.
        InvalidValueError: strength is not above 0, epochs or min_filters not a positive integer, scorer no scorer.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.BudgetGates(kfp.ParamsBudget(0.5), epochs=10).epochs
        10
    """

    advice = "Train for more epochs, or with a higher strength."

    def __init__(
        self,
        budget: Budget | float,
        epochs: int | None = None,
        strength: float = 0.01,
        min_filters: int = 1,
        seed: int = 0,
        scorer: GateScorer | None = None,
    ):
        super().__init__(budget)
        if not isinstance(scorer, GateScorer | None):
            raise wrong("scorer", scorer, "a GateScorer: DenseScorer(), AttentionScorer(), PrunerNetwork() or your own")
        self.scorer = scorer
        self.seed = check_integer("seed", seed, least=0)
        self.epochs = check_integer("epochs", epochs, optional=True)
        self.min_filters = check_integer("min_filters", min_filters)
        self.strength = float(check_number("strength", strength, above=0))

    def graph_of(self, model: keras.Model) -> ChannelGraph:
        return maskable(super().graph_of(model))

    def prepare(self, graph: ChannelGraph) -> None:
        if not any(wrapper.gates for wrapper in wrappers_of(self.model, FilterPruning)):
            raise UnsupportedModelError(
                f"BudgetGates found no gates in model '{self.model.name}': train apply_filter_gates(model)."
            )
        closable, found = gated_branches(graph), {unit.name: unit for unit in branches(self._costs.graph)}
        # A branch counts like a group of one filter, that may go.
        units = [found[unit.name] for unit, _ in closable]
        self._price = self._branches = BranchCost(self._price, len(graph.groups), units)
        self._sizes = np.append(self._costs.sizes, np.ones(len(closable), int))
        self._group = np.repeat(np.arange(len(self._sizes)), self._sizes)
        floor = np.minimum(self._costs.sizes, np.maximum(self._costs.least, self.min_filters))
        self._floor, self._filters = np.append(floor, np.zeros(len(closable), int)), int(self._costs.sizes.sum())
        if self._price(self._floor) > self._limit:
            raise InfeasibleBudgetError(
                f"{self.budget!r} allows {self._limit:,} {self.budget.unit}; with min_filters={self.min_filters}, "
                f"{self._price(self._floor):,} are the least. Give a larger budget, or fewer filters."
            )
        # Gates are numbered group by group; channels that cannot be pruned have none.
        number = np.full(graph.unit_of_id.max() + 1, -1)
        number[np.concatenate([group.units for group in graph.groups])] = np.arange(self._filters)
        readers: dict[int, tuple[Gate, np.ndarray]] = {}
        for call, (inputs, _) in zip(graph.view.calls, graph.tensors, strict=True):
            if isinstance(call.op, FilterPruning) and call.op.gates:
                readers.setdefault(id(call.op), (call.op, number[graph.unit_of_id[inputs[0].ids]]))
        for branch, (_, gate) in enumerate(closable):
            readers[id(gate)] = gate, np.array([self._filters + branch])
        self._wrappers = [wrapper for wrapper, _ in readers.values()]
        if frozen := [wrapper.name for wrapper in self._wrappers if not wrapper.mask.trainable]:
            warnings.warn(
                f"BudgetGates: the loss does not move the gates of {', '.join(frozen)}, which are frozen; they close "
                "by what filters cost alone. Freeze the layer inside: wrapper.trainable = True, then "
                "wrapper.layer.trainable = False, and compile() again.",
                stacklevel=2,
            )
        self._numbers = np.concatenate([numbers for _, numbers in readers.values()])
        self._ends = np.cumsum([len(numbers) for _, numbers in readers.values()])

    def read(self) -> None:
        self._gates = np.ones(len(self._group))
        self._gates[self._numbers[self._numbers >= 0]] = self._read()[self._numbers >= 0]
        if self.scorer is not None:
            target = self._limit / self._price(self._sizes)
            scores = self.scorer.look(self._graph, Weights(self._graph.view), target)
            # Gates that were trained have them.
            if all(wrapper.reached is None for wrapper in self._wrappers):
                self._gates[: self._filters] += scores
                self._write()
        self._met = self._price(self.counts()) <= self._limit
        self._generator = np.random.default_rng(self.seed)

    def logs(self, keep: np.ndarray) -> dict[str, float]:
        return if_pruned(self._costs, keep[: len(self._costs.sizes)], self._branches.closed(keep))

    def note(self, spent: int) -> None:
        full = self._price(self._sizes)
        for wrapper in self._wrappers:
            wrapper.reached = spent / full, self._limit / full

    def counts_left(self) -> np.ndarray:
        is_open = np.zeros(len(self._group), bool)
        # A filter that one of its readers sees is there.
        is_open[self._numbers[(self._numbers >= 0) & (self._read() > 0)]] = True
        return self._counts(is_open)

    def counts(self) -> np.ndarray:
        return self._counts(self._gates > 0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        way = min(1.0, (epoch + 1) / (self.epochs or max(1, self.params["epochs"] // 2)))
        full = self._price(self._sizes)
        self._allowed = full - way * (full - self._limit)
        self._slope = _STEEPER**way
        self._relax()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.sync()
        trained = self._read()
        for _ in range(self.steps(batch)):
            if self._met:
                break
            self._gates = self._moved(trained)
            self._met = self._price(self.counts()) <= self._limit
            # The optimizer's steps are known together, the hinge takes one for each.
            trained = self._values()
        self._write()
        self._relax()

    def _write(self) -> None:
        """Hand the gates to their readers."""
        averages = _averages(getattr(self._trainer, "optimizer", None))
        for wrapper, part in zip(self._wrappers, np.split(self._values(), self._ends[:-1]), strict=True):
            wrapper.mask.assign(part.astype("float32"))
            # A mean over time would open gates again.
            if (average := averages.get(wrapper.mask.path.replace("/", "_"))) is not None:
                average.assign(part.astype("float32"))

    def _relax(self) -> None:
        """Slope and noise of the next step; gates that stay are what they are at inference."""
        noise = self._generator.logistic(size=len(self._gates))
        if self._met:
            noise = np.where(self._gates > 0, _HARD, -_HARD)
        for wrapper, numbers in zip(self._wrappers, np.split(self._numbers, self._ends[:-1]), strict=True):
            if wrapper.soft:
                drawn = noise[numbers] * (self._met or wrapper.gates == "gumbel")
                # A channel without a gate is open.
                wrapper.noise.assign(np.where(numbers >= 0, drawn, _HARD).astype("float32"))
                wrapper.slope.assign(self._slope)

    def _values(self) -> np.ndarray:
        """The gates as their readers have them, 1 where a channel has none."""
        return np.where(self._numbers >= 0, self._gates[self._numbers], 1.0)

    def _read(self) -> np.ndarray:
        return np.concatenate([keras.ops.convert_to_numpy(w.mask.value) for w in self._wrappers]).astype(float)

    def _moved(self, trained: np.ndarray) -> np.ndarray:
        """The gates after a step of the optimizer, which left `trained` in the readers, and one of the hinge."""
        own = self._numbers >= 0
        steps = (trained - self._gates[self._numbers])[own]
        # The readers of a filter share its gate, so that their steps add up.
        gates = self._gates + np.bincount(self._numbers[own], steps, len(self._gates))
        now = self.counts()
        if self._price(now) > self._allowed:
            pull = self._price.gradient(now)[self._group]
            # All filters of a branch cost more than one: their gates move as far on average.
            for part in (slice(self._filters), slice(self._filters, None)):
                if len(pull[part]):
                    gates[part] -= self.strength * pull[part] / pull[part].mean()
        if self.scorer is not None:
            filters = slice(self._filters)
            gates[filters] = self._gates[filters] + self.scorer.follow(gates[filters] - self._gates[filters])
        return self._reopened(self._held(gates))

    def _held(self, gates: np.ndarray) -> np.ndarray:
        """The gates without closings of branches after which less than the budget was left, which filters can meet."""
        is_open = self._gates > 0
        closing = np.flatnonzero(is_open & (gates <= 0))
        for branch in sorted(closing[closing >= self._filters], key=lambda number: gates[number]):
            least = np.where(np.arange(len(self._sizes)) < len(self._costs.sizes), self._floor, self._counts(is_open))
            is_open[branch] = False
            if self._price(self._counts(is_open)) < self._limit and self._price(least) <= self._limit:
                is_open[branch], gates[branch] = True, self.strength
        return gates

    def _reopened(self, gates: np.ndarray) -> np.ndarray:
        """The gates without those closings that go below the floors, or further than is needed now."""
        order = np.lexsort((-gates, self._group))
        rank = np.empty(len(gates), int)
        rank[order] = np.arange(len(gates)) - (np.cumsum(self._sizes) - self._sizes)[self._group]
        gates = np.where(rank < self._floor[self._group], np.maximum(gates, self.strength), gates)
        closing = np.flatnonzero((self._gates > 0) & (gates <= 0))
        closing = closing[closing < self._filters]
        closing = closing[np.argsort(-gates[closing], kind="stable")]

        def cost(reopened: int) -> int:
            is_open = gates > 0
            is_open[closing[:reopened]] = True
            return self._price(self._counts(is_open))

        reopened = bisect.bisect_right(range(len(closing) + 1), self._allowed, key=cost) - 1
        gates[closing[: max(0, reopened)]] = self.strength
        return gates

    def _counts(self, is_open: np.ndarray) -> np.ndarray:
        return np.bincount(self._group[is_open], minlength=len(self._sizes))


def _averages(optimizer: Any) -> dict[str, keras.Variable]:
    """{path of a variable, "_" between its parts: its average over time} of an optimizer with `use_ema=True`."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    found = [] if optimizer is None else optimizer.variables
    return {v.name.removesuffix("_average"): v for v in found if v.name.endswith("_average")}
