"""Copies of layers that no configuration describes: the same attributes, with weights of their own."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.graph.keras_view import copy_value


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
        # Keras wraps the build() of every layer around the layer, and a copy is built.
        attributes = {key: entry for key, entry in vars(value).items() if key != "build" and not _is_registry(entry)}
        vars(copy).update({key: _copy(entry, made) for key, entry in attributes.items()})
    elif isinstance(value, dict):
        return {key: _copy(entry, made) for key, entry in value.items() if not _is_registry(entry)}
    elif isinstance(value, list):
        return [_copy(entry, made) for entry in value if not _is_node(entry)]
    elif isinstance(value, set):
        return {_copy(entry, made) for entry in value}
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_copy(entry, made) for entry in value)
    return made.get(id(value), value)


def _is_node(value: Any) -> bool:
    """Whether a value is a place in a graph, which is that of one layer alone."""
    return type(value).__name__ == "Node" and type(value).__module__.startswith("keras.")


def _is_registry(value: Any) -> bool:
    """Whether PyTorch keeps the weights of a layer in a value a second time; the copy has them do so when needed."""
    return type(value).__name__ == "ParameterDict"


def _variable(variable: Any) -> Any:
    # The path, too, is that of a variable which a layer of this name has made.
    copy = keras.Variable(
        keras.ops.convert_to_numpy(variable.value).copy(),
        trainable=variable.trainable,
        dtype=variable.dtype,
        aggregation=variable.aggregation,
        name=variable.name,
    )
    copy.regularizer, copy.constraint = variable.regularizer, variable.constraint
    return copy
