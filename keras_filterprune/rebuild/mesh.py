"""Widths on a mesh of devices, which `keras.distribution.ModelParallel` divides weights among in equal parts."""

from __future__ import annotations

import math

import keras

from keras_filterprune.errors import InvalidValueError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import named_weights


def check_mesh(kept: Kept) -> None:
    """An `InvalidValueError` where what stays of a weight cannot be divided among the devices that share it."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    ops, divided = {call.path: call.op for call in kept.graph.view.calls}, []
    for bind in kept.graph.binds:
        stays = int(kept.alive[bind.ids].sum())
        if stays < len(bind.ids):
            variable = named_weights(ops[bind.layer])[bind.weight]
            divided.append((bind, stays, _parts(distribution.get_variable_layout(variable), bind.axis)))
    multiple = math.lcm(*(parts for _, _, parts in divided))
    for bind, stays, parts in divided:
        if stays % parts:
            raise InvalidValueError(
                f"weight '{bind.weight}' of layer '{bind.layer}' is divided among {parts} devices along axis "
                f"{bind.axis}: expected a multiple of {parts} channels to stay. Received: {stays} of {len(bind.ids)}. "
                f"Prune with channel_multiple={multiple}."
            )


def _parts(layout: keras.distribution.TensorLayout | None, axis: int) -> int:
    """Among how many devices an axis is divided."""
    if layout is None or (name := layout.axes[axis]) is None:
        return 1
    return layout.device_mesh.shape[layout.device_mesh.axis_names.index(name)]
