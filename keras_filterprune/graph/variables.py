"""Weights of layers: by unique names, and written to."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np


def named_weights(layer: Any) -> dict[str, Any]:
    """{unique name: variable} of a layer, in the order of `layer.weights`; repeated names are numbered."""
    named: dict[str, Any] = {}
    for variable in getattr(layer, "weights", ()):
        # Keras counts variables without a name through the whole process: variable_7 here is variable_9 in a clone.
        base = re.sub(r"^variable_\d+$", "variable", variable.name)
        name, number = base, 1
        while name in named:
            name, number = f"{base}_{number}", number + 1
        named[name] = variable
    return named


def copy_value(source: Any, target: Any) -> None:
    """Give `target` the value of `source` in memory of its own: on JAX, training deletes the arrays it started from."""
    target.assign(keras.ops.convert_to_numpy(source.value).copy())


def scale_slices(variable: Any, axis: int, where: np.ndarray, factor: float) -> None:
    """Multiply the slices of a variable at `where` (indices or a boolean array) along an axis by a factor."""
    value = np.moveaxis(keras.ops.convert_to_numpy(variable.value).copy(), axis, 0)
    value[where] *= factor
    variable.assign(np.moveaxis(value, 0, axis))
