"""Shadows of layers: what a layer's own `call()` runs on, with symbolic tensors for weights and calls that are seen.

A shadow has the class and the attributes of its layer. Wherever a weight would stand, inside lists and helper functions
too, it has a symbolic tensor, and wherever a layer would stand, the shadow of that layer, whose calls go to a function.
Nothing of Keras is replaced, and the layer itself is neither called nor changed.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import keras

from keras_filterprune.graph.keras_view import functional_class
from keras_filterprune.opening.errors import CannotOpenError

_OF = "_shadow_of"


class Shadows:
    """Makes the shadows of the layers of one model, one each.

    Args:
        call: `call(layer, args, kwargs)` stands in for calls of a layer.
        graph: `graph(model, inputs, training)` stands in for what a model does with its graph of layers.
        weight: `weight(variable, layer)` gives the symbolic tensor of a weight that the layer holds.
        loss: `loss(loss)` takes what is added in a call.

    Attributes:
        attributes: {id of a layer: the attribute by which the first one that holds it knows it}.
    """

    def __init__(
        self,
        call: Callable[[Any, tuple, dict], Any],
        graph: Callable[[Any, Any, Any], Any],
        weight: Callable[[Any, Any], Any],
        loss: Callable[[Any], None],
    ):
        self._call, self._graph, self._weight, self._loss = call, graph, weight, loss
        self._made: dict[int, Any] = {}
        self.attributes: dict[int, str] = {}

    def of(self, layer: keras.layers.Layer) -> Any:
        """The shadow of a layer; of a shadow, itself."""
        if _OF in vars(layer):
            return layer
        if id(layer) not in self._made:
            kind: Any = type(layer)
            shadow: Any = object.__new__(_shadow_class(kind))
            self._made[id(layer)] = shadow
            # Keras wraps the build() of every layer, and what is looked at is built.
            seen = {n: v for n, v in vars(layer).items() if not isinstance(v, _NOTHING_SEEN) and n != "build"}
            own = {name: self._seen(value, layer, name) for name, value in seen.items()}
            vars(shadow).update(own | {_OF: (layer, self._call, self._graph, self._loss)})
        return self._made[id(layer)]

    def _seen(self, value: Any, holder: Any, name: str) -> Any:
        """What stands in for an attribute of a layer."""
        if isinstance(value, keras.Variable):
            return self._weight(value, holder)
        if isinstance(value, keras.random.SeedGenerator):
            return _NO_SEEDS
        if isinstance(value, keras.layers.Layer):
            if not name.startswith("_"):
                self.attributes.setdefault(id(value), name)
            return self.of(value)
        if isinstance(value, dict):
            # PyTorch keeps the modules of a module in a dictionary.
            name = name.removeprefix("_modules")
            return {
                key: self._seen(entry, holder, f"{name}_{key}" if name else str(key)) for key, entry in value.items()
            }
        if isinstance(value, list | set):
            return [self._seen(entry, holder, f"{name}_{number}") for number, entry in enumerate(value)]
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(self._seen(entry, holder, f"{name}_{number}") for number, entry in enumerate(value))
        return self._function(value, holder)

    def _function(self, value: Any, holder: Any) -> Any:
        """A helper function that knows a layer, made to know its shadow."""
        if isinstance(value, types.MethodType) and isinstance(value.__self__, keras.layers.Layer):
            return types.MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, functools.partial):
            parts = [self._seen(part, holder, "_") for part in (value.func, value.args, value.keywords)]
            return functools.partial(parts[0], *parts[1], **parts[2])
        if isinstance(value, types.FunctionType) and any(map(_holds_layers, value.__closure__ or ())):
            known = value.__closure__ or ()
            cells = tuple(types.CellType(self._seen(cell.cell_contents, holder, "_")) for cell in known)
            copied = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
            copied.__kwdefaults__ = value.__kwdefaults__
            return copied
        return value


def original(shadow: Any) -> Any:
    """The layer whose shadow this is; of anything else, itself."""
    return vars(shadow)[_OF][0] if isinstance(shadow, keras.layers.Layer) and _OF in vars(shadow) else shadow


# Optimizers and metrics know weights, and `call()` has no use for them.
_NOTHING_SEEN = (keras.optimizers.Optimizer, keras.metrics.Metric)


def _holds_layers(cell: Any) -> bool:
    try:
        found = cell.cell_contents
    except ValueError:  # An empty cell.
        return False
    return any(isinstance(entry, keras.layers.Layer | keras.Variable) for entry in keras.tree.flatten(found))


class _NoSeeds(keras.random.SeedGenerator):
    """In the place of a seed generator: what is drawn while a call is looked at would be drawn once and for all."""

    def __init__(self) -> None:
        """Makes no state."""

    def next(self, ordered: bool = True) -> Any:
        raise CannotOpenError("draws random numbers itself, which a layer of its own would do for it")


_NO_SEEDS = _NoSeeds()


@functools.cache
def _shadow_class(kind: type) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        layer, called, *_ = vars(self)[_OF]
        return called(layer, args, kwargs)

    def add_loss(self: Any, loss: Any) -> None:
        vars(self)[_OF][-1](loss)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        # Not by way of Keras, which would take note of it in what the shadow shares with its layer.
        vars(self)[name] = value

    own = {"__call__": call, "add_loss": add_loss, "__setattr__": set_attribute, "__module__": kind.__module__}
    if not issubclass(kind, functional_class()):
        return type(kind.__name__, (kind,), own)
    # Where a model that was made with a graph has a call() of its own, `super().call()` is that of the graph.
    return type(kind.__name__, (_Graph,) if kind is functional_class() else (kind, _Graph), own)


class _Graph(functional_class()):  # type: ignore[misc]
    """Runs through the graph of a model's layers without calling them."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        model, _, graph, _ = vars(self)[_OF]
        return graph(model, inputs, training)
