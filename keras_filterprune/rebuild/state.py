"""What a layer is besides its configuration: weights, random states, tables, and attributes that were set later."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import copy_value, named_weights
from keras_filterprune.graph.live import LiveObjects, held_objects

_MISSING = object()
_RULES = (keras.regularizers.Regularizer, keras.constraints.Constraint)
# What a layer may hold another one in.
_HOLDERS = (list, tuple, dict, keras.layers.Layer)


def undrawn(layer: Any) -> dict[str, Any]:
    """Let a layer of Keras, not built yet, start at zero, as its weights will be given to it; drawing takes longer.

    Returns:
        {attribute: the initializer that it is to have again}.
    """
    if not type(layer).__module__.startswith("keras."):
        return {}
    # What is private is handed on to layers within, for good.
    public = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    found = {name: value for name, value in public.items() if isinstance(value, keras.initializers.Initializer)}
    for name in found:
        setattr(layer, name, keras.initializers.Zeros())
    return found


def prepare(old: Any, new: Any, resized: bool = False) -> None:
    """Give a clone what it needs to be called: tables (vocabularies), and attributes that it has no value for.

    Args:
        old, new: a layer and its clone, which has not been called yet.
        resized: their numbers of channels may differ, and with them whatever says how many there are.
    """
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    for a, b in _pairs(old, new):
        _carry_attributes(a, b, resized, [name for name in vars(a) if vars(b).get(name) is None])


def build_like(old: Any, new: Any) -> None:
    """Build what a clone holds and Keras builds when a layer is called on numbers alone: activations with weights."""
    for a, b in _pairs(old, new):
        if a.built and not b.built:
            b.build_from_config(a.get_build_config())


def carry_state(old: Any, new: Any, resized: bool = False) -> None:
    """Give a clone that has its weights all the rest; what is derived from weights is derived anew.

    Args:
        old, new: a layer and its clone, both built.
        resized: see `prepare`.
    """
    for source, target in zip(random_states(old), random_states(new), strict=False):
        copy_value(source, target)
    for a, b in _pairs(old, new):
        _carry_attributes(a, b, resized, list(vars(a)))
        if hasattr(b, "finalize_state"):
            b.finalize_state()
    _carry_rules(old, new)


def copy_weights(old: Any, new: Any) -> None:
    """Give a clone the weights of the original, of the same shapes, in memory of its own."""
    variables = named_weights(new)
    for name, variable in named_weights(old).items():
        copy_value(variable, variables[name])
        variables[name].trainable = variable.trainable


def paired(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(variable of a layer, its clone's), both by name, of those that the clone has.

    A Dropout keeps the generator that it was made with when its rate is set to 0 later; its clone is made with none.
    """
    return [(variable, new[name]) for name, variable in old.items() if name in new]


def copy_activation(old: Any, new: Any) -> None:
    """Give a layer's activation, where that is a layer itself, the weights and the state of another layer's."""
    if isinstance(old.activation, keras.layers.Layer):
        prepare(old.activation, new.activation)
        build_like(old.activation, new.activation)
        copy_weights(old.activation, new.activation)
        carry_state(old.activation, new.activation)


def copy_trainable(old: Any, new: Any, twins: dict[int, Any]) -> None:
    """Flags from the outside in: setting a model's flag sets those of its layers."""
    if new.trainable != old.trainable:
        new.trainable = old.trainable
    for layer in old.layers:
        if id(layer) in twins:
            twin = twins[id(layer)]
            if isinstance(layer, keras.Model) and hasattr(layer, "layers"):
                copy_trainable(layer, twin, twins)
            elif isinstance(getattr(layer, "layer", None), keras.Model):
                copy_trainable(layer.layer, twin.layer, twins)
            elif twin.trainable != layer.trainable:
                twin.trainable = layer.trainable


def random_states(layer: Any) -> list[Any]:
    """States of the random generators of a layer, which are none of its weights."""
    weights = {id(variable) for variable in getattr(layer, "weights", ())}
    return [variable for variable in getattr(layer, "variables", ()) if id(variable) not in weights]


def _pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """A layer and its clone, and the layers in them, but for models, whose layers are cloned one by one."""
    waiting, seen = [(old, new)], set()
    while waiting:
        a, b = waiting.pop()
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            waiting += zip(a, b, strict=True)
        elif isinstance(a, dict) and isinstance(b, dict):
            waiting += [(value, b.get(key)) for key, value in a.items()]
        elif isinstance(a, keras.layers.Layer) and type(a) is type(b) and id(a) not in seen:
            seen.add(id(a))
            if not isinstance(a, keras.Model):
                yield a, b
                own, theirs = vars(a), vars(b)
                waiting += [(value, theirs.get(name)) for name, value in own.items() if isinstance(value, _HOLDERS)]


def _carry_rules(old: Any, new: Any) -> None:
    """Regularizers and constraints are those that weights have, which need not be those of the layer's attributes.

    Set on a layer that is built, they hold for its clone alone; set on a weight, no configuration knows of them.
    """
    known = {id(thing) for thing in held_objects(old)}
    for variable, twin in paired(named_weights(old), named_weights(new)):
        for name in ("regularizer", "constraint"):
            rule = getattr(variable, name)
            if rule is None or id(rule) not in known:
                setattr(twin, name, LiveObjects().clone(rule) if isinstance(rule, _RULES) else rule)


def _carry_attributes(old: Any, new: Any, resized: bool, names: list[str]) -> None:
    for name in names:
        value = vars(old)[name]
        if name in _kept_by_keras() or name.startswith("_self_"):
            continue
        known = vars(new).get(name, _MISSING)
        if resized:
            # What the clone has made for itself fits its own number of channels.
            carried = (known is _MISSING or known is None) and isinstance(value, int | float | str)
        else:
            carried = _is_data(value, old)
        if carried:
            vars(new)[name] = _copied(value, known)


@functools.cache
def _kept_by_keras() -> frozenset[str]:
    """Names of the attributes that every layer has; what TensorFlow notes begins with "_self_"."""
    layer = keras.layers.Identity()
    layer(np.zeros((1, 1)))
    return frozenset(vars(layer))


def _is_data(value: Any, layer: Any) -> bool:
    """Whether a value means to another layer what it means to this one."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(_is_data(entry, layer) for entry in value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | functools.partial):
        return not _knows(value, layer)
    plain = value is None or isinstance(value, bool | int | float | complex | str | bytes | np.ndarray | np.generic)
    # TensorFlow's own variables call themselves tensors.
    return plain or (keras.ops.is_tensor(value) and not hasattr(value, "assign"))


def _knows(function: Any, layer: Any) -> bool:
    """Whether a function is a layer's own: a method of it, or made by one."""
    if isinstance(function, functools.partial):
        return any(value is layer for value in function.args) or _knows(function.func, layer)
    known = [getattr(function, "__self__", None)]
    for cell in getattr(function, "__closure__", None) or ():
        # A cell may be empty.
        with contextlib.suppress(ValueError):
            known.append(cell.cell_contents)
    return any(value is layer for value in known)


def _copied(value: Any, known: Any) -> Any:
    """A copy of data; arrays in the dtype of those whose place they take."""
    if isinstance(value, dict):
        return {key: _copied(entry, _MISSING) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry, _MISSING) for entry in value]
    if isinstance(value, np.ndarray):
        return value.astype(getattr(known, "dtype", value.dtype))
    if keras.ops.is_tensor(value) and keras.ops.is_tensor(known):
        return keras.ops.cast(value, known.dtype)
    return value
