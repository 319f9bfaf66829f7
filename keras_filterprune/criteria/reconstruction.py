"""Data-driven criteria: which channels the consumers' outputs can spare, measured on calibration inputs."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_filterprune.criteria.base import Criterion
from keras_filterprune.criteria.greedy import backward_order
from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import Call, ChannelGraph, Group
from keras_filterprune.handlers.base import volume
from keras_filterprune.handlers.registry import linear_of
from keras_filterprune.probe.consumers import generator_for, moments, sample_rows
from keras_filterprune.probe.data import calibration_inputs
from keras_filterprune.probe.execute import Executor
from keras_filterprune.probe.gradients import output_sensitivity
from keras_filterprune.progress import track

# Columns up to which the covariance over all taps is used; above, taps are averaged (inverting is cubic).
_LARGEST_GRAM = 2304
# Exponent of an error's effect on the outputs, which gradients see to first order only: chosen on training images.
_SENSITIVITY = 0.25
_TINY = float(np.finfo(float).tiny)


# Gram matrix (d, d) of a consumer's input columns, its kernel (d, outputs), and every unit's columns (n_units, m).
Problem = tuple[np.ndarray, np.ndarray, np.ndarray]
Importance = Callable[[Call, np.ndarray], float]


class Observed(Criterion):
    """Base of criteria that watch the consumers of every group during one pass of the original network.

    Scores are squared errors of the consumers' outputs, weighted by `importance`, and compare between groups.
    """

    requires = frozenset({"activations"})

    def __init__(self):
        self._found: dict[str, np.ndarray] | None = None

    def importance(self, graph: ChannelGraph, inputs: list[Any], progress: bool) -> Importance:
        """`f(call, variance)`: what a unit of squared error in a consumer's output counts.

        Relative to the variance of that output, and by the number of its positions: an error in an early, large map is
        corrected by the layers after it; measured on ResNets.
        """
        return lambda call, variance: 1 / (max(variance.sum(), _TINY) * volume(call.output_shapes[0][1:-1]))

    def moment(self, rows: np.ndarray) -> np.ndarray:
        """Gram matrix of a consumer's input columns, (d, d), from rows (n, d): their covariance."""
        return moments(rows)[1]

    @abc.abstractmethod
    def summarise(self, problems: list[Problem]) -> np.ndarray:
        """What is remembered of a group: scores of its units, from what each consumer makes of them."""

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        consumers: dict[str, list[tuple[Group, Any]]] = {}
        waiting: dict[str, int] = {}
        for group in graph.groups:
            for member in group.members:
                if member.role == "input":
                    consumers.setdefault(member.layer, []).append((group, member))
                    waiting[group.name] = waiting.get(group.name, 0) + 1
        inputs = calibration_inputs(data, graph.view)
        importance = self.importance(graph, inputs, progress)
        problems: dict[str, list] = {group.name: [] for group in graph.groups}
        found: dict[str, np.ndarray] = {}

        def watch(call: Call, args: tuple, kwargs: dict) -> Any:
            # A layer that is called several times is observed at its first call.
            for group, member in consumers.pop(call.path, ()):
                problem = self._problem(call, args[0], member.positions, importance)
                if problem is not None:
                    problems[group.name].append(problem)
                waiting[group.name] -= 1
                if not waiting[group.name] and (of_group := problems.pop(group.name)):
                    found[group.name] = self.summarise(of_group)
            return call.op(*args, **kwargs)

        executor = Executor(graph.view, watch, check=True)
        executor.feed(inputs)
        numbers = [number for number, call in enumerate(graph.view.calls) if call.inputs]
        for number in track(numbers, "observing", len(numbers), progress):
            executor.step(number)
        observed = copy.copy(self)
        observed._found = found
        return observed

    def found(self, group: Group) -> np.ndarray:
        """What `summarise` said of a group."""
        if self._found is None:
            raise CalibrationDataError(f"{self!r} needs calibration inputs: pass data=. A few hundred are enough.")
        return self._found[group.name]

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return self.found(group)

    def refuses(self, group: Group) -> str | None:
        if self._found is None:
            return None
        found = self._found.get(group.name)
        if found is None:
            return "feeds no layer whose input can be observed"
        if np.isnan(found).any():
            return "feeds layers whose inputs are too large to be squared: check that the data is scaled as in training"
        return None

    def _problem(self, call: Call, x: Any, positions: np.ndarray, importance: Importance) -> Problem | None:
        """What one consumer makes of the units' channels, scaled to what its errors count."""
        linear = linear_of(call.op)
        if linear is None or (kernel := linear.matrix) is None:
            return None
        rows = sample_rows(linear, x, generator_for(call)).x[:, :, positions.ravel()]
        kernel = kernel[:, positions.ravel()]
        taps, channels = kernel.shape[:2]
        if taps * channels > _LARGEST_GRAM:
            # Every tap reads the same channels: one matrix for all, and the taps' outputs side by side.
            flat, matrix, taps = rows.reshape(-1, channels), np.concatenate(list(kernel), axis=1), 1
        else:
            # Channel-major, so that the columns of a unit are neighbours.
            flat = rows.swapaxes(1, 2).reshape(len(rows), -1)
            matrix = kernel.swapaxes(0, 1).reshape(taps * channels, -1)
        gram = self.moment(flat)
        variance = (matrix * (gram @ matrix)).sum(axis=0).reshape(-1, kernel.shape[-1]).sum(axis=0)
        weight = importance(call, variance)
        return gram * weight, matrix, np.arange(taps * channels).reshape(len(positions), -1)


class CaP(Observed):
    """Compensation-aware pruning (Xie et al. 2021): backward elimination on the covariance of the consumers' inputs.

    The score of a channel is how much its removal raises the consumers' relative squared output error after least
    squares on the remaining channels, at the point of the elimination where it goes.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.CaP(), kfp.allocators.Global(0.7), kfp.compensators.LeastSquares()).name
        'CaP() + Global(alpha=0.7)'
    """

    def summarise(self, problems: list[Problem]) -> np.ndarray:
        order, increase = backward_order([(c, c @ kernel, columns) for c, kernel, columns in problems])
        scores = np.empty(len(order))
        # A later elimination never counts less than an earlier one: the ranking is the order.
        scores[order] = np.maximum.accumulate(increase) + np.arange(len(order)) * 1e-15
        return scores


class Energy(Observed):
    """Share of the consumers' output variance that a channel carries: var(x) times the squares of what reads it.

    What is left of `CaP` (Xie et al. 2021) where no channel can stand in for another.

    Example:
        >>> import keras_filterprune as kfp
        >>> sorted(kfp.criteria.Energy().requires)
        ['activations']
    """

    def summarise(self, problems: list[Problem]) -> np.ndarray:
        return sum((np.diag(c) * (kernel**2).sum(axis=1))[columns].sum(axis=1) for c, kernel, columns in problems)


class OutputPursuit(CaP):
    """FP-OMP with calibration data: elimination that also looks at the network's outputs.

    As in `CaP`, the channel goes whose loss least squares on the remaining ones makes up for best, and errors count
    relative to the consumer's output. Here they also count by how far they move the network's outputs, to the power of
    1/4: a first-order estimate from gradients (no labels).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.OutputPursuit(), kfp.allocators.Global(0.7), rounds=2).name
        'OutputPursuit() + Global(alpha=0.7) in 2 rounds'
    """

    def importance(self, graph: ChannelGraph, inputs: list[Any], progress: bool) -> Importance:
        read = {bind.layer for bind in graph.binds if bind.role == "input"}
        known = output_sensitivity(graph.view, inputs, read, progress)
        relative = super().importance(graph, inputs, progress)

        def importance(call: Call, variance: np.ndarray) -> float:
            own = known[call.path]
            if own.shape != variance.shape:
                # Gates of a recurrent layer, taps of a transposed convolution: all outputs alike.
                own = np.full(len(variance), own.mean())
            return relative(call, variance) * float(own @ variance) ** _SENSITIVITY

        return importance
