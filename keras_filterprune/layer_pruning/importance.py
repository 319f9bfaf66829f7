"""How much a unit matters: its filters' scores, ranks by several criteria, or what it adds to a proxy's accuracy."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import entries, unknown_name, wrong
from keras_filterprune.criteria import Criterion, MemberCriterion
from keras_filterprune.errors import CalibrationDataError, InvalidValueError
from keras_filterprune.graph.types import ChannelGraph, Group, Member, TensorRef
from keras_filterprune.layer_pruning.units import Unit
from keras_filterprune.methods import Method, as_method
from keras_filterprune.probe import Weights
from keras_filterprune.probe.execute import watched
from keras_filterprune.probe.gates import tensor_gate_gradients
from keras_filterprune.probe.inputs import labelled_inputs

# Values of an embedding, about.
_EMBEDDING = 512


class Importance(abc.ABC):
    """Scores units."""

    @abc.abstractmethod
    def scores(self, graph: ChannelGraph, units: Sequence[Unit], data: Any, progress: bool) -> np.ndarray:
        """Score of every unit, float64 of shape (units,), higher = keep; NaN where it cannot tell."""


class FilterMean(Importance):
    """Mean score of a unit's filters by a filter criterion, as it is: not divided by the layer's mean, not summed.

    Criteria that score a layer's own weights look at all layers of a unit; those that look at what reads a channel, at
    the channels that start and end within it.

    Args:
        criterion: any of `list_methods()` whose scores are measurements, or a configured object.
    """

    def __init__(self, criterion: Criterion):
        if criterion.order_only:
            raise InvalidValueError(
                f"{criterion!r} puts the filters of one layer in order, and its mean says nothing about the layer. Use "
                "'l2', 'taylor', 'taylor_gate', 'cap', 'ensemble' or 'imprinting', say."
            )
        self.criterion = criterion

    def __repr__(self) -> str:
        return repr(self.criterion)

    def scores(self, graph: ChannelGraph, units: Sequence[Unit], data: Any, progress: bool) -> np.ndarray:
        if self.criterion.requires and data is None:
            raise CalibrationDataError(f"{self.criterion!r} needs calibration inputs: pass data=.")
        weights = Weights(graph.view)
        criterion = self.criterion.observe(graph, weights, data, progress)
        found = []
        for unit in units:
            # What looks at a layer's own weights can do so whether or not its filters could go one by one.
            groups = [_whole(graph, unit)] if isinstance(criterion, MemberCriterion) else graph.groups
            own = [criterion.of_layers(g, unit.layers, weights) for g in groups if criterion.refuses(g) is None]
            joined = np.concatenate([np.zeros(0), *own])
            found.append(joined.mean() if joined.size else np.nan)
        return np.array(found)


def _whole(graph: ChannelGraph, unit: Unit) -> Group:
    """All channels of a unit's layers as one group."""
    members = tuple(
        Member(bind.layer, bind.weight, bind.axis, bind.role, np.arange(len(bind.ids))[:, None])
        for bind in graph.binds
        if bind.layer in unit.layers
    )
    return Group(unit.name, np.zeros(0, int), members)


class Ensemble(Importance):
    """Sum of a unit's places in the orders of several criteria, from 0 for the least important.

    Args:
        criteria: names or criterion objects ("l2", "taylor", "taylor_gate").

    Raises:
        UnknownNameError: one of the names is not known.
        InvalidValueError: there is no criterion, or one that says nothing about layers.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.layer_pruning.Ensemble(["l1", kfp.criteria.TaylorGate()])
        Ensemble(L1(aggregate='mean'), TaylorGate())
    """

    def __init__(self, criteria: Sequence[str | Criterion] = ("l2", "taylor", "taylor_gate")):
        if isinstance(criteria, str) or not (listed := entries(criteria)):
            raise wrong("criteria", criteria, "a list of criteria")
        self.members = [as_importance(criterion, 0, True) for criterion in listed]

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(map(repr, self.members))})"

    def scores(self, graph: ChannelGraph, units: Sequence[Unit], data: Any, progress: bool) -> np.ndarray:
        total = np.zeros(len(units))
        for member in self.members:
            scores = member.scores(graph, units, data, progress)
            # A sum over NaN is NaN: one member that cannot tell is enough.
            places = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
            total += np.where(np.isnan(scores), np.nan, places)
        return total


class BlockGate(Importance):
    """Square of dL/dz of gates z = 1 on the channels of what a block adds to its shortcut, averaged over them.

    Elkerdawy et al. 2020, "To Filter Prune, or to Layer Prune, That Is The Question": one gate behind the last batch
    normalization of each block (of a layer in a plain network, behind it and what goes with it), squares of the
    gradients of batches of 128 added, their mean over channels the block's importance. "taylor_gate" has gates on the
    channels that start and end within a block. L and labels as for `kfp.criteria.Taylor`.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.layer_pruning.BlockGate()
        BlockGate()
    """

    def __repr__(self) -> str:
        return "BlockGate()"

    def scores(self, graph: ChannelGraph, units: Sequence[Unit], data: Any, progress: bool) -> np.ndarray:
        if data is None:
            raise CalibrationDataError("BlockGate() needs labelled samples: pass data=(x, y).")
        ends = [_end(graph, unit) for unit in units]
        squares = dict.fromkeys(ends, 0.0)
        for found in tensor_gate_gradients(graph.view, squares.keys(), data, progress):
            for ref, gradient in found.items():
                squares[ref] += float(np.square(gradient).mean())
        return np.array([squares[ref] for ref in ends])


def _end(graph: ChannelGraph, unit: Unit) -> TensorRef:
    """The tensor that a unit adds to its shortcut; what leaves it where there is none."""
    joined = unit.joins(graph.view)
    return unit.target if joined is None else graph.view.calls[joined[0]].inputs[joined[1]]


class Imprinting(Importance):
    """What a unit adds to the accuracy of a classifier of class means (Elkerdawy et al. 2020, "One-Shot Layer-Wise").

    The classifier behind a tensor compares embeddings, the tensor averaged over a grid to about 512 values, with the
    mean embedding of each class, of length 1. Importance is its accuracy behind the unit minus that before it. Means
    come from one half of the labelled samples and accuracies from the other, then the other way round.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.layer_pruning.Imprinting()
        Imprinting()
    """

    def __repr__(self) -> str:
        return "Imprinting()"

    def scores(self, graph: ChannelGraph, units: Sequence[Unit], data: Any, progress: bool) -> np.ndarray:
        if data is None:
            raise CalibrationDataError("Imprinting() needs labelled samples: pass data=(x, y).")
        inputs, labels = labelled_inputs(data, graph.view, "imprinting")
        refs = sorted({ref for unit in units for ref in (unit.source, unit.target)}, key=lambda ref: ref.call)
        found: dict[TensorRef, list[np.ndarray]] = {ref: [] for ref in refs}
        for number, outputs in watched(graph.view, inputs, "imprinting", progress):
            for ref in (TensorRef(number, index) for index in range(len(outputs))):
                if ref in found:
                    found[ref].append(embeddings(keras.ops.convert_to_numpy(outputs[ref.index])))
        accuracy = {ref: proxy_accuracy(np.concatenate(parts), labels) for ref, parts in found.items()}
        return np.array([accuracy[unit.target] - accuracy[unit.source] for unit in units])


def embeddings(values: np.ndarray) -> np.ndarray:
    """Tensor (samples, ..., channels) averaged over a grid, flat, float32 of shape (samples, about 512).

    The grid has round(sqrt(512 / channels)) cells a side, at least one, at most the tensor's own; cells overlap where
    they do not divide the tensor, as in adaptive average pooling.
    """
    values = values.astype(np.float32)
    side = max(1, round((_EMBEDDING / values.shape[-1]) ** 0.5))
    for axis in range(1, values.ndim - 1):
        values = np.moveaxis(np.tensordot(_cells(values.shape[axis], side), values, (1, axis)), 0, axis)
    return values.reshape(len(values), -1)


def _cells(size: int, cells: int) -> np.ndarray:
    """Matrix (cells, size) that averages positions: cell i is [floor(i size / cells), ceil((i + 1) size / cells))."""
    cells = min(cells, size)
    matrix = np.zeros((cells, size), np.float32)
    for cell in range(cells):
        start, stop = cell * size // cells, -(-(cell + 1) * size // cells)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix


def proxy_accuracy(values: np.ndarray, labels: np.ndarray) -> float:
    """Share of embeddings (samples, d) whose largest product is with the mean of their own class, over two halves."""
    half, right = np.arange(len(labels)) % 2 == 0, 0
    classes, numbers = np.unique(labels, return_inverse=True)
    for own in (half, ~half):
        means = np.stack([values[own & (numbers == n)].sum(axis=0) for n in range(len(classes))])
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        right += (np.argmax(values[~own] @ means.T, axis=1) == numbers[~own]).sum()
    return float(right / len(labels))


def as_importance(criterion: Any, seed: int, data: bool) -> Importance:
    """An `Importance`: a name of `_NAMED`, a method's name (its criterion) or a criterion object."""
    if isinstance(criterion, Importance):
        return criterion
    if isinstance(criterion, str) and criterion in _NAMED:
        return _NAMED[criterion]()
    if not isinstance(criterion, str | Criterion | Method):
        raise unknown_name("method", criterion, "a name, a criterion object, BlockGate, Ensemble or Imprinting", _NAMED)
    return FilterMean(as_method(criterion, seed, data).criterion)


_NAMED = {"block_gate": BlockGate, "ensemble": Ensemble, "imprinting": Imprinting}
