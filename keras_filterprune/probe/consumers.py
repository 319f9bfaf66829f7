"""What a layer reads: sampled rows of its input next to the matrix it multiplies them by.

Every layer that mixes channels linearly is, at one output position, a matrix product: rows of shape (taps * channels)
times a kernel of shape (taps * channels, outputs). Data-driven criteria and least squares work on these rows alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.graph.types import Call
from keras_filterprune.handlers.linear import Linear, Window

ROWS = 32_768
# The most values of one sample of rows, in float32: 256 MiB.
_MOST_VALUES = 2**26


@dataclass(frozen=True, eq=False)
class Rows:
    """Sampled inputs of one consumer.

    Attributes:
        x: float32 of shape (rows, taps, channels).
        samples, positions: of every row, int64 of shape (rows,) and (axes, rows): where it comes from.
    """

    x: np.ndarray
    samples: np.ndarray
    positions: np.ndarray

    def pick(self, tensor: np.ndarray) -> np.ndarray:
        """Values of a tensor (samples, *positions, channels) where the rows were taken: (rows, channels)."""
        return tensor[(self.samples, *self.positions)]


def sample_rows(linear: Linear, x: Any, where: np.random.Generator | Rows) -> Rows:
    """Rows of a consumer's input at random positions, at most `ROWS` of them and 256 MiB.

    Args:
        linear: what the consumer multiplies; it has a `matrix`.
        x: its input, a backend tensor of shape (samples, *positions, channels).
        where: a generator that decides the positions, or rows whose positions are taken again.
    """
    if linear.depthwise is not None:
        if linear.window is None:
            raise UnsupportedLayerError(f"rows behind the depthwise kernel of layer '{linear.op.name}' take a window.")
        x = linear.window.over(keras.ops.depthwise_conv, x, linear.weights[linear.depthwise].value)
    array = np.asarray(keras.ops.convert_to_numpy(x), np.float32)
    if linear.window is not None and linear.depthwise is None and not linear.transposed:
        return _windows(linear.window, array, where)
    samples, positions = _draw(array.shape[:-1], array.shape[-1], where)
    return Rows(array[(samples, *positions)][:, None], samples, positions)


def _draw(shape: tuple[int, ...], columns: int, where: np.random.Generator | Rows) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers and positions, equally many positions of every sample."""
    if isinstance(where, Rows):
        return where.samples, where.positions
    count, inner = shape[0], shape[1:]
    per_sample = max(1, min(min(ROWS, _MOST_VALUES // columns) // count, math.prod(inner)))
    samples = np.repeat(np.arange(count), per_sample)
    return samples, np.array([where.integers(0, n, len(samples)) for n in inner], int).reshape(-1, len(samples))


def _windows(window: Window, array: np.ndarray, where: np.random.Generator | Rows) -> Rows:
    """Windows of a convolution, taps in the order of the flattened kernel; zeros outside the input."""
    sizes, strides, dilations = window.kernel_size, window.strides, window.dilation_rate
    before, outputs = [], []
    for n, size, stride, dilation in zip(array.shape[1:-1], sizes, strides, dilations, strict=True):
        span = (size - 1) * dilation + 1
        if window.padding == "valid":
            before.append(0)
            outputs.append((n - span) // stride + 1)
        else:
            out = -(-n // stride)
            total = max((out - 1) * stride + span - n, 0)
            before.append(span - 1 if window.padding == "causal" else total // 2)
            outputs.append(out)
    samples, positions = _draw((len(array), *outputs), math.prod(sizes) * array.shape[-1], where)
    rows = np.empty((len(samples), math.prod(sizes), array.shape[-1]), np.float32)
    for tap, offsets in enumerate(np.ndindex(*sizes)):
        at = [
            p * stride + offset * dilation - pad
            for p, stride, offset, dilation, pad in zip(positions, strides, offsets, dilations, before, strict=True)
        ]
        inside = np.ones(len(samples), bool)
        for axis, index in enumerate(at):
            inside &= (index >= 0) & (index < array.shape[1 + axis])
        clipped = [np.clip(index, 0, n - 1) for index, n in zip(at, array.shape[1:-1], strict=True)]
        rows[:, tap] = array[(samples, *clipped)] * inside[:, None]
    return Rows(rows, samples, positions)


def moments(x: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean of rows x (n, d), and their covariance (d, d), or the covariance (d, o) with rows y; see `product`."""
    mean_x = x.mean(axis=0, dtype=np.float64)
    left = x - mean_x.astype(np.float32)
    right = left if y is None else y - y.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean_x, product(left, right) / len(x)


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x^T y in float64, from rows that are multiplied in float32, 4 096 at a time."""
    total = np.zeros((x.shape[1], y.shape[1]))
    for start in range(0, len(x), 4096):
        part = slice(start, start + 4096)
        total += x[part].T @ y[part]
    return total


def generator_for(call: Call) -> np.random.Generator:
    """The generator of one call, the same for original and pruned network."""
    return np.random.default_rng([*call.path.encode()])
