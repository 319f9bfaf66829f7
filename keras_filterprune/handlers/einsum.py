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

    Of "abc,cde->abde", heads of queries say, c is read and d is made: whole heads, of e numbers each. Channels along an
    axis that input, kernel and output share, as when each head has a matrix of its own, stay on it.
    """

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        (x,), shape, weights = inputs, call.output_shapes[0], named_weights(call.op)
        read, kernel, made = _terms(call.op)
        if any(len(set(letters)) < len(letters) for letters in (read.replace(".", ""), kernel)):
            t.constant(call.path, *weights)
            return give_up(call, inputs, t, f"feeds equation '{call.op.equation}' of")
        if weights.keys() - {"kernel", "bias"}:
            t.constant(call.path, *weights)
            return give_up(call, inputs, t, "feeds the quantized or adapted kernel of")
        at: dict[int | None, str] = {_axis(read, letter, len(x.shape)): letter for letter in kernel if letter in read}
        sizes = dict(zip(kernel, weights["kernel"].shape, strict=True))
        products = volume(x.shape[1:]) * volume(tuple(sizes[letter] for letter in kernel if letter not in read))
        carried = at.get(x.axis, ".")
        if carried in made:
            t.bind(call.path, "kernel", kernel.index(carried), x.ids)
            t.spend(call.path, products // len(x.ids), x.ids)
            return self._made(call, carried, x.ids, t)
        summed = {axis: kernel.index(letter) for axis, letter in at.items() if letter not in made}
        # Channels never lie along the first axis: samples do, or what takes turns with them.
        new = [letter for letter in made if letter in kernel and letter not in read]
        new = [letter for letter in new if _axis(made, letter, len(shape))]
        if not summed or not new:
            t.constant(call.path, *weights)
            return give_up(call, inputs, t, f"feeds equation '{call.op.equation}' of")
        if x.axis in summed:
            axis, ids = summed[x.axis], x.ids
        else:
            t.pin_tensors(inputs, f"lies on axis {x.axis}, over which {describe(call)} does not sum")
            t.reconsider(x.ids)
            axis = max(summed.values())
            ids = t.pinned(weights["kernel"].shape[axis], UNTRACKED)
        # Whole heads, say; the numbers of each where those cannot go.
        letter = t.lay(call.path, new)
        out = t.fresh(sizes[letter], (call.path, "filters"))
        if len(new) > 1:
            t.laid(call.path, letter, out, last=True)
        t.bind(call.path, "kernel", axis, ids, "input")
        t.bind(call.path, "kernel", kernel.index(letter), out, "filter")
        t.spend(call.path, products // (len(ids) * len(out)), ids, out)
        return self._made(call, letter, out, t)

    def _made(self, call: Call, letter: str, ids: Any, t: Tracer) -> list[Tensor]:
        """The output, whose channels lie along a letter of the equation."""
        shape, weights = call.output_shapes[0], named_weights(call.op)
        axis = _axis(_terms(call.op)[2], letter, len(shape))
        if "bias" in weights:
            # Lies at the end of the output, with ones between the axes that it has.
            _bind_bias(call, axis - len(shape) + len(weights["bias"].shape), letter, ids, t)
        pin_mixing_activation(call, ids, t)
        return [Tensor(shape, axis, ids)]

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
