"""Normalization layers. Those that take statistics over channels make a removal approximate, and say so."""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.base import Handler, Resize, describe
from keras_filterprune.handlers.registry import register_handler, register_keras_names
from keras_filterprune.handlers.statistics import Statistics

L = keras.layers
ops = keras.ops


def _axes(axis: Any, rank: int) -> list[int]:
    return [int(a) % rank for a in np.atleast_1d(axis)]


def _bind_all(call: Call, x: Tensor, axes: list[int], t: Tracer) -> None:
    """Bind every weight of the layer, whose dimensions are the dimensions `axes` of `x`."""
    for weight in named_weights(call.op):
        if x.axis in axes:
            t.bind(call.path, weight, axes.index(x.axis), x.ids)
        else:
            t.constant(call.path, weight)


@register_handler(L.BatchNormalization)
class BatchNormalization(Handler):
    """Inference statistics per channel: exact."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        _bind_all(call, x, _axes(call.op.axis, len(x.shape)), t)
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]

    def statistics(self, op: Any) -> Statistics:
        return Statistics(op, op.axis, op.epsilon)


@register_handler(L.Normalization)
class Normalization(Handler):
    """Feature-wise mean and variance, given in the configuration or adapted into weights: its channels stay."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        t.constant(call.path, *named_weights(call.op))
        if x.tracked and x.axis in _axes(call.op.axis if call.op.axis is not None else [], len(x.shape)):
            t.pin(x.ids, f"feeds the fixed statistics of {describe(call)}")
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]


class OverChannels(Handler):
    """Statistics along `axis`, channels among them: the remaining channels see other statistics."""

    def axes(self, op: Any, rank: int) -> list[int]:
        return _axes(op.axis, rank)

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        axes = self.axes(call.op, len(x.shape))
        _bind_all(call, x, axes, t)
        if x.axis in axes:
            t.approximate(x.ids, f"{describe(call)} takes statistics over channels")
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        x = r.inputs[0]
        if x.axis not in self.axes(op, len(x.shape)) or r.kept(x).all():
            return op(*args, **kwargs)
        shape = [1] * len(x.shape)
        shape[x.axis] = -1
        mask = ops.reshape(ops.convert_to_tensor(r.kept(x), "float32"), shape)
        y = self.masked(op, ops.cast(args[0], "float32"), mask, self.axes(op, len(x.shape)))
        return ops.cast(y, getattr(op, "compute_dtype", args[0].dtype))

    @abc.abstractmethod
    def masked(self, op: Any, x: Any, mask: Any, axes: list[int]) -> Any:
        """The layer's formula with sums over the channels where `mask` is 1."""

    @staticmethod
    def parameter(value: Any, x: Any, axes: list[int]) -> Any:
        """A weight over the dimensions `axes`, shaped to broadcast against `x`."""
        return ops.reshape(value, [x.shape[a] if a in axes else 1 for a in range(len(x.shape))])


def _masked_mean(x: Any, mask: Any, axes: list[int]) -> Any:
    mask = ops.broadcast_to(mask, ops.shape(x))
    return ops.sum(x * mask, axes, keepdims=True) / ops.sum(mask, axes, keepdims=True)


@register_handler(L.LayerNormalization)
class LayerNormalization(OverChannels):
    """(x - mean) / sqrt(var + epsilon) * gamma + beta."""

    def masked(self, op: Any, x: Any, mask: Any, axes: list[int]) -> Any:
        centred = x - _masked_mean(x, mask, axes)
        y = centred * ops.rsqrt(_masked_mean(centred**2, mask, axes) + op.epsilon)
        weights = named_weights(op)
        if "gamma" in weights:
            y = y * self.parameter(weights["gamma"], x, axes)
        if "beta" in weights:
            y = y + self.parameter(weights["beta"], x, axes)
        return y


@register_handler(L.RMSNormalization)
class RMSNormalization(OverChannels):
    """x / sqrt(mean(x^2) + epsilon) * scale."""

    def masked(self, op: Any, x: Any, mask: Any, axes: list[int]) -> Any:
        y = x * ops.rsqrt(_masked_mean(x**2, mask, axes) + op.epsilon)
        return y * self.parameter(named_weights(op)["scale"], x, axes)


@register_handler(L.UnitNormalization)
@register_keras_names("Normalize")
class UnitNormalization(OverChannels):
    """x / |x| along `axis`, in any norm."""

    def masked(self, op: Any, x: Any, mask: Any, axes: list[int]) -> Any:
        return op(x * mask)


@register_handler(L.GroupNormalization)
class GroupNormalization(Handler):
    """Statistics per group of channels: the same position of every group is tied, so groups stay equal."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, op = inputs[0], call.op
        _bind_all(call, x, _axes(op.axis, len(x.shape)), t)
        if x.axis == _axes(op.axis, len(x.shape))[0] and not self._per_channel(op, x):
            t.tie(*x.ids.reshape(op.groups, -1))
            t.approximate(x.ids, f"{describe(call)} takes statistics over channels")
        elif x.tracked and x.axis != _axes(op.axis, len(x.shape))[0]:
            t.pin(x.ids, f"is averaged like a spatial axis by {describe(call)}")
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]

    def resize(self, config: dict, r: Resize) -> dict:
        x = r.inputs[0]
        if config["groups"] != -1 and self._per_channel(r.call.op, x):
            config["groups"] = r.width(x)
        return config

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        x = r.inputs[0]
        if not x.tracked or self._per_channel(op, x) or r.kept(x).all():
            return op(*args, **kwargs)
        # Groups side by side on an axis of their own: layer normalization over positions and kept channels.
        value = ops.cast(ops.moveaxis(args[0], x.axis, -1), "float32")
        grouped = (*ops.shape(value)[:-1], op.groups, len(x.ids) // op.groups)
        mask = ops.reshape(ops.convert_to_tensor(r.kept(x), value.dtype), grouped[-2:])
        parts, axes = ops.reshape(value, grouped), [*range(1, len(grouped) - 2), len(grouped) - 1]
        parts = parts - _masked_mean(parts, mask, axes)
        parts = parts * ops.rsqrt(_masked_mean(parts**2, mask, axes) + op.epsilon)
        y = ops.reshape(parts, ops.shape(value))
        weights = named_weights(op)
        y = y * weights["gamma"] if "gamma" in weights else y
        y = y + weights["beta"] if "beta" in weights else y
        return ops.cast(ops.moveaxis(y, -1, x.axis), op.compute_dtype)

    @staticmethod
    def _per_channel(op: Any, x: Tensor) -> bool:
        return op.groups in (-1, x.shape[op.axis])


@register_keras_names("LayerScale")
class LayerScale(Handler):
    """keras.applications' ConvNeXt: one learned factor per channel, its number repeated in the configuration."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        _bind_all(call, x, [len(x.shape) - 1], t)
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]

    def resize(self, config: dict, r: Resize) -> dict:
        return config | {"projection_dim": r.shape(r.outputs[0])[-1]}
