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

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call

L = keras.layers
ROWS = 32_768
_CONVOLUTIONS = (L.Conv1D, L.Conv2D, L.Conv3D)
_SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)
_TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
_RECURRENT = (L.LSTM, L.GRU, L.SimpleRNN)


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


def kernel_matrix(op: Any) -> tuple[str, np.ndarray] | None:
    """(weight name, float64 kernel of shape (taps, channels, outputs)) of a layer that mixes channels, else None."""
    weights = named_weights(op)
    if type(op) in _SEPARABLE:
        name = "pointwise_kernel"
    elif type(op) in (*_CONVOLUTIONS, *_TRANSPOSED, *_RECURRENT, L.Dense) and getattr(op, "groups", 1) == 1:
        name = "kernel"
    else:
        return None
    kernel = np.asarray(keras.ops.convert_to_numpy(weights[name].value), np.float64)
    if type(op) in _TRANSPOSED:
        # (*window, out, in): one input pixel is spread over window * out outputs.
        return name, np.moveaxis(kernel, -1, 0).reshape(1, kernel.shape[-1], -1)
    return name, kernel.reshape(-1, *kernel.shape[-2:])


def sample_rows(op: Any, x: Any, generator: np.random.Generator) -> Rows:
    """Rows of a consumer's input at random output positions, at most `ROWS` of them.

    Args:
        op: a layer for which `kernel_matrix` is not None.
        x: its input, a backend tensor of shape (samples, *positions, channels).
        generator: decides the positions; equal generators give equal positions.
    """
    if type(op) in _SEPARABLE:
        x = keras.ops.depthwise_conv(
            x, named_weights(op)["depthwise_kernel"].value, op.strides, op.padding, None, op.dilation_rate
        )
    array = np.asarray(keras.ops.convert_to_numpy(x), np.float32)
    if type(op) in _CONVOLUTIONS:
        return _windows(op, array, generator)
    samples, positions = _draw(array.shape[:1] + array.shape[1:-1], generator)
    return Rows(array[(samples, *positions)][:, None], samples, positions)


def _draw(shape: tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers and positions, equally many positions of every sample."""
    count, inner = shape[0], shape[1:]
    per_sample = max(1, min(ROWS // count, math.prod(inner)))
    samples = np.repeat(np.arange(count), per_sample)
    return samples, np.array([generator.integers(0, n, len(samples)) for n in inner], int).reshape(-1, len(samples))


def _windows(op: Any, array: np.ndarray, generator: np.random.Generator) -> Rows:
    """Windows of a convolution, taps in the order of the flattened kernel; zeros outside the input."""
    sizes, strides, dilations = op.kernel_size, op.strides, op.dilation_rate
    before, outputs = [], []
    for n, size, stride, dilation in zip(array.shape[1:-1], sizes, strides, dilations, strict=True):
        span = (size - 1) * dilation + 1
        if op.padding == "valid":
            before.append(0)
            outputs.append((n - span) // stride + 1)
        else:
            out = -(-n // stride)
            total = max((out - 1) * stride + span - n, 0)
            before.append(span - 1 if op.padding == "causal" else total // 2)
            outputs.append(out)
    samples, positions = _draw((len(array), *outputs), generator)
    rows = np.empty((len(samples), math.prod(sizes), array.shape[-1]), np.float32)
    for tap, offsets in enumerate(np.ndindex(*sizes)):
        where = [
            p * stride + offset * dilation - pad
            for p, stride, offset, dilation, pad in zip(positions, strides, offsets, dilations, before, strict=True)
        ]
        inside = np.ones(len(samples), bool)
        for axis, index in enumerate(where):
            inside &= (index >= 0) & (index < array.shape[1 + axis])
        clipped = [np.clip(index, 0, n - 1) for index, n in zip(where, array.shape[1:-1], strict=True)]
        rows[:, tap] = array[(samples, *clipped)] * inside[:, None]
    return Rows(rows, samples, positions)


def moments(x: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean of rows x (n, d), and their covariance (d, d), or the covariance (d, o) with rows y.

    Centred rows are multiplied in float32, 4 096 at a time, and the products summed in float64.
    """
    mean_x = x.mean(axis=0, dtype=np.float64)
    mean_y = mean_x if y is None else y.mean(axis=0, dtype=np.float64)
    total = 0.0
    for start in range(0, len(x), 4096):
        part = slice(start, start + 4096)
        left = x[part] - mean_x.astype(np.float32)
        right = left if y is None else y[part] - mean_y.astype(np.float32)
        total = total + (left.T @ right).astype(np.float64)
    return mean_x, total / len(x)


def generator_for(call: Call, seed: int = 0) -> np.random.Generator:
    """The generator of one call, the same for original and pruned network."""
    return np.random.default_rng([seed, *call.path.encode()])
