"""Concatenate, stack, split and slice: operations that join or cut channel vectors."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.base import UNTRACKED, Handler, Resize, describe, give_up, untracked, volume
from keras_filterprune.handlers.registry import register_handler, register_keras_names

L = keras.layers


def _same_axis(call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> int | None:
    """The one axis on which every input is tracked, its channels tied; None (and pinned) where there is none."""
    axes = {x.axis for x in inputs}
    if len(axes) != 1:
        t.pin_tensors(inputs, f"meets channels that are not tracked alike in {describe(call)}")
        return None
    (axis,) = axes
    if axis is not None:
        t.tie(*(x.ids for x in inputs))
    return axis


@register_handler(L.Concatenate)
@register_keras_names("Concatenate")
class Concatenate(Handler):
    """Along the channel axis id vectors are joined; along any other axis they are tied."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        shape = call.output_shapes[0]
        axis = call.op.axis % len(shape)
        if all(x.axis != axis for x in inputs):
            common = _same_axis(call, inputs, t)
            return [Tensor(shape, common, inputs[0].ids) if common is not None else Tensor(shape)]
        t.pin_tensors((x for x in inputs if x.axis != axis), f"is joined along another axis by {describe(call)}")
        ids = [x.ids if x.axis == axis else t.pinned(x.shape[axis], UNTRACKED) for x in inputs]
        return [Tensor(shape, axis, np.concatenate(ids))]


@register_handler(L.Dot)
class Dot(Handler):
    """Sums products of two tensors along an axis of each: channels along it end here, each with its partner."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        (left, right), (shape,), axes = inputs, call.output_shapes, _summed(call.op, inputs)
        along = [x.axis == axis for x, axis in zip(inputs, axes, strict=True)]
        if any(along) and not all(along):
            return give_up(call, inputs, t, "meets channels that are not tracked in")
        sizes = volume(left.shape[1:]) * volume(right.shape[1:]) // max(1, left.shape[axes[0]] or 1) ** 2
        if all(along):
            t.tie(left.ids, right.ids)
            t.spend(call.path, sizes, left.ids)
            if call.op.normalize:
                t.approximate(left.ids, f"{describe(call)} takes statistics over channels")
            return untracked(call)
        t.spend(call.path, sizes * (left.shape[axes[0]] or 1))
        # The axes of the left one come first, without that which is summed over, and one batch.
        for x, axis, before in ((left, axes[0], 0), (right, axes[1], len(left.shape) - 2)):
            if x.axis is not None:
                t.pin_tensors([right] if x is left else [], f"meets channels of another axis in {describe(call)}")
                return [Tensor(shape, before + x.axis - (x.axis > axis), x.ids)]
        return untracked(call)

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        axes = _summed(op, r.inputs)
        if any(x.axis != axis for x, axis in zip(r.inputs, axes, strict=True)):
            return op(*args, **kwargs)
        kept = np.flatnonzero(r.kept(r.inputs[0]))
        return op([keras.ops.take(x, kept, axis=axis) for x, axis in zip(args[0], axes, strict=True)], **kwargs)


def _summed(op: Any, inputs: tuple[Tensor, ...]) -> list[int]:
    """The axis of each input of a `Dot` along which products are summed."""
    axes = [op.axes] * 2 if isinstance(op.axes, int) else op.axes
    return [axis % len(x.shape) for x, axis in zip(inputs, axes, strict=True)]


@register_keras_names("Stack")
class Stack(Handler):
    """A new axis over tensors whose channels are tied."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        shape, common = call.output_shapes[0], _same_axis(call, inputs, t)
        if common is None:
            return [Tensor(shape)]
        return [Tensor(shape, common + (call.op.axis % len(shape) <= common), inputs[0].ids)]


@register_keras_names("Unstack")
class Unstack(Handler):
    """One axis dissolved into separate tensors."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        if x.axis is None:
            return untracked(call)
        axis = call.op.axis % len(x.shape)
        if axis == x.axis:
            return give_up(call, inputs, t, "is taken apart by")
        return [Tensor(s, x.axis - (axis < x.axis), x.ids) if s else Tensor(s) for s in call.output_shapes]


@register_keras_names("Split")
class Split(Handler):
    """`ops.split`: along the channel axis every part keeps its own ids."""

    sized = True

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, op = inputs[0], call.op
        if not x.tracked:
            return untracked(call)
        if op.axis % len(x.shape) != x.axis:
            return [Tensor(shape, x.axis, x.ids) if shape else Tensor(shape) for shape in call.output_shapes]
        parts = np.split(x.ids, op.indices_or_sections)
        return [
            Tensor(shape, x.axis, ids) if shape else Tensor(shape)
            for shape, ids in zip(call.output_shapes, parts, strict=False)
        ]

    def resize(self, config: dict, r: Resize) -> dict:
        x = r.inputs[0]
        if x.tracked and config["axis"] % len(x.shape) == x.axis:
            parts = np.split(r.kept(x), config["indices_or_sections"])
            config["indices_or_sections"] = np.cumsum([int(part.sum()) for part in parts[:-1]]).tolist()
        return config


@register_keras_names("GetItem")
class GetItem(Handler):
    """`x[...]`: contiguous slices of channels keep their ids; other channel indexing pins them."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        if not x.tracked or not shape:
            return [Tensor(shape)]
        key = _full_key(call.args[1], len(x.shape))
        if key is None or len(inputs) > 1:
            return give_up(call, inputs, t, "is indexed by an array in")
        in_axis = out_axis = 0
        for item in key:
            if in_axis == x.axis and item is not None:
                break
            in_axis += item is not None
            out_axis += not isinstance(item, int)
        if isinstance(item, int):
            t.pin(x.ids[[item]], f"is picked by number in {describe(call)}")
            t.reconsider(x.ids)
            return [Tensor(shape)]
        if item.step not in (None, 1) and item != slice(None, None, -1):
            return give_up(call, inputs, t, f"is taken in steps of {item.step} by")
        return [Tensor(shape, out_axis, x.ids[item])]

    def rewrite(self, args: tuple, kwargs: dict, r: Resize) -> tuple[tuple, dict]:
        x = r.inputs[0]
        full = _full_key(args[1], len(x.shape)) if x.tracked else None
        if full is None:
            return args, kwargs
        key, in_axis, kept = list(full), 0, r.kept(x)
        for position, item in enumerate(full):
            if in_axis == x.axis and item is not None:
                if isinstance(item, int):
                    key[position] = int(kept[: item % len(kept)].sum())
                elif item.step in (None, 1):
                    start, stop, _ = item.indices(len(kept))
                    first = int(kept[:start].sum())
                    key[position] = slice(first, first + int(kept[start:stop].sum()))
                break
            in_axis += item is not None
        return (args[0], tuple(key)), kwargs


@register_keras_names("Slice")
class Slice(Handler):
    """`ops.slice(x, start, shape)`: whole vectors of channels, cut along other axes."""

    sized = True

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        if x.axis is None:
            return [Tensor(shape)]
        if shape[x.axis] != len(x.ids):
            return give_up(call, inputs, t, "is cut out of others by")
        return [Tensor(shape, x.axis, x.ids)]

    def resize(self, config: dict, r: Resize) -> dict:
        axis, shape = r.outputs[0].axis, list(config["shape"])
        if axis is not None:
            shape[axis] = r.width(r.outputs[0])
        return config | {"shape": shape}


def _full_key(key, rank: int) -> tuple | None:
    """An index as one int, slice or None (new axis) per step, ellipsis spelled out; None where it holds arrays."""
    key = tuple(key) if isinstance(key, list | tuple) else (key,)
    if not all(item is None or item is Ellipsis or isinstance(item, int | np.integer | slice) for item in key):
        return None
    named = sum(item is not None and item is not Ellipsis for item in key)
    full = (slice(None),) * (rank - named)
    if Ellipsis not in [item for item in key if item is Ellipsis]:
        key = (*key, Ellipsis)
    at = next(i for i, item in enumerate(key) if item is Ellipsis)
    key = key[:at] + full + key[at + 1 :]
    return tuple(int(item) if isinstance(item, np.integer) else item for item in key)
