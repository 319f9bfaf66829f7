"""Where the output of a layer goes, and where a constant can be added to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.layers.base import Rebuilt

L = keras.layers


@dataclass(frozen=True, eq=False)
class Outlet:
    """Where the output of a layer goes: the normalization that may take its mean, the sum it ends in."""

    normalization: Call | None = None
    shortcut: TensorRef | None = None


def outlets(view: ModelView) -> dict[str, Outlet]:
    """{layer: where its output goes}: through batch normalization into a sum of two, if nobody else reads it."""
    calls = Counter(call.path for call in view.calls)
    readers: dict[TensorRef, list[int]] = {}
    for number, call in enumerate(view.calls):
        for ref in call.inputs:
            readers.setdefault(ref, []).append(number)
    for ref in view.outputs:
        readers.setdefault(ref, []).append(-1)

    def only_reader(number: int) -> int | None:
        found = readers.get(TensorRef(number, 0), [])
        return found[0] if len(found) == 1 and found[0] >= 0 else None

    found = {}
    for number, call in enumerate(view.calls):
        if not call.inputs:
            continue
        if getattr(call.op, "activation", None) not in (None, keras.activations.linear):
            found[call.path] = Outlet()
            continue
        after, at, normalization = only_reader(number), number, None
        if after is not None and isinstance(view.calls[after].op, L.BatchNormalization):
            # The moving mean of a normalization that other layers share as well is not this layer's to set.
            normalization = view.calls[after] if calls[view.calls[after].path] == 1 else None
            at, after = after, only_reader(after)
        shortcut = None
        if after is not None and type(view.calls[after].op).__name__ == "Add" and len(view.calls[after].inputs) == 2:
            others = [ref for ref in view.calls[after].inputs if ref != TensorRef(at, 0)]
            same = len(others) == 1 and view.calls[after].input_shapes[0] == view.calls[after].input_shapes[1]
            shortcut = others[0] if same else None
        found[call.path] = Outlet(normalization, shortcut)
    return found


def add_constant(rebuilt: Rebuilt, outlet: Outlet, call: Call, constant: np.ndarray) -> None:
    """Add a constant (kept outputs,) to the output of a layer's twin, where there is room: its bias, a moving mean."""
    bias = named_weights(rebuilt.twins[id(call.op)]).get("bias")
    if bias is not None:
        bias.assign_add(constant)
    elif outlet.normalization is not None:
        rebuilt.twins[id(outlet.normalization.op)].moving_mean.assign_add(-constant)
