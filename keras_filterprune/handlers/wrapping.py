"""Wrappers that apply another layer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import keras

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Shape, Tensor
from keras_filterprune.handlers.base import Handler, Resize, give_up, volume
from keras_filterprune.handlers.convolution import Conv, Dense
from keras_filterprune.handlers.registry import check_format, handler_for, register_handler

L = keras.layers


class Wrapper(Handler):
    """A layer that applies `op.layer`: the inner layer's handler does the work under the wrapper's path."""

    def inner(self, call: Call, inputs: tuple[Tensor, ...]) -> tuple[Handler, Call, tuple[Tensor, ...]]:
        """Handler, call and tensors as the wrapped layer sees them."""
        check_format(call.op.layer)
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
        check_format(call.op.layer)

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
