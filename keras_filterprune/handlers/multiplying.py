"""Layers that multiply: what they do to channels follows from what they multiply."""

from __future__ import annotations

import abc
import math
from typing import Any

import numpy as np

from keras_filterprune.checks import check_returned
from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.activation import pin_mixing_activation
from keras_filterprune.handlers.base import Handler, Resize, describe, read_last_axis, volume
from keras_filterprune.handlers.linear import Linear


def finish(call: Call, bias: str, ids: np.ndarray, t: Tracer) -> list[Tensor]:
    """Bind the bias, if there is one, look at the built-in activation, and return the output."""
    if bias in named_weights(call.op):
        t.bind(call.path, bias, 0, ids)
    pin_mixing_activation(call, ids, t)
    shape = call.output_shapes[0]
    return [Tensor(shape, len(shape) - 1, ids)]


class LinearHandler(Handler):
    """A layer whose outputs are activation(product + bias) of the channels on its last axis, in one group.

    A subclass implements `linear`; `trace` and `resize` follow from that.

    Attributes:
        width: the attribute of the layer, and argument of its constructor, that says how many outputs it has ("units").

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Rows(keras.layers.Dense):
        ...     def build(self, shape):
        ...         self.rows = self.add_weight((self.units, shape[-1]), name="rows")
        ...     def call(self, x):
        ...         return keras.ops.matmul(x, keras.ops.transpose(self.rows))
        ...
        >>> @kfp.register_handler(Rows)
        ... class RowsHandler(kfp.handlers.LinearHandler):
        ...     def linear(self, op):
        ...         product = lambda x, rows: keras.ops.matmul(x, keras.ops.transpose(rows))
        ...         return kfp.handlers.Linear(op, product, kernel="rows", channels=1, filters=0)
        ...
        >>> model = keras.Sequential([keras.Input((5,)), Rows(8, name="rows"), keras.layers.Dense(2)])
        >>> tuple(kfp.prune_model(model, "l2", 0.5).get_layer("rows").rows.shape)
        (4, 5)
    """

    width = "units"

    @abc.abstractmethod
    def linear(self, op: Any) -> Linear: ...

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        linear, shape = self.linear(call.op), call.output_shapes[0]
        fault = f"{type(self).__name__}.linear, for {describe(call)},"
        check_returned(isinstance(linear, Linear), fault, "return a Linear", linear, UnsupportedLayerError)
        kernel = linear.summed.shape
        channels, filters = linear.channels % len(kernel), linear.filters % len(kernel)
        read, made = read_last_axis(call, inputs[0], t), t.fresh(getattr(call.op, self.width), (call.path, "filters"))
        # A transposed convolution spreads every position of its input.
        positions = volume((call.input_shapes[0] if linear.transposed else shape)[1:-1])
        if linear.depthwise is not None:
            *window, _, _ = first = linear.weights[linear.depthwise].shape
            t.bind(call.path, linear.depthwise, len(first) - 2, read)
            read = linear.read(read)
            t.spend(call.path, positions * math.prod(window), read)
        taps = math.prod(n for axis, n in enumerate(kernel) if axis not in (channels, filters))
        t.bind(call.path, str(linear.kernel), channels, read, "input")
        t.bind(call.path, str(linear.kernel), filters, made, "filter")
        t.spend(call.path, positions * taps, read, made)
        return finish(call, linear.bias, made, t)

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        return config | {self.width: r.width(r.outputs[0])}
