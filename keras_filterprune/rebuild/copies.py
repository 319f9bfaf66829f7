"""Copies of layers that no configuration describes: the same attributes, with weights of their own."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.graph.keras_view import copy_value

# What belongs to one layer alone: its place in graphs, its wrapped build(), what PyTorch has registered of it.
_OWN = {"_inbound_nodes", "_outbound_nodes", "_losses", "_loss_ids", "build", "_torch_params"}


def copied(layer: keras.layers.Layer, name: str | None = None) -> Any:
    """A copy of a built layer, and of the layers in it, without asking for their configurations.

    Args:
        layer: the layer; it is not changed.
        name: of the copy (None: the same).
    """
    copy = _copy(layer, {})
    copy.name = layer.name if name is None else name
    return copy


def _copy(value: Any, made: dict[int, Any]) -> Any:
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, keras.Variable):
        made[id(value)] = _variable(value)
    elif isinstance(value, keras.random.SeedGenerator):
        made[id(value)] = keras.random.SeedGenerator.from_config(value.get_config())
        copy_value(value.state, made[id(value)].state)
    elif isinstance(value, keras.layers.Layer):
        copy = made[id(value)] = object.__new__(type(value))
        attributes = {key: _copy(entry, made) for key, entry in vars(value).items() if key not in _OWN}
        vars(copy).update(attributes | {key: [] for key in _OWN & {"_inbound_nodes", "_outbound_nodes", "_losses"}})
        vars(copy)["_loss_ids"] = set()
    elif isinstance(value, dict):
        return {key: _copy(entry, made) for key, entry in value.items() if key not in _OWN}
    elif isinstance(value, list | set):
        return (
            type(value)(_copy(entry, made) for entry in value)
            if type(value) in (list, set)
            else [_copy(entry, made) for entry in value]
        )
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_copy(entry, made) for entry in value)
    return made.get(id(value), value)


def _variable(variable: Any) -> Any:
    # The path, too, is that of a variable which a layer of this name has made.
    return keras.Variable(
        keras.ops.convert_to_numpy(variable.value).copy(),
        trainable=variable.trainable,
        dtype=variable.dtype,
        aggregation=variable.aggregation,
        name=variable.name,
    )
