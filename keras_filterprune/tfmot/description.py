"""A Keras 3 model as plain data from which another process, without this model, builds and checks a tf_keras one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.graph.types import Call, ModelView
from keras_filterprune.handlers.registry import keras_class, keras_name
from keras_filterprune.probe.execute import Executor, random_inputs

# How many values of every tensor are compared.
_VALUES = 4096


@dataclass(frozen=True, eq=False)
class InputSpec:
    """What stands in for an input of the model."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """What stands in for a layer of the model.

    Attributes:
        name: its path in the model.
        kind: name of its class in `keras.layers`, or of the one that it is registered like.
        config: its configuration without initializers; regularizers and constraints as class name and config.
        defaults: the constructor's default of every argument that has one.
        weights: its weights, in the order of `get_weights()`.
    """

    name: str
    kind: str
    config: dict[str, Any]
    defaults: dict[str, Any]
    weights: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Description:
    """A model.

    Attributes:
        view: its flat view, with an `InputSpec` or a `LayerSpec` in the place of every operation.
        batch: flat random inputs.
        values: per call, what `sampled` takes of its outputs for these inputs.
        outputs: the whole outputs.
    """

    view: ModelView
    batch: list[np.ndarray]
    values: list[np.ndarray]
    outputs: list[np.ndarray]


def describe(model: keras.Model) -> Description:
    """Take a model apart.

    Raises:
        UnsupportedModelError: the model is subclassed or not built, or a layer has no counterpart in tf_keras.
    """
    view = view_model(model)
    specs: dict[int, LayerSpec] = {}
    calls = [replace(call, op=_spec(call, specs)) for call in view.calls]
    executor = Executor(view, lambda call, args, kwargs: call.op(*args, **kwargs))
    batch = random_inputs(view)
    executor.feed(batch)
    values = [sampled(executor.step(n)) if call.inputs else np.zeros(0) for n, call in enumerate(view.calls)]
    return Description(
        replace(view, calls=tuple(calls), nested_inputs={}),
        [keras.ops.convert_to_numpy(x) for x in batch],
        values,
        [keras.ops.convert_to_numpy(x) for x in executor.outputs()],
    )


def sampled(outputs: list[Any]) -> np.ndarray:
    """At most 4096 values of every tensor, evenly spread, in one float64 vector."""
    flat = [keras.ops.convert_to_numpy(x).astype(np.float64).reshape(-1) for x in outputs]
    return np.concatenate([x[:: max(1, len(x) // _VALUES)] for x in flat])


def _spec(call: Call, specs: dict[int, LayerSpec]) -> InputSpec | LayerSpec:
    if not call.inputs:
        return InputSpec(tuple(call.op.shape), keras.backend.standardize_dtype(call.op.dtype))
    # A shared layer stays one layer.
    if id(call.op) not in specs:
        specs[id(call.op)] = _layer_spec(call)
    return specs[id(call.op)]


def _layer_spec(call: Call) -> LayerSpec:
    layer, kind = call.op, keras_name(call.op)
    known = keras_class(layer)
    if not isinstance(layer, keras.layers.Layer):
        raise UnsupportedModelError(
            f"'{call.path}' is a bare operation ({kind}), and tf_keras has layers alone: write it as one, such as "
            "keras.layers.Add, Multiply, Rescaling, ReLU or Reshape."
        )
    if known is None or getattr(keras.layers, kind, None) is not known:
        raise UnsupportedModelError(
            f"layer '{call.path}' is a {type(layer).__module__}.{type(layer).__name__}, which tf_keras does not have. "
            "Replace it by layers of Keras; strip_wrappers() takes training-time wrappers off."
        )
    if layer.dtype_policy.name != "float32":
        raise UnsupportedModelError(
            f"layer '{call.path}' has dtype_policy={layer.dtype_policy.name!r}, expected 'float32'. Build the same "
            "model in float32 and copy the weights with set_weights(model.get_weights())."
        )
    config = {key: _value(call.path, key, value) for key, value in layer.get_config().items() if _matters(key)}
    parameters = inspect.signature(getattr(keras.layers, kind).__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return LayerSpec(call.path, kind, config, defaults, layer.get_weights())


def _matters(key: str) -> bool:
    """Initializers have done their work; names and dtypes are given anew."""
    return not key.endswith("_initializer") and key not in ("name", "dtype")


def _value(path: str, key: str, value: Any) -> Any:
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    if key.endswith(("regularizer", "constraint")) and value["module"].startswith("keras."):
        return {"class_name": value["class_name"], "config": value["config"]}
    raise UnsupportedModelError(
        f"layer '{path}' has {key}={value['class_name']}, which cannot be carried to tf_keras. Take it off, or "
        "replace the layer."
    )
