"""Where the output of a layer goes, and where a constant can be added to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.handlers.activation import is_relu
from keras_filterprune.handlers.base import Rebuilt

L = keras.layers


@dataclass(frozen=True, eq=False)
class Outlet:
    """Where the output of a layer goes, as long as nobody else reads it.

    Attributes:
        normalization: the batch normalization behind it, which may take its mean.
        shortcut: the other summand, where it ends in a sum of two.
        rectified: a ReLU comes next.
    """

    normalization: Call | None = None
    shortcut: TensorRef | None = None
    rectified: bool = False


def outlets(view: ModelView) -> dict[str, Outlet]:
    """{layer: where its output goes}: through batch normalization into a sum of two, if nobody else reads it."""
    calls = Counter(call.path for call in view.calls)
    found = {}
    for number, call in enumerate(view.calls):
        if not call.inputs:
            continue
        if getattr(call.op, "activation", None) not in (None, keras.activations.linear):
            found[call.path] = Outlet(rectified=call.op.activation is keras.activations.relu)
            continue
        after, at, normalization = view.only_reader(number), number, None
        if after is not None and isinstance(view.calls[after].op, L.BatchNormalization):
            normalization = view.calls[after]
            over_channels = normalization.op.axis in (-1, len(normalization.input_shapes[0]) - 1)
            if calls[normalization.path] > 1 or not over_channels:
                # What several layers or channels share is not for one of them to set.
                found[call.path] = Outlet()
                continue
            at, after = after, view.only_reader(after)
        shortcut = None
        if after is not None and type(view.calls[after].op).__name__ == "Add" and len(view.calls[after].inputs) == 2:
            others = [ref for ref in view.calls[after].inputs if ref != TensorRef(at, 0)]
            same = len(others) == 1 and view.calls[after].input_shapes[0] == view.calls[after].input_shapes[1]
            shortcut = others[0] if same else None
            after = view.only_reader(after) if same else None
        rectified = after is not None and is_relu(view.calls[after].op)
        found[call.path] = Outlet(normalization, shortcut, rectified)
    return found


def add_constant(rebuilt: Rebuilt, outlet: Outlet, call: Call, constant: np.ndarray) -> None:
    """Add a constant (kept outputs,) to the output of a layer's twin, where there is room: its bias, a moving mean."""
    bias = named_weights(rebuilt.twins[id(call.op)]).get("bias")
    if bias is not None:
        bias.assign_add(constant)
    elif outlet.normalization is not None:
        rebuilt.twins[id(outlet.normalization.op)].moving_mean.assign_add(-constant)
