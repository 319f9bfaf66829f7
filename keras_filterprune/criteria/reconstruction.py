"""Data-driven criteria: which channels the consumers' outputs can spare, measured on calibration inputs."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_filterprune.criteria.base import Criterion
from keras_filterprune.criteria.greedy import backward_order, forward_units
from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import Call, ChannelGraph, Group
from keras_filterprune.handlers.base import volume
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.registry import linear_of
from keras_filterprune.probe.consumers import Moments, Places, blocks, draw_places, rows_at
from keras_filterprune.probe.execute import watched
from keras_filterprune.probe.gradients import output_sensitivity
from keras_filterprune.probe.inputs import Inputs, calibration_inputs

# Columns up to which the covariance over all taps is used; above, taps are averaged (inverting is cubic).
_LARGEST_GRAM = 1152
# Units that are looked at together, and columns above which those of a unit are averaged.
_WIDEST = 4096
# Exponent of an error's effect on the outputs, which gradients see to first order only: chosen on training images.
_SENSITIVITY = 0.25
_TINY = float(np.finfo(float).tiny)


# Gram matrix (d, d) of a consumer's input columns, its kernel (d, outputs), and every unit's columns (n_units, m).
Problem = tuple[np.ndarray, np.ndarray, np.ndarray]
Importance = Callable[[Call, np.ndarray], float]


class Observed(Criterion):
    """Base of criteria that watch the consumers of every group during one pass of the original network.

    Scores are squared errors of the consumers' outputs, weighted by `importance`, and compare between groups. Samples
    are run a few at a time, and only moments of sampled rows are held. Of a group wider than 4 096 units, every share
    of as many is looked at on its own, as if the others stayed.
    """

    requires = frozenset({"activations"})

    def __init__(self):
        self._found: dict[str, list[np.ndarray]] | None = None

    def importance(self, graph: ChannelGraph, inputs: Inputs, progress: bool) -> Importance:
        """`f(call, variance)`: what a unit of squared error in a consumer's output counts.

        Relative to the variance of that output, and by the number of its positions: an error in an early, large map is
        corrected by the layers after it; measured on ResNets.
        """
        return lambda call, variance: 1 / (max(variance.sum(), _TINY) * volume(call.output_shapes[0][1:-1]))

    def gram(self, moments: Moments) -> np.ndarray:
        """Gram matrix (d, d) of a consumer's input columns: their covariance."""
        return moments.covariance

    @abc.abstractmethod
    def summarise(self, problems: list[Problem]) -> np.ndarray:
        """What is remembered of a share of a group: scores of its units, from what each consumer makes of them."""

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        inputs = calibration_inputs(data, graph.view)
        importance = self.importance(graph, inputs, progress)
        # A layer that is called several times is observed at its first call.
        first = {call.path: call for call in reversed(graph.view.calls)}
        shares = {group.name: _shares(group, first) for group in graph.groups}
        readers: dict[str, list[_Reader]] = {}
        for reader in (reader for parts in shares.values() for part in parts for reader in part):
            readers.setdefault(reader.call.path, []).append(reader)
        places: dict[str, Places] = {}

        def look(call: Call, args: tuple, samples: slice) -> None:
            found = readers.get(call.path)
            if found and call is first[call.path]:
                linear = found[0].linear
                if call.path not in places:
                    places[call.path] = draw_places(call.path, linear, args[0], len(inputs), inputs.share)
                rows = rows_at(linear, args[0], places[call.path].part(samples))
                for reader in found:
                    reader.add(rows)

        for _ in watched(graph.view, inputs, "observing", progress, look):
            pass
        readers.clear()
        observed = copy.copy(self)
        observed._found = {}
        for group in graph.groups:
            problems = ([reader.problem(self.gram, importance) for reader in part] for part in shares.pop(group.name))
            observed._found[group.name] = [self.summarise(found) for found in problems if found]
        return observed

    def found(self, group: Group) -> list[np.ndarray]:
        """What `summarise` said of every share of a group."""
        if self._found is None:
            raise CalibrationDataError(f"{self!r} needs calibration inputs: pass data=. A few hundred are enough.")
        return self._found[group.name]

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return np.concatenate(self.found(group))

    def refuses(self, group: Group) -> str | None:
        if self._found is None:
            return None
        found = self._found.get(group.name)
        if not found:
            readers = dict.fromkeys(member.layer for member in group.members if member.role == "input")
            if not readers:
                return "feeds no layer whose weights read it"
            return f"feeds only layers whose products are not known: {', '.join(map(repr, readers))}"
        if any(np.isnan(part).any() for part in found):
            return "feeds layers whose inputs are too large to be squared: check that the data is scaled as in training"
        return None


class _Reader:
    """What one consumer reads of a share of a group.

    Args:
        call: the consumer.
        linear: what it multiplies.
        positions: int64 (n_units, m), where the units are among its input channels.
    """

    def __init__(self, call: Call, linear: Linear, positions: np.ndarray):
        self.call, self.linear, self._positions = call, linear, positions
        self._taps = linear.arranged.shape[0]
        # Every tap reads the same channels: above some width one matrix serves all, and their outputs lie side by side.
        # So it is with the positions behind a flattening layer, which a unit's columns are.
        self._by_tap = self._taps * positions.size <= _LARGEST_GRAM
        self._by_column = self._by_tap or positions.size <= _WIDEST
        self._moments = Moments()

    def add(self, rows: np.ndarray) -> None:
        """Take rows (n, taps, channels) into account."""
        rows = rows.take(self._positions, axis=2)
        if not self._by_column:
            rows = rows.swapaxes(2, 3)
        self._moments.add(rows.reshape(-1, self._columns.size))

    @property
    def _columns(self) -> np.ndarray:
        """int64 (n_units, columns of each)."""
        units, m = self._positions.shape
        shape = self._taps if self._by_tap else 1, units, m if self._by_column else 1
        return np.arange(math.prod(shape)).reshape(shape).swapaxes(0, 1).reshape(units, -1)

    def problem(self, gram: Callable[[Moments], np.ndarray], importance: Importance) -> Problem:
        """What the consumer makes of the units' channels, scaled to what its errors count."""
        kernel, found = self.linear.arranged[:, self._positions], gram(self._moments)
        # In the order of the moments' columns; what is averaged over lies side by side.
        if not self._by_tap:
            kernel = kernel.transpose((1, 2, 0, 3) if self._by_column else (1, 0, 2, 3))
        matrix = kernel.reshape(len(found), -1)
        variance = np.concatenate([(part * (found @ part)).sum(axis=0) for part in blocks(matrix)])
        weight = importance(self.call, variance.reshape(-1, kernel.shape[-1]).sum(axis=0))
        found *= weight
        return found, matrix, self._columns


def _shares(group: Group, calls: Mapping[str, Call]) -> list[list[_Reader]]:
    """Who reads a group: for every share of at most 4 096 units, its consumers."""
    parts = np.array_split(np.arange(group.size), -(-group.size // _WIDEST))
    found: list[list[_Reader]] = [[] for _ in parts]
    for member in group.members:
        linear = linear_of(calls[member.layer].op) if member.role == "input" else None
        if linear is not None and linear.kernel == member.weight and linear.groups == 1:
            for share, part in zip(found, parts, strict=True):
                share.append(_Reader(calls[member.layer], linear, member.positions[part]))
    return found


class Quadratic(Observed):
    """Base of criteria on Q, of `error_matrix`: what any set of a group's units adds to the consumers' outputs."""

    def summarise(self, problems: list[Problem]) -> np.ndarray:
        return np.sum([error_matrix(*problem) for problem in problems], axis=0)

    def refuses(self, group: Group) -> str | None:
        wide = len(self._found[group.name]) > 1 if self._found is not None else False
        return f"has {group.size:,} units, too many to be looked at together" if wide else super().refuses(group)


def error_matrix(gram: np.ndarray, kernel: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Q (n_units, n_units): m^T Q m is the mean squared change of the outputs without the units m.

    Args:
        gram: (d, d) second moments of a consumer's input columns.
        kernel: (d, outputs) of the consumer.
        columns: int64 (n_units, m), the columns of every unit.
    """
    shared = gram * sum(part @ part.T for part in blocks(kernel))
    units, own = columns.shape
    by_unit = shared[np.ix_(columns.ravel(), columns.ravel())]
    return by_unit.reshape(units, own, units, own).sum(axis=(1, 3))


class CaP(Observed):
    """After compensation-aware pruning (Xie et al. 2021): backward elimination on the covariance of consumers' inputs.

    The score of a channel is how much its removal raises the consumers' relative squared output error after least
    squares on the remaining channels, at the point of the elimination where it goes.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.CaP(), kfp.allocators.Global(0.7), kfp.compensators.LeastSquares()).name
        'CaP() + Global(alpha=0.7)'
    """

    def summarise(self, problems: list[Problem]) -> np.ndarray:
        order, increase = backward_order(problems)
        scores = np.empty(len(order))
        # A later elimination never counts less than an earlier one: the ranking is the order.
        scores[order] = np.maximum.accumulate(increase) + np.arange(len(order)) * 1e-15
        return scores


class ForwardCaP(CaP):
    """Compensation-aware pruning as published (Xie et al. 2021): forward selection where `CaP` eliminates.

    The score of a channel is how much of the consumers' outputs it explains, by least squares next to those that were
    selected before it.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.ForwardCaP(), kfp.allocators.Tolerance(), kfp.compensators.LeastSquares()).needs
        'labels'
    """

    def summarise(self, problems: list[Problem]) -> np.ndarray:
        order, gain = forward_units(problems)
        scores = np.empty(len(order))
        # An earlier choice never counts less than a later one: the ranking is the order.
        scores[order] = np.minimum.accumulate(gain) + np.arange(len(order))[::-1] * 1e-15
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
        found = np.zeros(len(problems[0][2]))
        for gram, kernel, columns in problems:
            read = sum(np.square(part).sum(axis=1) for part in blocks(kernel))
            found += (np.diag(gram) * read)[columns].sum(axis=1)
        return found


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

    def importance(self, graph: ChannelGraph, inputs: Inputs, progress: bool) -> Importance:
        ops = {call.path: call.op for call in graph.view.calls if call.inputs}
        read = {bind.layer for bind in graph.binds if bind.role == "input" and linear_of(ops[bind.layer]) is not None}
        known = output_sensitivity(graph.view, inputs, read, progress)
        relative = super().importance(graph, inputs, progress)

        def importance(call: Call, variance: np.ndarray) -> float:
            own = known[call.path]
            if own.shape != variance.shape:
                # Gates of a recurrent layer, taps of a transposed convolution: all outputs alike.
                own = np.full(len(variance), own.mean())
            return relative(call, variance) * float(own @ variance) ** _SENSITIVITY

        return importance
