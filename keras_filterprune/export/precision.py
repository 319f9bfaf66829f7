"""Models that compute in half precision, as TFLite needs them: in float32."""

from __future__ import annotations

import copy
from typing import Any

import keras

_HALF = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def _half_precision_layers(model: keras.Model) -> list[str]:
    """Names of the layers that compute in float16 or bfloat16, those of nested models too."""
    names: list[str] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            names += _half_precision_layers(layer)
        elif layer.compute_dtype in ("float16", "bfloat16"):
            names.append(layer.name)
    return list(dict.fromkeys(names))


def in_float32(model: keras.Model) -> tuple[keras.Model, list[str]]:
    """The model, or its float32 twin where layers compute in half precision, and the names of these layers."""
    halves = _half_precision_layers(model)
    return (_float32_twin(model) if halves else model), halves


def _float32_twin(model: keras.Model) -> keras.Model:
    sequential = isinstance(model, keras.Sequential)
    # clone_model would compile the copy, and fail on custom losses: this one shares the layers and has no loss.
    plain = keras.Model(*((model.inputs[0], model.outputs[0]) if sequential else (model.input, model.output)))
    twin = keras.models.clone_model(plain, clone_function=_clone)
    twin.name = model.name
    twin.set_weights(model.get_weights())
    return twin


def _clone(layer: Any) -> Any:
    config = _in_float32(copy.deepcopy(layer.get_config()))
    if isinstance(layer, keras.layers.Lambda):
        # Its code already ran in this process.
        return type(layer).from_config(config, safe_mode=False)
    return type(layer).from_config(config)


def _in_float32(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("class_name") == "DTypePolicy" and value["config"]["name"] in _HALF:
            return value | {"config": {"name": "float32"}}
        return {key: _in_float32(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_in_float32, value))
    return value
