"""The surgery oracle: how far a rebuilt model is from the original with the removed channels disconnected.

It shares no code with `rebuild/verify.py`: the masked original is a second build of the same model with the same
weights, in which those are zero that make a removed channel, pass it on or read it (a product with a constant has no
weight that does); both models are called as a whole on a random batch, and only their outputs are compared.
"""

from collections.abc import Callable

import keras
import numpy as np
from builders import predict
from zoo import random_inputs

from keras_filterprune.graph import ChannelGraph, Kept
from keras_filterprune.graph.keras_view import named_weights, view_model
from keras_filterprune.graph.types import ROLES

TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2


def layer_at(model: keras.Model, path: str) -> keras.Layer:
    """The layer at `outer/inner/name`."""
    for layer in model.layers:
        if layer.name == path:
            return layer
        if path.startswith(layer.name + "/") and hasattr(layer, "layers"):
            return layer_at(layer, path.removeprefix(layer.name + "/"))
    raise KeyError(path)


def mask(
    twin: keras.Model, graph: ChannelGraph, kept: dict[str, np.ndarray], roles: tuple[str, ...] = ROLES
) -> keras.Model:
    """Zero the weights of `twin` that removed channels index in these roles, in place."""
    alive = Kept(graph, kept).alive
    # Layers that nobody named have other names in a second build.
    calls = zip(graph.view.calls, view_model(twin).calls, strict=True)
    layers = {call.path: twin_call.op for call, twin_call in calls if call.inputs}
    for bind in graph.binds:
        if bind.role not in roles:
            continue
        variable = named_weights(layers[bind.layer])[bind.weight]
        value = np.moveaxis(np.array(keras.ops.convert_to_numpy(variable.value)), bind.axis, 0)
        value[~alive[bind.ids]] = 0
        variable.assign(np.moveaxis(value, 0, bind.axis))
    return twin


def difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Largest difference relative to the largest value of the output it occurs in; infinite where shapes differ."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
            return float("inf")
        worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst


def tolerance(model: keras.Model) -> float:
    """1e-4, or 2e-2 where a layer computes in half precision."""
    policies = {layer.compute_dtype for layer in model.layers}
    return HALF_TOLERANCE if policies & {"float16", "bfloat16"} else TOLERANCE


def oracle_difference(
    build: Callable[[], keras.Model],
    rebuilt: keras.Model,
    graph: ChannelGraph,
    kept: dict[str, np.ndarray],
    seed: int = 0,
    roles: tuple[str, ...] = ROLES,
) -> float:
    """How far `rebuilt` is from a masked second build of the model that `graph` was read from."""
    masked = mask(build(), graph, kept, roles)
    x = random_inputs(masked, batch=3, seed=seed)
    return difference(predict(masked, x), predict(rebuilt, x))
