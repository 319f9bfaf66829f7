"""`EinsumDense`: a dense layer over the axes that an equation names."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.activation import pin_mixing_activation
from keras_filterprune.handlers.base import UNTRACKED, Handler, Resize, describe, give_up, volume
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.registry import register_handler


@register_handler(keras.layers.EinsumDense)
class EinsumDense(Handler):
    """Sums over a channel axis, and makes channels along the first output axis that only the kernel has.

    Of "abc,cde->abde", heads of queries say, c is read and d is made: whole heads, of e numbers each.
    """

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        (x,), shape, weights = inputs, call.output_shapes[0], named_weights(call.op)
        read, kernel, made = _terms(call.op)
        summed = [letter for letter in kernel if letter in read and letter not in made]
        new = [letter for letter in made if letter in kernel and letter not in read]
        twice = any(len(set(letters)) < len(letters) for letters in (read.replace(".", ""), kernel))
        if twice or not summed or not new:
            t.constant(call.path, *weights)
            return give_up(call, inputs, t, f"feeds equation '{call.op.equation}' of")
        if weights.keys() - {"kernel", "bias"}:
            t.constant(call.path, *weights)
            return give_up(call, inputs, t, "feeds the quantized or adapted kernel of")
        along = {_axis(read, letter, len(x.shape)): kernel.index(letter) for letter in summed}
        if x.axis in along:
            axis, ids = along[x.axis], x.ids
        else:
            t.pin_tensors(inputs, f"lies on axis {x.axis}, over which {describe(call)} does not sum")
            axis = kernel.index(summed[-1])
            ids = t.pinned(weights["kernel"].shape[axis], UNTRACKED)
        sizes = dict(zip(kernel, weights["kernel"].shape, strict=True))
        out, out_axis = t.fresh(sizes[new[0]], (call.path, "filters")), _axis(made, new[0], len(shape))
        t.bind(call.path, "kernel", axis, ids, "input")
        t.bind(call.path, "kernel", kernel.index(new[0]), out, "filter")
        products = volume(x.shape[1:]) * volume(tuple(sizes[letter] for letter in kernel if letter not in read))
        t.spend(call.path, products // (len(ids) * len(out)), ids, out)
        if "bias" in weights:
            # Lies at the end of the output, with ones between the axes that it has.
            _bind_bias(call, out_axis - len(shape) + len(weights["bias"].shape), new[0], out, t)
        pin_mixing_activation(call, out, t)
        return [Tensor(shape, out_axis, out)]

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        (out,), sizes = r.outputs, config["output_shape"]
        # Without the batch axis, and without the axes of an ellipsis.
        first = 1 if _terms(r.call.op)[2].endswith(".") else len(out.shape) - len(sizes)
        return config | {
            "output_shape": tuple(r.width(out) if n == out.axis else s for n, s in enumerate(sizes, first))
        }

    def linear(self, op: Any) -> Linear | None:
        read, kernel, made = _terms(op)
        dense = len(kernel) == 2 and read.endswith(kernel[0]) and made == read[:-1] + kernel[1]
        if not dense or op.bias_axes not in (None, kernel[1]):
            return None
        return Linear(op, keras.ops.matmul, activation=op.activation)


def _terms(op: Any) -> list[str]:
    """Input, kernel and output of an equation."""
    return re.split(",|->", op.equation)


def _axis(term: str, letter: str, rank: int) -> int:
    """The axis of a tensor that a letter stands for."""
    axis = term.replace(".", "").index(letter)
    return axis + rank - len(term.replace(".", "")) if term.startswith(".") else axis


def _bind_bias(call: Call, axis: int, letter: str, ids: Any, t: Tracer) -> None:
    if letter in call.op.bias_axes:
        t.bind(call.path, "bias", axis, ids)
    else:
        t.constant(call.path, "bias")
