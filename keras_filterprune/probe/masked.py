"""The original network as if some of its channels did not exist, without rebuilding it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call, ChannelGraph
from keras_filterprune.handlers.base import Resize, handler_for

# {layer path: [(variable, value that stands in for it)]}
Values = Mapping[str, list[tuple[Any, Any]]]


def masked_weights(graph: ChannelGraph, alive: np.ndarray) -> dict[str, list[tuple[Any, Any]]]:
    """Weights with zeros where a layer reads a removed channel, for every layer that reads one."""
    layers = {call.path: call.op for call in graph.view.calls if call.inputs}
    masked: dict[str, list[tuple[Any, Any]]] = {}
    for bind in graph.binds:
        if bind.role == "input" and not alive[bind.ids].all():
            variable = named_weights(layers[bind.layer])[bind.weight]
            shape = [1] * len(variable.shape)
            shape[bind.axis] = -1
            mask = keras.ops.convert_to_tensor(alive[bind.ids].reshape(shape), variable.dtype)
            masked.setdefault(bind.layer, []).append((variable, variable.value * mask))
    return masked


def masked_apply(graph: ChannelGraph, alive: np.ndarray, values: Values) -> Callable[[Call, tuple, dict], Any]:
    """What an `Executor` of `graph.view` needs to run without the channels that are not `alive`.

    The model's variables are never written: `values` stand in for them in a stateless scope. Statistics over channels
    are taken over those alive.
    """
    resizes = {
        id(call): Resize(call, inputs, outputs, alive)
        for call, (inputs, outputs) in zip(graph.view.calls, graph.tensors, strict=True)
    }

    def apply(call: Call, args: tuple, kwargs: dict) -> Any:
        with keras.StatelessScope(state_mapping=values.get(call.path, [])):
            return handler_for(call.op).masked_call(call.op, args, kwargs, resizes[id(call)])

    return apply
