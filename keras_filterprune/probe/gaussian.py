"""Means and covariances of a network's channels from its weights alone.

Every channel is taken for a Gaussian. Batch normalization knows its own mean and variance; convolutions and dense
layers carry covariances over, as if their taps were independent; an element-wise function is integrated over its input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.types import Call, ChannelGraph, Tensor
from keras_filterprune.handlers.activation import Elementwise
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.registry import handler_for, keras_name, linear_of, statistics_of, untaught
from keras_filterprune.handlers.statistics import Statistics
from keras_filterprune.probe.execute import Executor, inference

# Nodes and weights of Gauss-Hermite quadrature for a standard normal variable.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class Channels:
    """Distribution of the distinct channels of a tensor.

    Attributes:
        ids: int64 of shape (n,), sorted channel ids.
        mean: float64 of shape (n,).
        covariance: float64 of shape (n, n).
        guessed: they come from an own layer of which nothing is known, and no normalization lies between (False).
    """

    ids: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    guessed: bool = False

    def at(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the given channels, which must be among `ids`."""
        index = np.searchsorted(self.ids, ids)
        return self.mean[index], self.covariance[np.ix_(index, index)]


def gaussian_inputs(graph: ChannelGraph, wanted: set[str]) -> dict[str, Channels]:
    """{layer: distribution of its first input's channels}, for the layers asked for, at their first call."""
    tensors = {id(call): t for call, t in zip(graph.view.calls, graph.tensors, strict=True)}
    found: dict[str, Channels] = {}
    makers = {bind.layer for bind in graph.binds if bind.role == "filter"}

    def apply(call: Call, args: tuple, kwargs: dict) -> list[Channels]:
        sources = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, Channels)]
        guessed = (untaught(call.op) and call.path in makers) or any(source.guessed for source in sources)
        known = not guessed or handler_for(call.op).statistics(call.op) is not None
        return [out if known else replace(out, guessed=True) for out in behind(call, args, kwargs)]

    def behind(call: Call, args: tuple, kwargs: dict) -> list[Channels]:
        inputs, outputs = tensors[id(call)]
        channels = [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, Channels)]
        if call.path in wanted:
            found.setdefault(call.path, channels[0])
        handler, linear, statistics = handler_for(call.op), linear_of(call.op), statistics_of(call.op)
        if statistics is not None:
            return [_normalised(statistics, inputs[0], channels[0])]
        if not outputs[0].tracked or not inputs[0].tracked:
            return [_carried(channels, out) for out in outputs]
        if linear is not None and (sums := _sums(linear, inputs[0], channels[0])) is not None:
            return [_through(linear.activation, _distinct(outputs[0].ids, *sums))]
        if isinstance(handler, Elementwise):
            return [_elementwise(call, args, kwargs, inputs, outputs[0], channels)]
        return [_carried(channels, out) for out in outputs]

    executor = Executor(graph.view, apply)
    executor.feed([_carried([], graph.tensors[ref.call][1][ref.index]) for ref in graph.view.inputs])
    for number, call in enumerate(graph.view.calls):
        if call.inputs:
            executor.step(number)
    return found


def _distinct(ids: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> Channels:
    """Moments per channel (len(ids) of them) reduced to the first occurrence of every id."""
    unique, first = np.unique(ids, return_index=True)
    return Channels(unique, mean[first], covariance[np.ix_(first, first)])


def _carried(channels: list[Channels], out: Tensor) -> Channels:
    """Channels that are only moved; those that come from nowhere are white."""
    ids = np.unique(out.ids) if out.tracked else np.zeros(0, int)
    mean, covariance = np.zeros(len(ids)), np.eye(len(ids))
    for source in channels:
        here = np.flatnonzero(np.isin(ids, source.ids))
        mean[here], covariance[np.ix_(here, here)] = source.at(ids[here])
    return Channels(ids, mean, covariance)


def _sums(linear: Linear, x: Tensor, channels: Channels) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and covariance of the sums that a layer computes, bias included; None where they are not known."""
    if linear.product is None:
        return None
    own = linear.weight(linear.bias)
    bias = 0.0 if own is None else np.asarray(keras.ops.convert_to_numpy(own.value), np.float64)
    if linear.kernel is None and linear.depthwise is not None:
        mean, covariance = _depthwise(linear.weights[linear.depthwise], *channels.at(linear.read(x.ids)))
        return mean + bias, covariance
    kernel = None if linear.transposed or x.axis != len(x.shape) - 1 else linear.matrix
    if kernel is None:
        return None
    where, mean, covariance = read_moments(linear, x.ids, channels)
    taps = kernel[:, where.T].reshape(-1, len(where), kernel.shape[-1])
    return mean @ taps.sum(axis=0) + bias, sum(tap.T @ covariance @ tap for tap in taps)


def read_moments(linear: Linear, ids: np.ndarray, channels: Channels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the rows of a layer's `matrix` read from channels `ids`.

    Returns:
        (positions, mean, covariance): where each of n distinct channels stands in the rows, int64 of shape (n, m), and
        their moments.
    """
    rows = linear.read(ids)
    if linear.depthwise is not None:
        # Behind its depthwise kernel, every row of a separable layer is a channel of its own.
        return np.arange(len(rows))[:, None], *_depthwise(linear.weights[linear.depthwise], *channels.at(rows))
    where = positions_per_id(rows)
    return where, *channels.at(rows[where[:, 0]])


def _depthwise(kernel: keras.Variable, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments behind a depthwise kernel (*window, channels, multiplier), its taps taken for independent."""
    taps = np.asarray(keras.ops.convert_to_numpy(kernel.value), np.float64)
    taps = taps.reshape(-1, taps.shape[-2] * taps.shape[-1])
    return mean * taps.sum(axis=0), covariance * (taps.T @ taps)


def positions_per_id(ids: np.ndarray) -> np.ndarray:
    """Where each distinct id stands in `ids`, int64 of shape (n_ids, m): a layer behind Flatten reads it m times.

    Where ids occur unequally often, every position counts as one of its own, (len(ids), 1).
    """
    _, counts = np.unique(ids, return_counts=True)
    if (counts != counts[0]).any():
        return np.arange(len(ids))[:, None]
    return np.argsort(ids, kind="stable").reshape(len(counts), -1)


def _normalised(statistics: Statistics, x: Tensor, channels: Channels) -> Channels:
    """Batch normalization: its own statistics give the true scale and the true mean."""
    if not x.tracked or statistics.axis % len(x.shape) != x.axis:
        return channels
    _, variance, gamma, beta = statistics.values("float64")
    scale = gamma / np.sqrt(variance + statistics.epsilon)
    unique, first = np.unique(x.ids, return_index=True)
    covariance = channels.at(unique)[1] * np.outer(scale[first], scale[first])
    # One factor for the layer, so that channels that depend on each other linearly still do.
    size = np.mean(gamma[first] ** 2) / max(np.diag(covariance).mean(), np.finfo(float).tiny)
    return Channels(unique, beta[first], covariance * size)


def _through(function: Any, channels: Channels) -> Channels:
    """An element-wise function of Gaussians: exact means and variances, and covariances where they are 0 or full."""
    if function in (None, keras.activations.linear) or not len(channels.ids):
        return channels
    deviation = np.sqrt(np.maximum(np.diag(channels.covariance), 1e-12))
    nodes = (channels.mean + np.outer(_NODES, deviation)).astype(np.float32)
    values = np.asarray(keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(nodes))), float)
    if not np.isfinite(values).all():
        # The logarithm of a negative number, say: these channels are no Gaussians.
        return channels
    mean = _WEIGHTS @ values
    correlation = channels.covariance / np.outer(deviation, deviation)
    # Hermite series of the covariance: its first term, and all others as if they were the second.
    first = (_WEIGHTS * _NODES) @ values
    rest = np.sqrt(np.maximum(_WEIGHTS @ (values - mean) ** 2 - first**2, 0))
    rest = np.copysign(rest, (_WEIGHTS * (_NODES**2 - 1)) @ values)
    covariance = np.outer(first, first) * correlation + np.outer(rest, rest) * correlation**2
    return Channels(channels.ids, mean, covariance)


def _elementwise(
    call: Call, args: tuple, kwargs: dict, inputs: tuple[Tensor, ...], out: Tensor, channels: list[Channels]
) -> Channels:
    """Functions of one tensor and a number; sums and products of independent tensors."""
    kind = keras_name(call.op)
    if len(channels) == 1:
        others, axis = keras.tree.flatten((args, kwargs)), out.axis
        if axis is None or any(getattr(v, "ndim", 0) for v in others):
            return _carried(channels, out)
        first = channels[0]

        def function(values: Any) -> Any:
            # Layers may insist on the rank that they were built for.
            shape = [1] * len(out.shape)
            shape[0], shape[axis] = values.shape
            values = keras.ops.reshape(values, shape)
            swapped = keras.tree.map_structure(lambda v: values if v is first else v, (args, kwargs))
            return keras.ops.reshape(call.op(*swapped[0], **inference(call, swapped[1])), (len(_NODES), -1))

        return _through(function, first)
    whole = [(c, t) for c, t in zip(channels, inputs, strict=True) if t.tracked and len(t.ids) == len(out.ids)]
    moments = [c.at(t.ids) for c, t in whole]
    if not moments:
        return _carried(channels, out)
    mean, covariance = moments[0]
    for other, theirs in moments[1:]:
        if kind == "Multiply":
            covariance = covariance * (np.outer(other, other) + theirs) + theirs * np.outer(mean, mean)
            mean = mean * other
        else:
            sign = -1 if kind == "Subtract" else 1
            mean, covariance = mean + sign * other, covariance + theirs
    return _distinct(out.ids, mean, covariance)
