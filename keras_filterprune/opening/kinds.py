"""Which layers are opened: those whose `call()` is made of other layers and operations, and that nobody has taught."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_filterprune.graph.keras_view import functional_class, plain_call
from keras_filterprune.handlers.functions import is_elementwise
from keras_filterprune.handlers.passing import passes_in_inference
from keras_filterprune.handlers.registry import is_known, keras_class, keras_name, statistics_of

# Of what the functions of `Lambda` layers are tried on.
_SHAPES = [(*(None,) * rank, 5) for rank in range(1, 5)]


def has_graph(layer: Any) -> bool:
    """Whether a layer is a model that computes its graph of layers and nothing else."""
    return isinstance(layer, keras.Model) and bool(graph_inputs(layer)) and plain_call(layer)


def graph_inputs(model: keras.Model) -> Any:
    """The inputs of a model that was made with a graph of layers, None of others."""
    # Models that are not built raise in the place of answering.
    try:
        return model.inputs
    except (AttributeError, ValueError):
        return None


def is_over_time(layer: Any) -> bool:
    """Whether a layer applies a model to every step of time."""
    return type(layer) is keras.layers.TimeDistributed and has_graph(layer.layer)


def is_composite(layer: Any) -> bool:
    """Whether to look into a layer: it is of nobody's but the user's, and nothing is registered for it."""
    if not isinstance(layer, keras.layers.Layer) or has_graph(layer):
        return False
    kind = type(layer)
    if kind is keras.layers.Lambda:
        return not any(is_elementwise(layer.function, shape) for shape in _SHAPES)
    ours = kind.__module__.startswith("keras.") or keras.saving.get_registered_name(kind).startswith(
        "keras_filterprune>"
    )
    return not ours and keras_class(layer) is None and not is_known(layer)


def why_leaf(layer: Any) -> str:
    """Why a composite layer is not even tried; "" where it is."""
    kind = type(layer)
    if kind is keras.layers.Lambda or is_over_time(layer):
        return ""
    if _written_by_keras(kind.call):
        parent = next(base for base in kind.__mro__ if base.__module__.startswith("keras."))
        return f"has the call() of {parent.__name__}"
    inner = any(True for _ in held_layers(layer))
    if not inner and takes(layer, "training") and not layer.trainable_variables:
        return "draws random numbers or changes with training, and holds no layers"
    return ""


def is_idle(layer: Any) -> bool:
    """Whether a layer gives its input in inference: dropout, noise, augmentation."""
    if keras_class(layer) is not None:
        return keras_name(layer).startswith(("Dropout", "SpatialDropout", "AlphaDropout", "Gaussian", "Random"))
    return passes_in_inference(layer)


def differs_in_training(op: Any) -> bool:
    """Whether a layer does something else in training; of the user's, whether it can."""
    own = not type(op).__module__.startswith("keras.")
    return (
        is_idle(op) or statistics_of(op) is not None or (own and isinstance(op, keras.Layer) and takes(op, "training"))
    )


def _written_by_keras(function: Any) -> bool:
    module = getattr(inspect.unwrap(function), "__module__", "") or ""
    return module.startswith("keras.") and function not in (functional_class().call, keras.Sequential.call)


def held_layers(layer: keras.layers.Layer):
    """The layers that a layer holds, at any depth."""
    waiting, seen = list(vars(layer).values()), {id(layer)}
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, keras.layers.Layer) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += vars(value).values()


def takes(layer: Any, argument: str) -> bool:
    """Whether `layer.call()` has an argument of this name."""
    return argument in inspect.signature(type(layer).call).parameters
