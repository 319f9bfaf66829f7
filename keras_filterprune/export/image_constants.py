"""Values per channel of an image, stored for every column of it: LiteRT then computes whole rows.

With three values, XNNPACK takes an image pixel by pixel. On 224x224x3 and AVX-512, `tflite_bench.time_operators` gives
0.16 ms for a sum in int8 (`second="constant"`) and 0.01 ms with the values stored by column (`second="row"`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.handlers.registry import keras_class
from keras_filterprune.latency.operators import NARROW

_VALUES = {keras.layers.Rescaling: ("scale", "offset"), keras.layers.Normalization: ("mean", "variance")}


@contextlib.contextmanager
def stored_by_column(model: keras.Model) -> Iterator[None]:
    """While it lasts, `Rescaling` and `Normalization` layers on images of few channels compute with rows of values.

    Args:
        model: the model to convert; it computes the same, and is afterwards as it was.

    Returns:
        A context manager.
    """
    shapes: dict[keras.Layer, set[tuple[int | None, ...]]] = {}
    for call in view_model(model).calls:
        if keras_class(call.op) in _VALUES:
            shapes.setdefault(call.op, set()).add(call.input_shapes[0][1:])
    with contextlib.ExitStack() as stack:
        for layer, (shape, *others) in shapes.items():
            sides = tuple(n for n in shape if n is not None)
            if not others and len(sides) == len(shape) == 3 and sides[2] < NARROW:
                for name in _VALUES[keras_class(layer)]:
                    value = getattr(layer, name)
                    stack.callback(setattr, layer, name, value)
                    setattr(layer, name, _by_column(value, sides))
        yield


def _by_column(value: Any, shape: tuple[int, ...]) -> Any:
    """A value per channel, last of all axes, for every column; anything else stays as it is."""
    values = keras.ops.convert_to_numpy(value)
    if values.size != shape[2] or values.shape[-1:] != (shape[2],):
        return value
    return np.broadcast_to(values.reshape(shape[2]), shape[1:]).copy()
