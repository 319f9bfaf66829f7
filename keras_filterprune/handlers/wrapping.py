"""Recurrent layers as consumers, and wrappers that apply another layer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import keras

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Shape, Tensor
from keras_filterprune.handlers.base import Handler, Resize, give_up, read_last_axis, untracked, volume
from keras_filterprune.handlers.convolution import Conv, Dense
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.registry import handler_for, register_handler

L = keras.layers


@register_handler(L.SimpleRNN)
class Recurrent(Handler):
    """Reads channels through its input kernel; its own units are tied through time and stay.

    Attributes:
        gates: numbers that a unit computes in a step, each with a kernel of its own.
    """

    gates = 1

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        return _read_in_time(call, inputs, t, [call.op])

    def linear(self, op: Any) -> Linear:
        # What a gate sums up has to do with what the layer remembers as well.
        return Linear(op, None, activation=getattr(op, "activation", None))


@register_handler(L.LSTM)
class LSTM(Recurrent):
    """Three gates and the new state."""

    gates = 4


@register_handler(L.GRU)
class GRU(Recurrent):
    """Two gates and the new state."""

    gates = 3


@register_handler(L.Bidirectional)
class Bidirectional(Handler):
    """A recurrent layer for either direction of time."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        return _read_in_time(call, inputs, t, [call.op.forward_layer, call.op.backward_layer])


def _read_in_time(call: Call, inputs: tuple[Tensor, ...], t: Tracer, layers: list[Any]) -> list[Tensor]:
    """What a call does whose recurrent layers all read its one input."""
    handlers = [handler for layer in layers if isinstance(handler := handler_for(layer), Recurrent)]
    if len(handlers) < len(layers) or len(inputs) > 1:
        return give_up(call, inputs, t, "feeds")
    x = read_last_axis(call, inputs[0], t)
    steps = volume(call.input_shapes[0][1:2])
    for name in named_weights(call.op):
        if name.startswith("kernel"):
            t.bind(call.path, name, 0, x, "input")
        else:
            t.constant(call.path, name)
    for handler, layer in zip(handlers, layers, strict=True):
        numbers = steps * handler.gates * layer.units
        t.spend(call.path, numbers, x)
        t.spend(call.path, numbers * layer.units)
    return untracked(call)


class Wrapper(Handler):
    """A layer that applies `op.layer`: the inner layer's handler does the work under the wrapper's path."""

    def inner(self, call: Call, inputs: tuple[Tensor, ...]) -> tuple[Handler, Call, tuple[Tensor, ...]]:
        """Handler, call and tensors as the wrapped layer sees them."""
        return handler_for(call.op.layer), replace(call, op=call.op.layer), inputs

    def resize(self, config: dict, r: Resize) -> dict:
        handler, call, inputs = self.inner(r.call, r.inputs)
        _, _, outputs = self.inner(r.call, r.outputs)
        inner = copy.deepcopy(config["layer"])
        inner["config"] = handler.resize(inner["config"], Resize(call, inputs, outputs, r.alive, r.binds))
        return config | {"layer": inner}


@register_handler(L.TimeDistributed)
class TimeDistributed(Wrapper):
    """The inner layer sees every tensor without axis 1."""

    def inner(self, call: Call, inputs: tuple[Tensor, ...]) -> tuple[Handler, Call, tuple[Tensor, ...]]:
        def step(shape: Shape) -> Shape:
            return shape[:1] + shape[2:]

        inner = replace(
            call,
            op=call.op.layer,
            input_shapes=tuple(map(step, call.input_shapes)),
            output_shapes=tuple(map(step, call.output_shapes)),
        )
        axes = [None if x.axis is None else x.axis - 1 for x in inputs]
        tensors = tuple(Tensor(step(x.shape), axis, x.ids) for x, axis in zip(inputs, axes, strict=True))
        return handler_for(call.op.layer), inner, tensors

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        if inputs[0].axis == 1 or len(inputs) > 1:
            return give_up(call, inputs, t, "lies on the time axis of")
        handler, inner, tensors = self.inner(call, inputs)
        with t.times(volume(call.input_shapes[0][1:2])):
            outputs = handler.trace(inner, tensors, t)
        return [
            Tensor(shape, None if x.axis is None else x.axis + 1, x.ids)
            for shape, x in zip(call.output_shapes, outputs, strict=True)
        ]

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        handler, call, inputs = self.inner(r.call, r.inputs)
        _, _, outputs = self.inner(r.call, r.outputs)
        if type(handler).masked_call is Handler.masked_call:
            return op(*args, **kwargs)
        inner = Resize(call, inputs, outputs, r.alive, r.binds)
        frames = keras.ops.unstack(args[0], axis=1)
        return keras.ops.stack([handler.masked_call(op.layer, (f,), {}, inner) for f in frames], axis=1)


@register_handler(L.SpectralNormalization)
class SpectralNormalization(Wrapper):
    """Divides the kernel by its largest singular value while training; `vector_u` runs along the filters."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        handler, inner, tensors = self.inner(call, inputs)
        if not isinstance(handler, Conv | Dense):
            return give_up(call, inputs, t, "feeds")
        (out,) = handler.trace(inner, tensors, t)
        t.bind(call.path, "vector_u", 1, out.ids)
        return [out]
