"""Weights of layers: by unique names, and written to."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np

# {a weight: the attribute of its layer that says whether there is one}.
_FLAGS = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
# These look whether the weight is there; other layers look at the attribute.
_BY_WEIGHT = (keras.layers.Dense, keras.layers.LayerNormalization)


def named_weights(layer: Any) -> dict[str, Any]:
    """{unique name: variable} of a layer, in the order of `layer.weights`; repeated names are numbered.

    Without those of a layer of Keras that were switched off after it was built: `use_bias = False`, `bias = None`.
    """
    named: dict[str, Any] = {}
    gone = {weight for weight, flag in _FLAGS.items() if _is_off(layer, weight, flag)}
    for variable in getattr(layer, "weights", ()):
        if variable.name in gone:
            continue
        # Keras counts variables without a name through the whole process: variable_7 here is variable_9 in a clone.
        base = re.sub(r"^variable_\d+$", "variable", variable.name)
        name, number = base, 1
        while name in named:
            name, number = f"{base}_{number}", number + 1
        named[name] = variable
    return named


def weight_flags(layer: Any) -> dict[str, bool]:
    """What a configuration has to say for the clone of a layer to have its weights, whatever the attributes say."""
    held = [weight for weight in _FLAGS if isinstance(layer, _BY_WEIGHT) and hasattr(layer, weight)]
    return {_FLAGS[weight]: getattr(layer, weight) is not None for weight in held}


def _is_off(layer: Any, weight: str, flag: str) -> bool:
    if not type(layer).__module__.startswith("keras."):
        return False
    if isinstance(layer, _BY_WEIGHT):
        return getattr(layer, weight, flag) is None
    return getattr(layer, flag, True) is False


def copy_value(source: Any, target: Any) -> None:
    """Give `target` the value of `source` in memory of its own: on JAX, training deletes the arrays it started from."""
    target.assign(keras.ops.convert_to_numpy(source.value).copy())


def scale_slices(variable: Any, axis: int, where: np.ndarray, factor: float) -> None:
    """Multiply the slices of a variable at `where` (indices or a boolean array) along an axis by a factor."""
    value = np.moveaxis(keras.ops.convert_to_numpy(variable.value).copy(), axis, 0)
    value[where] *= factor
    variable.assign(np.moveaxis(value, 0, axis))
