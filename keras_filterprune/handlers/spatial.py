"""Pooling, padding, cropping and resampling: operations on spatial axes that leave the channels where they are."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.base import Handler, Resize, describe, give_up, untracked
from keras_filterprune.handlers.registry import keras_name, register_handler, register_keras_names

L = keras.layers


@register_handler(
    L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D,
    L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D,
    L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D,
    L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D, L.Cropping1D, L.Cropping2D, L.Cropping3D,
    L.UpSampling1D, L.UpSampling2D, L.UpSampling3D, L.Resizing, L.CenterCrop,
)  # fmt: skip
@register_keras_names(
    *["MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool", "Resize", "PadImages", "CropImages"],
    *["AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"],
    *["AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"],
)
class Spatial(Handler):
    """Channels last in, channels last out."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        if x.tracked and (x.axis != len(x.shape) - 1 or len(inputs) > 1):
            return give_up(call, inputs, t, "lies on an axis that is resampled by")
        shape = call.output_shapes[0]
        return [Tensor(shape, len(shape) - 1, x.ids) if x.tracked else Tensor(shape)]


@register_keras_names("ExtractPatches")
class Patches(Handler):
    """`ops.image.extract_patches`: the channels of every position of a patch behind each other."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        if x.tracked and x.axis != len(x.shape) - 1:
            return give_up(call, inputs, t, "lies on an axis that is cut by")
        return [Tensor(shape, len(shape) - 1, np.tile(x.ids, math.prod(call.op.size))) if x.tracked else Tensor(shape)]


@register_keras_names("SpaceToDepth", "DepthToSpace")
class Blocks(Handler):
    """Pixels of a block and channels change places: those of every pixel of it behind each other."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape, pixels = inputs[0], call.output_shapes[0], call.op.block_size**2
        if not x.tracked:
            return [Tensor(shape)]
        if x.axis != len(shape) - 1:
            return give_up(call, inputs, t, "lies on an axis that is cut by")
        if keras_name(call.op) == "SpaceToDepth":
            return [Tensor(shape, x.axis, np.tile(x.ids, pixels))]
        rows = x.ids.reshape(pixels, -1)
        t.tie(*rows)
        return [Tensor(shape, x.axis, rows[0])]


# What is defined over any number of channels; sums alone lose nothing but the channels that go.
_OVER_CHANNELS = frozenset("Sum Mean Max Min Amax Amin Var Std Logsumexp Norm Moments".split())


@register_keras_names(*_OVER_CHANNELS, "Prod", "Any", "All", "Median", "CountNonzero")
class Reduction(Handler):
    """Over axes other than the channels it keeps them apart; over channels, it is taken over those that stay."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, name = inputs[0], keras_name(call.op)
        if x.axis is None or len(inputs) > 1:
            return give_up(call, inputs, t, "feeds")
        axes = _reduced(call.op, len(x.shape))
        if x.axis in axes:
            if name not in _OVER_CHANNELS:
                return give_up(call, inputs, t, "is reduced over channels by")
            if name != "Sum":
                t.approximate(x.ids, f"{describe(call)} takes statistics over channels")
            return untracked(call)
        before = sum(a < x.axis for a in axes)
        return [
            Tensor(shape, x.axis - (before if len(shape) < len(x.shape) else 0), x.ids) for shape in call.output_shapes
        ]

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        x = r.inputs[0]
        if x.axis is None or x.axis not in _reduced(op, len(x.shape)) or r.kept(x).all():
            return op(*args, **kwargs)
        return op(keras.ops.take(args[0], np.flatnonzero(r.kept(x)), axis=x.axis), *args[1:], **kwargs)


def _reduced(op: Any, rank: int) -> list[int]:
    axis = op.axes if keras_name(op) == "Moments" else op.axis
    return list(range(rank)) if axis is None else [int(a) % rank for a in np.atleast_1d(axis)]


@register_keras_names("Cumsum", "Cumprod")
class AlongAxis(Handler):
    """Operations along one axis that treat every other axis independently."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        axis = call.op.axis
        if not x.tracked or axis is None or x.axis == axis % len(x.shape):
            return give_up(call, inputs, t, "is added up along channels by")
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]


@register_keras_names("FFT", "FFT2", "IFFT2", "RFFT", "IRFFT")
class Fourier(Handler):
    """Transforms of real and imaginary parts over the last axis, or the last two; others stay as they are."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        axis, ids = inputs[0].axis, inputs[0].ids
        first = len(inputs[0].shape) - (2 if keras_name(call.op).endswith("2") else 1)
        if axis is None or axis >= first or any(x.axis != axis for x in inputs):
            return give_up(call, inputs, t, "is mixed with all others by")
        t.tie(*(x.ids for x in inputs))
        return [Tensor(shape, axis, ids) for shape in call.output_shapes]


@register_keras_names("Flip")
class Flip(Handler):
    """Axes are run through from behind."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        flipped = x.axis in _reduced(call.op, len(x.shape))
        return [Tensor(x.shape, x.axis, x.ids[::-1] if flipped else x.ids)]


@register_keras_names("Roll")
class Roll(Handler):
    """The last of an axis come to its front: fewer of them, where some go."""

    sized = True

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        if x.tracked and call.op.axis is None:
            return give_up(call, inputs, t, "is moved across channels by")
        return [Tensor(x.shape, x.axis, np.roll(x.ids, _shift(call.op, x)) if x.tracked else x.ids)]

    def resize(self, config: dict, r: Resize) -> dict:
        x = r.inputs[0]
        axes = [int(a) % len(x.shape) for a in np.atleast_1d(config["axis"])]
        shifts = np.broadcast_to(config["shift"], len(axes)).tolist()
        if x.axis in axes:
            to_front = _shift(r.call.op, x) % len(x.ids)
            shifts = [0 if a == x.axis else s for a, s in zip(axes, shifts, strict=True)]
            shifts[axes.index(x.axis)] = int(r.kept(x)[len(x.ids) - to_front :].sum())
        return config | {"shift": tuple(shifts), "axis": tuple(axes)}


def _shift(op: Any, x: Tensor) -> int:
    """By how many places channels are moved."""
    axes = [int(a) % len(x.shape) for a in np.atleast_1d(op.axis)]
    shifts = np.broadcast_to(op.shift, len(axes)).tolist()
    return sum(s for a, s in zip(axes, shifts, strict=True) if a == x.axis)


@register_keras_names("Pad")
class Pad(Handler):
    """Constant channel padding adds ids without filters: they follow whatever they are later tied to."""

    sized = True

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, op = inputs[0], call.op
        if x.axis is None or len(inputs) > 1:
            return give_up(call, inputs, t, "feeds")
        before, after = _widths(op.pad_width, len(x.shape))[x.axis]
        if before == after == 0:
            return [Tensor(call.output_shapes[0], x.axis, x.ids)]
        if op.mode != "constant":
            return give_up(call, inputs, t, f"is padded with mode '{op.mode}' by")
        ids = np.concatenate([t.fresh(before), x.ids, t.fresh(after)])
        return [Tensor(call.output_shapes[0], x.axis, ids)]

    def resize(self, config: dict, r: Resize) -> dict:
        x, out = r.inputs[0], r.outputs[0]
        if x.axis is not None:
            widths = [list(w) for w in _widths(config["pad_width"], len(x.shape))]
            before, after = widths[x.axis]
            kept = r.kept(out)
            widths[x.axis] = [int(kept[:before].sum()), int(kept[len(kept) - after :].sum())]
            config["pad_width"] = widths
        return config


def _widths(pad_width, rank: int) -> list[tuple[int, int]]:
    """`pad_width` of ops.pad in any of numpy's spellings, as one (before, after) per axis."""
    return [(int(before), int(after)) for before, after in np.broadcast_to(np.asarray(pad_width), (rank, 2))]
