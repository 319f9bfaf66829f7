"""What training-time wrappers have in common, and how analysis sees through them."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.wrapping import Wrapper


class TrainingWrapper(keras.layers.Wrapper):
    """A layer that acts on another one while it trains; `strip_wrappers` takes it off.

    Args:
        layer: the wrapped layer, which casts its inputs and its weights itself.
        suffix: of the wrapper's default name.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, layer: keras.layers.Layer, suffix: str, **kwargs):
        kwargs = {"name": layer.name + suffix} | kwargs | {"dtype": layer.variable_dtype, "autocast": False}
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    def compute_output_spec(self, inputs: Any, **kwargs) -> Any:
        kwargs.pop("training", None)
        return self.layer.compute_output_spec(inputs, **kwargs)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> TrainingWrapper:
        # Keras' own takes the layer out of the dict that it is given.
        return super().from_config(dict(config), custom_objects)


class Transparent(Wrapper):
    """Handler of training-time wrappers: the wrapped layer's, and a mask along the input channels."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        handler, inner, tensors = self.inner(call, inputs)
        outputs = handler.trace(inner, tensors, t)
        for name in named_weights(call.op).keys() - t.known_weights(call.path):
            if name in ("mask", "noise") and inputs[0].tracked:
                t.bind(call.path, name, 0, inputs[0].ids)
            else:
                t.constant(call.path, name)
        return outputs


def unwrapped(op: Any) -> Any:
    """The layer inside training-time wrappers, or the operation itself."""
    while isinstance(op, TrainingWrapper):
        op = op.layer
    return op


def wrappers_of(model: keras.Model, kind: type[TrainingWrapper]) -> list[Any]:
    """All wrappers of a kind, in nested models and in other wrappers too."""
    found, waiting = [], [model]
    while waiting:
        layer = waiting.pop()
        waiting += getattr(layer, "layers", ())
        if isinstance(layer, kind):
            found.append(layer)
        if isinstance(layer, TrainingWrapper):
            waiting.append(layer.layer)
    return found
