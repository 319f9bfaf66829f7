"""Batch normalization statistics, measured on calibration samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.graph.types import Call, ModelView
from keras_filterprune.handlers.registry import known_statistics, statistics_of
from keras_filterprune.handlers.statistics import Statistics
from keras_filterprune.probe.execute import Executor, compute
from keras_filterprune.probe.inputs import Inputs
from keras_filterprune.probe.masks import mask_of, masked, mean_over
from keras_filterprune.progress import track

ops = keras.ops
# Samples that are normalised together, as in training; fewer where they do not fit into memory.
_BATCH = 128


class Pooled:
    """Mean and variance of what every batch normalization layer of a model reads, pooled over batches and calls."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Statistics, list[np.ndarray]]] = {}

    def add(self, statistics: Statistics, x: Any) -> tuple[Any, Any]:
        """Take what a layer reads into account; returns this batch's mean and variance (channels,)."""
        axis = statistics.axis % len(x.shape)
        mean, variance, count = _moments(x, [a for a in range(len(x.shape)) if a != axis])
        first, second = (ops.convert_to_numpy(v).astype(np.float64) for v in (mean, variance))
        empty = [np.zeros(()), np.zeros_like(first), np.zeros_like(first)]
        _, total = self._sums.setdefault(id(statistics.op), (statistics, empty))
        for value, term in zip(total, (count, count * first, count * (second + first**2)), strict=True):
            value += term
        return mean, variance

    def found(self) -> Iterator[tuple[Statistics, np.ndarray, np.ndarray]]:
        """Every layer's weights, and mean and variance (channels,) of what it read, float64."""
        for statistics, (count, first, second) in self._sums.values():
            mean = first / count
            yield statistics, mean, np.maximum(second / count - mean**2, 0)

    def fold(self) -> None:
        """Give every layer these statistics, where its scale and offset can take up the difference.

        With the mean m and variance v that were stored, and m', v' as measured in inference mode: s' = s sqrt((v' + e)
        / (v + e)) and o' = o + s (m' - m) / sqrt(v + e). Inference stays what it was, to rounding, and training starts
        from there: its batches are normalised by what they hold. Layers without scale or offset, and in half precision,
        are left as they are.
        """
        for statistics, mean, variance in self.found():
            if _foldable(statistics):
                old_mean, old_variance, scale, offset = statistics.values("float64")
                deviation = np.sqrt(old_variance + statistics.epsilon)
                weights = statistics.weights
                weights[statistics.offset].assign(offset + scale * (mean - old_mean) / deviation)
                weights[statistics.scale].assign(scale * np.sqrt(variance + statistics.epsilon) / deviation)
                _store(statistics, mean, variance)


def recalibrate(model: keras.Model, inputs: Inputs, progress: bool = True) -> int:
    """Replace moving means and variances by those of samples; batches are normalised by their own on the way.

    Args:
        model: the model; changed in place.
        inputs: the samples.
        progress: show a progress bar (True).

    Returns:
        Number of batch normalization layers.
    """
    found = list(
        _measured(view_model(model), inputs, _by_own_statistics, "recalibrating batch normalization", progress).found()
    )
    for statistics, mean, variance in found:
        _store(statistics, mean, variance)
    return len(found)


def fold_statistics(model: keras.Model, inputs: Inputs, progress: bool = True) -> None:
    """Give batch normalization the statistics of calibration data, see `Pooled.fold`.

    Args:
        model: the model; changed in place.
        inputs: the samples.
        progress: show a progress bar (True).
    """
    view = view_model(model)
    if any(_foldable(statistics_of(call.op)) for call in view.calls if call.inputs):
        _measured(view, inputs, _as_stored, "folding batch normalization", progress).fold()


def _store(statistics: Statistics, mean: np.ndarray, variance: np.ndarray) -> None:
    statistics.weights[statistics.mean].assign(mean)
    statistics.weights[statistics.variance].assign(variance)


def _foldable(statistics: Statistics | None) -> bool:
    if statistics is None:
        return False
    weights = [statistics.weight(name) for name in (statistics.scale, statistics.offset)]
    return all(w is not None and keras.backend.standardize_dtype(w.dtype) in ("float32", "float64") for w in weights)


def _measured(view: ModelView, inputs: Inputs, normalised: Any, what: str, progress: bool) -> Pooled:
    """What every batch normalization layer of a model reads.

    Args:
        view: of the model.
        inputs: samples.
        normalised: `normalised(call, args, kwargs, mean, variance)` returns the output of such a layer, given the
            batch's moments.
        what: label of the progress bar.
        progress: show it.
    """
    read = Pooled()

    def measure(call: Call, args: tuple, kwargs: dict) -> Any:
        statistics = statistics_of(call.op)
        if statistics is None:
            return compute(call, args, kwargs)
        return normalised(call, args, kwargs, *read.add(statistics, args[0]))

    slices = inputs.slices(_BATCH)
    for part in track(slices, what, len(slices), progress):
        Executor(view, measure, check=True).run(inputs[part])
    return read


def _moments(x: Any, axes: list[int]) -> tuple[Any, Any, float]:
    """Mean and variance over axes, padding left out, and of how many values."""
    mask = mask_of(x)
    if mask is None:
        return *ops.moments(ops.cast(x, "float32"), axes), float(np.prod([x.shape[axis] for axis in axes]))
    mean, count = mean_over(x, axes)
    shape = [1 if axis in axes else -1 for axis in range(len(x.shape))]
    centred = ops.cast(x, "float32") - ops.reshape(mean, shape)
    return mean, mean_over(masked(ops.square(centred), mask), axes)[0], count


def _by_own_statistics(call: Call, args: tuple, kwargs: dict, mean: Any, variance: Any) -> Any:
    statistics, x = known_statistics(call.op), args[0]
    given = (statistics.weight(name) for name in (statistics.offset, statistics.scale))
    # They may be in half or double precision.
    offset, scale = (weight if weight is None else ops.cast(weight, "float32") for weight in given)
    axis = statistics.axis % len(x.shape)
    y = ops.batch_normalization(ops.cast(x, "float32"), mean, variance, axis, offset, scale, statistics.epsilon)
    return ops.cast(y, call.op.compute_dtype)


def _as_stored(call: Call, args: tuple, kwargs: dict, mean: Any, variance: Any) -> Any:
    return compute(call, args, kwargs)
