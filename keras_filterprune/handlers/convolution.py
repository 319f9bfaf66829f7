"""Convolutions and dense layers: the layers that own filters."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.base import UNTRACKED, Handler, Resize, describe, read_last_axis, volume, weight_axis
from keras_filterprune.handlers.linear import Linear, Window
from keras_filterprune.handlers.multiplying import LinearHandler, finish
from keras_filterprune.handlers.registry import register_handler

L = keras.layers


def _convolved(op: Any, convolve: Callable[..., Any], **what: Any) -> Linear:
    """What a layer with a window multiplies, by a convolution of `keras.ops`."""
    window = Window(op.kernel_size, op.strides, op.padding, op.dilation_rate)
    activation = getattr(op, "activation", None)
    return Linear(op, partial(window.over, convolve), activation=activation, window=window, **what)


def _grouped(x: Any, kernel: Any, strides: tuple[int, ...], **window: Any) -> Any:
    """A grouped convolution. On TensorFlow's CPU Keras compiles it anew at every call, for slow code: where every group
    has one channel, and backends have a depthwise convolution, it is that one.
    """
    *taps, channels, filters = kernel.shape
    if channels > 1 or len(taps) > 2 or len(set(strides)) > 1:
        return keras.ops.conv(x, kernel, strides=strides, **window)
    groups = x.shape[-1]
    kernel = keras.ops.reshape(kernel, (*taps, groups, filters // groups))
    return keras.ops.depthwise_conv(x, kernel, strides=strides, **window)


@register_handler(L.Conv1D, L.Conv2D, L.Conv3D)
class Conv(LinearHandler):
    """Kernel (*window, in / groups, out); the same position of every group is tied, so groups stay equal."""

    width = "filters"

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        op = call.op
        if op.groups == 1:
            return super().trace(call, inputs, t)
        x = read_last_axis(call, inputs[0], t)
        positions = volume(call.output_shapes[0][1:-1]) * math.prod(op.kernel_size)
        in_axis, out_axis = (weight_axis(call, "kernel", axis) for axis in (-2, -1))
        if op.groups == len(x):
            # One input channel per group is a depthwise convolution: channels move through, groups follow.
            out = np.repeat(x, op.filters // op.groups)
            t.bind(call.path, "kernel", out_axis, out, "filter")
            t.spend(call.path, positions, out)
            return finish(call, "bias", out, t)
        out = t.fresh(op.filters, (call.path, "filters"))
        t.tie(*x.reshape(op.groups, -1))
        t.tie(*out.reshape(op.groups, -1))
        read = x.reshape(op.groups, -1)[0]
        t.bind(call.path, "kernel", in_axis, read, "input")
        t.bind(call.path, "kernel", out_axis, out, "filter")
        t.spend(call.path, positions, read, out)
        return finish(call, "bias", out, t)

    def resize(self, config: dict, r: Resize) -> dict:
        channels = r.inputs[0].shape[-1]
        if config["groups"] > 1 and config["groups"] == channels:
            config["groups"] = r.shape(r.inputs[0])[-1]
        return super().resize(config, r)

    def linear(self, op: Any) -> Linear:
        return _convolved(op, keras.ops.conv if op.groups == 1 else _grouped, groups=op.groups)


@register_handler(L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
class ConvTranspose(LinearHandler):
    """Kernel (*window, out, in): the channel axes are swapped."""

    width = "filters"

    def linear(self, op: Any) -> Linear:
        transpose = partial(keras.ops.conv_transpose, output_padding=op.output_padding)
        return _convolved(op, transpose, channels=-1, filters=-2, transposed=True)


@register_handler(L.DepthwiseConv1D, L.DepthwiseConv2D)
class DepthwiseConv(Handler):
    """Kernel (*window, in, multiplier): output channel c * multiplier + q comes from input channel c."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, op = read_last_axis(call, inputs[0], t), call.op
        t.bind(call.path, "kernel", weight_axis(call, "kernel", -2), x, "filter")
        out = np.repeat(x, op.depth_multiplier) if op.depth_multiplier > 1 else x
        t.spend(call.path, volume(call.output_shapes[0][1:-1]) * math.prod(op.kernel_size), out)
        return finish(call, "bias", out, t)

    def linear(self, op: Any) -> Linear:
        return _convolved(op, keras.ops.depthwise_conv, kernel=None, depthwise="kernel")


@register_handler(L.SeparableConv1D, L.SeparableConv2D)
class SeparableConv(LinearHandler):
    """A depthwise kernel (*window, in, multiplier) followed by a pointwise one (*ones, in * multiplier, out)."""

    width = "filters"

    def linear(self, op: Any) -> Linear:
        return _convolved(op, keras.ops.separable_conv, kernel="pointwise_kernel", depthwise="depthwise_kernel")


@register_handler(L.Dense)
class Dense(LinearHandler):
    """Kernel (in, units), applied along the last axis of a tensor of any rank.

    Where channels lie along another axis, as those of images do when patches are mixed, they move through, and the
    units stay; the other way round where no channel could go anyhow.
    """

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        if x.axis in (None, len(x.shape) - 1) or t.fixed(x.ids) or t.lay(call.path, [x.axis, None]) is None:
            return super().trace(call, inputs, t)
        t.hoped(call.path, x.axis, x.ids)
        made = t.fresh(call.op.units, (call.path, "filters"))
        t.pin(made, f"is made along another axis than that of channels by {describe(call)}")
        t.bind(call.path, "kernel", 0, t.pinned(x.last, UNTRACKED), "input")
        t.bind(call.path, "kernel", 1, made, "filter")
        t.spend(call.path, volume(x.shape[1:]) * call.op.units // len(x.ids), x.ids)
        finish(call, "bias", made, t)
        return [Tensor(shape, x.axis, x.ids)]

    def resize(self, config: dict, r: Resize) -> dict:
        through = r.outputs[0].axis not in (None, len(r.outputs[0].shape) - 1)
        return config if through else super().resize(config, r)

    def linear(self, op: Any) -> Linear:
        return Linear(op, keras.ops.matmul, activation=getattr(op, "activation", None))


@register_handler(L.Embedding)
class Embedding(Handler):
    """Table (vocabulary, out): its columns are filters; looking up costs no multiplication."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        out = t.fresh(call.op.output_dim, (call.path, "filters"))
        t.bind(call.path, "embeddings", 1, out, "filter")
        t.spend(call.path, 0)
        shape = call.output_shapes[0]
        return [Tensor(shape, len(shape) - 1, out)]

    def resize(self, config: dict, r: Resize) -> dict:
        return config | {"output_dim": r.width(r.outputs[0])}
