"""Pooling, padding, cropping and resampling: operations on spatial axes that leave the channels where they are."""

from __future__ import annotations

import keras
import numpy as np

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.base import Handler, Resize, give_up
from keras_filterprune.handlers.registry import register_handler, register_keras_names

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


@register_keras_names(
    *"""
    Mean Sum Max Min Var Std Prod Any All Logsumexp Amax Amin Median CountNonzero
""".split()
)
class Reduction(Handler):
    """A reduction over axes other than the channels keeps them apart."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        if x.axis is None or len(inputs) > 1:
            return give_up(call, inputs, t, "feeds")
        rank = len(x.shape)
        axes = range(rank) if call.op.axis is None else [int(a) % rank for a in np.atleast_1d(call.op.axis)]
        if x.axis in axes:
            return give_up(call, inputs, t, "is reduced over channels by")
        before = 0 if len(shape) == rank else sum(a < x.axis for a in axes)
        return [Tensor(shape, x.axis - before, x.ids)]


@register_keras_names("Cumsum", "Cumprod", "Flip", "Roll", "Normalize")
class AlongAxis(Handler):
    """Operations along one axis that treat every other axis independently."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        axes = getattr(call.op, "axis", None)
        if not x.tracked or axes is None or x.axis in [int(a) % len(x.shape) for a in np.atleast_1d(axes)]:
            return give_up(call, inputs, t, "is mixed or moved along channels by")
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]


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
