"""Models that compute in half precision, as TFLite needs them: in float32."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.rebuild.verify import rounding

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


def in_float32(model: keras.Model) -> tuple[keras.Model, list[str], float]:
    """A model as it can be converted.

    Returns:
        The model, or its float32 twin where layers compute in half precision; the names of these layers; and how far
        outputs of the twin may be from the model's, relative to the largest.
    """
    halves = _half_precision_layers(model)
    if not halves:
        return model, [], 0.0
    view = view_model(model)
    return _Float32(view).result(model, compiled=False), halves, rounding(view)


class _Float32(Cloner):
    """Clones a model with other dtype policies."""

    def policy(self, model: keras.Model) -> str:
        return "float32"

    def check(self, model: keras.Model, twin: keras.Model) -> None:
        """The file is compared with the model itself, on data that do not overflow."""

    def config(self, op: Any) -> dict[str, Any]:
        config = super().config(op)
        return _in_float32(config) if isinstance(op, keras.layers.Layer) else config


def _in_float32(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("class_name") == "DTypePolicy" and value["config"]["name"] in _HALF:
            return value | {"config": {"name": "float32"}}
        return {
            key: "float32" if key == "dtype" and isinstance(entry, str) and entry in _HALF else _in_float32(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(map(_in_float32, value))
    return value
