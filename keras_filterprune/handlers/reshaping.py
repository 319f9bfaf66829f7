"""Flatten, reshape, permute and repeat: channel ids move the way the operation moves data."""

from __future__ import annotations

import keras
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Shape, Tensor
from keras_filterprune.handlers.base import Handler, Resize, give_up
from keras_filterprune.handlers.registry import keras_class, register_handler, register_keras_names

L = keras.layers


def _block(inner: Shape, outer: Shape, axis: int) -> tuple[slice, slice] | None:
    """Matching runs of dimensions around `axis` whose products agree, read from the right; None where unknown."""
    i, j = len(inner), len(outer)
    while i > axis and j > 0:
        stop_i, stop_j = i, j
        i, j = i - 1, j - 1
        p, q = inner[i], outer[j]
        while p != q:
            if p is None or q is None:
                return None
            if p < q:
                i -= 1
                side = inner[i] if i >= 0 else None
                p = None if side is None else p * side
            else:
                j -= 1
                side = outer[j] if j >= 0 else None
                q = None if side is None else q * side
        if i <= axis:
            return slice(i, stop_i), slice(j, stop_j)
    return None


def matching_block(inner: Shape, outer: Shape, axis: int) -> tuple[slice, slice] | None:
    """The dimensions of `inner` around `axis` and the dimensions of `outer` that hold the same elements."""
    block = _block(inner, outer, axis)
    if block is not None:
        return block
    mirrored = _block(inner[::-1], outer[::-1], len(inner) - 1 - axis)
    if mirrored is None:
        return None
    i, j = mirrored
    return slice(len(inner) - i.stop, len(inner) - i.start), slice(len(outer) - j.stop, len(outer) - j.start)


def _sides(shape: Shape) -> list[int] | None:
    """The sides of a shape, None unless all are known."""
    sides = [n for n in shape if n is not None]
    return sides if len(sides) == len(shape) else None


def _components(rows: np.ndarray) -> int:
    """Number of units left when the rows (k, n) of ids are tied to each other."""
    ids, flat = np.unique(rows, return_inverse=True)
    flat = flat.reshape(rows.shape)
    edges = np.broadcast_to(flat[0], flat.shape).ravel(), flat.ravel()
    graph = coo_array((np.ones(flat.size, np.int8), edges), shape=(len(ids), len(ids)))
    return connected_components(graph, directed=False)[0]


def reshape_ids(call: Call, x: Tensor, t: Tracer) -> Tensor | None:
    """Channels of `x` after a reshape; None where they cannot be followed.

    When channels end up spread over several axes, only one can shrink: the one that leaves the most units and that
    later calls do not ask to avoid, with the ids along the others tied (a group axis, the blocks of depth-to-space).
    """
    shape = call.output_shapes[0]
    block = None if x.axis is None else matching_block(x.shape, shape, x.axis)
    if block is None:
        return None
    inner, outer = block
    source, target = _sides(x.shape[inner]), _sides(shape[outer])
    if source is None or target is None or 0 in source:
        # One unknown dimension alone in its block holds no tracked channels.
        return None
    ids = x.ids.reshape([-1 if inner.start + k == x.axis else 1 for k in range(len(source))])
    spread = np.broadcast_to(ids, source).reshape(target)

    def along(axis: int) -> np.ndarray:
        return np.moveaxis(spread, axis, -1).reshape(-1, target[axis])

    def units(axis: int) -> int:
        return _components(along(axis)) if target[axis] > 1 or spread.size == 1 else 0

    order = sorted(range(len(target)), key=lambda axis: (units(axis), axis), reverse=True)
    axes = [order[0], *(axis for axis in order[1:] if target[axis] > 1)]
    axis = t.lay(call.path, axes)
    rows = along(axis)
    if (rows != rows[0]).any():
        t.tie(*rows)
    if len(axes) > 1:
        t.laid(call.path, axis, rows[0], last=True)
    return Tensor(shape, outer.start + axis, rows[0])


@register_handler(L.Flatten)
@register_keras_names("ExpandDims", "Squeeze")
class Reshaping(Handler):
    """A reshape whose target follows from its input."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        if not x.tracked or not shape:
            return [Tensor(shape)]
        out = reshape_ids(call, x, t)
        return [out] if out is not None else give_up(call, inputs, t, "cannot be followed through")


@register_handler(L.Reshape)
class ReshapeLayer(Reshaping):
    """`Reshape(target_shape)`: the target names the number of channels."""

    sized = True
    key, skipped = "target_shape", 1

    def resize(self, config: dict, r: Resize) -> dict:
        new = r.shape(r.outputs[0])[self.skipped :]
        # -1 stands for whatever is left over, before and after.
        config[self.key] = tuple(old if old in (-1, None) else n for old, n in zip(config[self.key], new, strict=True))
        return config


@register_keras_names("Reshape")
class ReshapeOp(ReshapeLayer):
    """`ops.reshape(x, newshape)`, batch axis included."""

    key, skipped = "newshape", 0


@register_handler(L.Permute)
@register_keras_names("Transpose", "Moveaxis", "Swapaxes")
class Permutation(Handler):
    """Axes change places; ids go along."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        if x.axis is None:
            return [Tensor(call.output_shapes[0])]
        return [Tensor(call.output_shapes[0], self.order(call.op, len(x.shape)).index(x.axis), x.ids)]

    @staticmethod
    def order(op, rank: int) -> list[int]:
        """Input axis of every output axis."""
        axes = list(range(rank))
        if keras_class(op) is L.Permute:
            return [0, *op.dims]
        # An array whose dimensions all differ shows where each one goes.
        marked = np.empty([a + 1 for a in axes], bool)
        name = type(op).__name__
        if name == "Transpose":
            moved = np.transpose(marked, op.axes)
        elif name == "Moveaxis":
            moved = np.moveaxis(marked, op.source, op.destination)
        else:
            moved = np.swapaxes(marked, op.axis1, op.axis2)
        return [n - 1 for n in moved.shape]


@register_handler(L.RepeatVector)
class RepeatVector(Handler):
    """(batch, channels) -> (batch, n, channels)."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        return [Tensor(call.output_shapes[0], 2, x.ids) if x.tracked else Tensor(call.output_shapes[0])]


@register_keras_names("Tile", "Repeat")
class Repetition(Handler):
    """Copies of the tensor: along the channel axis the ids are copied as well."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape, op = inputs[0], call.output_shapes[0], call.op
        if x.axis is None:
            return [Tensor(shape)]
        axis = x.axis + len(shape) - len(x.shape)
        size = shape[axis]
        if size is None or size == len(x.ids):
            return [Tensor(shape, axis, x.ids)]
        if np.ndim(op.repeats) and type(op).__name__ == "Repeat":
            return give_up(call, inputs, t, "is repeated unevenly by")
        copies = size // len(x.ids)
        ids = np.tile(x.ids, copies) if type(op).__name__ == "Tile" else np.repeat(x.ids, copies)
        return [Tensor(shape, axis, ids)]


@register_keras_names("BroadcastTo")
class BroadcastTo(Handler):
    """`ops.broadcast_to(x, shape)`: the shape names the number of channels."""

    sized = True

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        if x.axis is None:
            return [Tensor(shape)]
        axis = x.axis + len(shape) - len(x.shape)
        if shape[axis] != len(x.ids):
            return give_up(call, inputs, t, "is broadcast along channels by")
        return [Tensor(shape, axis, x.ids)]

    def resize(self, config: dict, r: Resize) -> dict:
        return config | {
            "shape": tuple(
                n if n is not None else old for old, n in zip(config["shape"], r.shape(r.outputs[0]), strict=True)
            )
        }
