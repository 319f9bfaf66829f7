"""Layers of the user's that do something in training alone, or to every number alike: stochastic depth, own noise."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import keras

from keras_filterprune.graph.keras_view import substitute
from keras_filterprune.graph.types import Call
from keras_filterprune.handlers.functions import is_elementwise


def passes_in_inference(layer: Any) -> bool:
    """Whether `layer.call(x, training=False)` is `x` itself, whatever `x` is, so that no channel meets another."""
    if not isinstance(layer, keras.layers.Layer) or not takes_training(layer):
        return False
    anything = object()
    # Whatever looks at its input raises one thing or another, and what it counts is not to be counted.
    with contextlib.suppress(Exception), keras.StatelessScope():
        return type(layer).call(layer, anything, training=False) is anything
    return False


def treats_alike(call: Call) -> bool:
    """Whether a layer treats every number alike in inference: a sum with a scaled shortcut, say.

    It is called on numbers of which one input has any, and every other a function of those.
    """
    layer, (first, *others) = call.op, dict.fromkeys(call.inputs)
    if not isinstance(layer, keras.layers.Layer) or len(set(call.input_shapes)) > 1:
        return False
    training = {"training": False} if takes_training(layer) else {}

    def alike(x: Any) -> Any:
        given = {first: x} | {ref: keras.ops.cos((n + 1) * x) for n, ref in enumerate(others)}
        args, kwargs = substitute((call.args, call.kwargs), given)
        return type(layer).call(layer, *args, **kwargs | training)

    return passes_in_inference(layer) or is_elementwise(alike, call.input_shapes[0], layer.compute_dtype)


def takes_training(layer: Any) -> bool:
    """Whether the `call()` of a layer has an argument `training`."""
    return "training" in inspect.signature(type(layer).call).parameters
