"""Batch normalization statistics, measured on calibration samples."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.graph.types import Call, ModelView
from keras_filterprune.handlers.registry import known_statistics, statistics_of
from keras_filterprune.handlers.statistics import Statistics
from keras_filterprune.probe.execute import Executor
from keras_filterprune.probe.inputs import Inputs
from keras_filterprune.probe.masks import mask_of, masked, mean_over
from keras_filterprune.progress import track

ops = keras.ops
# Samples that are normalised together, as in training; fewer where they do not fit into memory.
_BATCH = 128
# {layer path: (mean, variance)} of what a layer normalises, (channels,) each, float64.
Moments = dict[str, tuple[np.ndarray, np.ndarray]]


def recalibrate(model: keras.Model, inputs: Inputs, progress: bool = True) -> int:
    """Replace moving means and variances by those of samples; batches are normalised by their own on the way.

    Args:
        model: the model; changed in place.
        inputs: the samples.
        progress: show a progress bar (True).

    Returns:
        Number of batch normalization layers.
    """
    view = view_model(model)
    found = _measured(view, inputs, _by_own_statistics, "recalibrating batch normalization", progress)
    layers = {call.path: call.op for call in view.calls if call.inputs}
    for path, (mean, variance) in found.items():
        _store(known_statistics(layers[path]), mean, variance)
    return len(found)


def fold_statistics(model: keras.Model, inputs: Inputs, progress: bool = True) -> int:
    """Give batch normalization the statistics of calibration data; scale and offset take up the difference.

    With the mean m and variance v that were stored, and m', v' as measured in inference mode: s' = s sqrt((v' + e) /
    (v + e)) and o' = o + s (m' - m) / sqrt(v + e). Inference stays what it was, to rounding, and training starts from
    there: its batches are normalised by what they hold. Layers without scale or offset, and in half precision, are left
    as they are.

    Args:
        model: the model; changed in place.
        inputs: the samples.
        progress: show a progress bar (True).

    Returns:
        Number of layers that changed.
    """
    view = view_model(model)
    layers = {call.path: call.op for call in view.calls if call.inputs and _foldable(call.op)}
    if not layers:
        return 0
    for path, (mean, variance) in _measured(view, inputs, _as_stored, "folding batch normalization", progress).items():
        if path in layers:
            statistics = known_statistics(layers[path])
            old_mean, old_variance, scale, offset = statistics.values("float64")
            deviation = np.sqrt(old_variance + statistics.epsilon)
            weights = statistics.weights
            weights[statistics.offset].assign(offset + scale * (mean - old_mean) / deviation)
            weights[statistics.scale].assign(scale * np.sqrt(variance + statistics.epsilon) / deviation)
            _store(statistics, mean, variance)
    return len(layers)


def _store(statistics: Statistics, mean: np.ndarray, variance: np.ndarray) -> None:
    statistics.weights[statistics.mean].assign(mean)
    statistics.weights[statistics.variance].assign(variance)


def _foldable(op: Any) -> bool:
    statistics = statistics_of(op)
    if statistics is None:
        return False
    weights = [statistics.weight(name) for name in (statistics.scale, statistics.offset)]
    return all(w is not None and keras.backend.standardize_dtype(w.dtype) in ("float32", "float64") for w in weights)


def _measured(view: ModelView, inputs: Inputs, normalised: Any, what: str, progress: bool) -> Moments:
    """Moments of what every batch normalization layer of a model normalises, pooled over batches and calls.

    Args:
        view: of the model.
        inputs: samples.
        normalised: `normalised(call, args, kwargs, mean, variance)` returns the output of such a layer, given the
            batch's moments.
        what: label of the progress bar.
        progress: show it.
    """
    sums: dict[str, list[np.ndarray]] = {}

    def measure(call: Call, args: tuple, kwargs: dict) -> Any:
        statistics = statistics_of(call.op)
        if statistics is None:
            return call.op(*args, **kwargs)
        x = args[0]
        axis = statistics.axis % len(x.shape)
        mean, variance, count = _moments(x, [a for a in range(len(x.shape)) if a != axis])
        first, second = (ops.convert_to_numpy(v).astype(np.float64) for v in (mean, variance))
        total = sums.setdefault(call.path, [np.zeros(()), np.zeros_like(first), np.zeros_like(first)])
        for value, term in zip(total, (count, count * first, count * (second + first**2)), strict=True):
            value += term
        return normalised(call, args, kwargs, mean, variance)

    slices = inputs.slices(_BATCH)
    for part in track(slices, what, len(slices), progress):
        Executor(view, measure, check=True).run(inputs[part])
    found = {}
    for path, (count, first, second) in sums.items():
        mean = first / count
        found[path] = mean, np.maximum(second / count - mean**2, 0)
    return found


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
    offset, scale = (statistics.weight(name) for name in (statistics.offset, statistics.scale))
    axis = statistics.axis % len(x.shape)
    y = ops.batch_normalization(ops.cast(x, "float32"), mean, variance, axis, offset, scale, statistics.epsilon)
    return ops.cast(y, call.op.compute_dtype)


def _as_stored(call: Call, args: tuple, kwargs: dict, mean: Any, variance: Any) -> Any:
    return call.op(*args, **kwargs)
