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
# The most values of one sample of rows, in float32: 256 MiB.
_LARGEST = 2**26
_CONVOLUTIONS = (L.Conv1D, L.Conv2D, L.Conv3D)
_SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)
_TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)
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


def assign_kernel(op: Any, matrix: np.ndarray) -> None:
    """Write what `kernel_matrix` reads: `matrix` has as many values, in that order."""
    name, _ = kernel_matrix(op)
    variable = named_weights(op)[name]
    if type(op) in _TRANSPOSED:
        *window, out, into = variable.shape
        variable.assign(np.moveaxis(matrix.reshape(into, *window, out), 0, -1))
    else:
        variable.assign(matrix.reshape(variable.shape))


def read_ids(op: Any, ids: np.ndarray) -> np.ndarray:
    """Channel ids of the rows of a layer's `kernel_matrix`: a separable layer repeats them."""
    return np.repeat(ids, op.depth_multiplier) if hasattr(op, "pointwise_kernel") else ids


def mixes(op: Any) -> bool:
    """Whether a layer is a convolution, in groups perhaps, or a dense layer: its outputs are sums over channels."""
    return type(op) in (*_CONVOLUTIONS, *_SEPARABLE, *_TRANSPOSED, L.Dense)


def is_transposed(op: Any) -> bool:
    """Whether rows are taken at input positions, which spread over several outputs."""
    return type(op) in _TRANSPOSED


def linear_part(op: Any, x: Any) -> Any | None:
    """What a convolution or dense layer makes of `x` before bias and activation; None for other operations."""
    weights = {name: keras.ops.cast(v.value, "float32") for name, v in named_weights(op).items()}
    x = keras.ops.cast(x, "float32")
    if type(op) is L.Dense:
        return keras.ops.matmul(x, weights["kernel"])
    if type(op) not in (*_CONVOLUTIONS, *_SEPARABLE, *_TRANSPOSED, *DEPTHWISE):
        return None
    how = {"strides": op.strides, "padding": op.padding, "dilation_rate": op.dilation_rate}
    if op.padding == "causal":
        x = keras.ops.pad(x, [(0, 0), ((op.kernel_size[0] - 1) * op.dilation_rate[0], 0), (0, 0)])
        how["padding"] = "valid"
    if type(op) in _CONVOLUTIONS:
        return keras.ops.conv(x, weights["kernel"], **how)
    if type(op) in _SEPARABLE:
        return keras.ops.separable_conv(x, weights["depthwise_kernel"], weights["pointwise_kernel"], **how)
    if type(op) in DEPTHWISE:
        return keras.ops.depthwise_conv(x, weights["kernel"], **how)
    return keras.ops.conv_transpose(x, weights["kernel"], output_padding=op.output_padding, **how)


def sample_rows(op: Any, x: Any, where: np.random.Generator | Rows) -> Rows:
    """Rows of a consumer's input at random output positions, at most `ROWS` of them and 256 MiB.

    Args:
        op: a layer for which `kernel_matrix` is not None.
        x: its input, a backend tensor of shape (samples, *positions, channels).
        where: a generator that decides the positions, or rows whose positions are taken again.
    """
    if type(op) in _SEPARABLE:
        how = {"strides": op.strides, "padding": op.padding, "dilation_rate": op.dilation_rate}
        x = keras.ops.depthwise_conv(x, named_weights(op)["depthwise_kernel"].value, **how)
    array = np.asarray(keras.ops.convert_to_numpy(x), np.float32)
    if type(op) in _CONVOLUTIONS:
        return _windows(op, array, where)
    samples, positions = _draw(array.shape[:-1], array.shape[-1], where)
    return Rows(array[(samples, *positions)][:, None], samples, positions)


def _draw(shape: tuple[int, ...], columns: int, where: np.random.Generator | Rows) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers and positions, equally many positions of every sample."""
    if isinstance(where, Rows):
        return where.samples, where.positions
    count, inner = shape[0], shape[1:]
    per_sample = max(1, min(min(ROWS, _LARGEST // columns) // count, math.prod(inner)))
    samples = np.repeat(np.arange(count), per_sample)
    return samples, np.array([where.integers(0, n, len(samples)) for n in inner], int).reshape(-1, len(samples))


def _windows(op: Any, array: np.ndarray, where: np.random.Generator | Rows) -> Rows:
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
