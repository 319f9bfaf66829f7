"""Configurations that keep live objects: functions come back as the very objects, not by a name or by their code.

Keras writes a function into a configuration by its name, or a lambda by its bytes, and finds another function, or none,
when it reads that. The process that holds the function has no need to: a stand-in takes its place in the configuration,
and gives it back.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import marshal
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras

# What is built anew from its configuration; every other callable is handed on as it is.
_CONFIGURED = (
    keras.Operation,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.Quantizer,
    keras.optimizers.Optimizer,
    keras.metrics.Metric,
)
# What holds nothing, and is most of what objects hold: not worth a second look.
_PLAIN = frozenset({bool, int, float, str, bytes, types.NoneType})
_LENDING = threading.RLock()


class LiveObjects:
    """Takes Keras objects apart and puts equal ones together, which share the functions of the originals.

    Args:
        clone_model: makes the models that layers hold (`TimeDistributed(model)`) anew; None leaves them to Keras.
    """

    def __init__(self, clone_model: Callable[[keras.Model], keras.Model] | None = None):
        self._clone_model = clone_model
        self._held: list[Any] = []
        self._classes: dict[str, type] = {}

    def clone(self, thing: Any) -> Any:
        """A new object of the same class and configuration."""
        return self.build(type(thing), self.config(thing))

    def config(self, thing: Any) -> dict[str, Any]:
        """`thing.get_config()`, with a stand-in wherever a function, or a model inside a layer, would stand."""
        return (thing if isinstance(thing, keras.Model) else self._shadow(thing, {})).get_config()

    def build(self, kind: type[Any], config: dict[str, Any]) -> Any:
        """`kind.from_config(config)`, with what the stand-ins stand for."""
        with keras.saving.custom_object_scope(self._classes | {_StandIn.__name__: self}):
            made = kind.from_config(_mapped(lambda value: value.held if isinstance(value, _StandIn) else value, config))
        # Not every from_config reads all that its get_config wrote.
        for name, value in vars(made).items():
            if isinstance(value, dict) and value.get("class_name") == _StandIn.__name__:
                vars(made)[name] = self.from_config(value["config"])
        return made

    def from_config(self, config: dict[str, Any]) -> Any:
        """What a stand-in stands for; Keras calls this as if it were the class method of that name."""
        held = self._held[config["number"]]
        return held if self._clone_model is None or not isinstance(held, keras.Model) else self._clone_model(held)

    def _shadow(self, thing: Any, shadows: dict[int, Any]) -> Any:
        """An object of the same class with the same attributes, but for stand-ins; the original is not touched."""
        shadow = shadows[id(thing)] = object.__new__(type(thing))

        def seen(value: Any) -> Any:
            if id(value) in shadows:
                return shadows[id(value)]
            if isinstance(value, keras.Model):
                return self._stand_in(value) if self._clone_model and getattr(value, "inputs", None) else value
            if isinstance(value, _CONFIGURED):
                if not type(value).__module__.startswith("keras."):
                    self._classes[keras.saving.get_registered_name(type(value))] = type(value)
                return self._shadow(value, shadows)
            return self._stand_in(value) if is_function(value) else value

        vars(shadow).update({name: _mapped(seen, value) for name, value in vars(thing).items()})
        return shadow

    def _stand_in(self, held: Any) -> _StandIn:
        self._held.append(held)
        return _StandIn(held, len(self._held) - 1)


def is_function(value: Any) -> bool:
    """Whether a value is called for what it computes, and has no configuration that Keras knows to build it from."""
    return callable(value) and not isinstance(value, (type, *_CONFIGURED))


@contextlib.contextmanager
def serializable(thing: Any) -> Iterator[None]:
    """Lends a model or an operation stand-ins for the functions that Keras cannot write down, as long as it lasts.

    They call the functions: whoever uses the model meanwhile sees no difference.
    """
    with _LENDING, contextlib.ExitStack() as stack:
        for holder in held_objects(thing):
            own = vars(holder)
            for name, value in list(own.items()):
                lent = _mapped(functools.partial(_lent, holder), value)
                if lent is not value:
                    stack.callback(own.__setitem__, name, value)
                    own[name] = lent
        yield


@contextlib.contextmanager
def named_alone(model: Any) -> Iterator[None]:
    """Lends the operations of a model that have no configuration one of their names, as long as it lasts.

    That is enough to say which operations there are, and what they read.
    """
    with _LENDING, contextlib.ExitStack() as stack:
        for op in _operations(model):
            if not has_config(op):
                stack.callback(vars(op).pop, "get_config")
                vars(op)["get_config"] = functools.partial(dict, name=op.name)
        yield


def _operations(model: Any) -> Iterator[Any]:
    """The operations of a model with a graph, and of those in it."""
    for op in getattr(model, "operations", ()):
        if isinstance(op, keras.Model) and hasattr(op, "operations"):
            yield from _operations(op)
        else:
            yield op


def has_config(op: Any) -> bool:
    """Whether an operation says how it is configured."""
    return config_error(op) is None


def config_error(op: Any) -> Exception | None:
    """What an operation raises when it is asked how it is configured: anything, where its class is the user's."""
    try:
        keras.saving.serialize_keras_object(op)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def plain_config(op: Any) -> dict[str, Any]:
    """`op.get_config()`, with a description of the functions that Keras cannot write down; {} where it raises."""
    with serializable(op), contextlib.suppress(Exception):
        return op.get_config()
    return {}


def held_objects(thing: Any) -> list[Any]:
    """A Keras object and all that it holds, inside of each other."""
    found, waiting = {}, [thing]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, tuple, dict)):
            # TensorFlow's wrapped tuples do not add to lists.
            waiting.extend(value.values() if isinstance(value, dict) else value)
        elif type(value) not in _PLAIN and isinstance(value, _CONFIGURED) and id(value) not in found:
            found[id(value)] = value
            waiting.extend(vars(value).values())
    return list(found.values())


class _StandIn:
    """Takes the place of a function in a configuration."""

    def __init__(self, held: Any, number: int = 0):
        self.held, self.number = held, number
        self.__name__ = getattr(held, "__name__", type(held).__name__)

    def __call__(self, *args, **kwargs) -> Any:
        return self.held(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> _StandIn:
        return self

    def get_config(self) -> dict[str, Any]:
        return {"number": self.number, "function": _described(self.held)}


def _lent(holder: Any, value: Any) -> Any:
    """A stand-in for a function that Keras refuses to write down, or warns of."""
    if isinstance(value, types.FunctionType):
        # Keras writes the code of a Lambda layer's lambda without a word.
        refused = value.__name__ == "<lambda>" and not isinstance(holder, keras.layers.Lambda)
    else:
        named = isinstance(value, types.BuiltinFunctionType | types.MethodType)
        refused = is_function(value) and not named and not hasattr(value, "get_config")
    return _StandIn(value) if refused else value


def _described(function: Any) -> Any:
    """A function as plain data, the same in another process."""
    if isinstance(function, functools.partial):
        values = _mapped(_plainly, [*function.args, function.keywords])
        return [_described(function.func), *values]
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    return name if code is None else [name, hashlib.sha256(marshal.dumps(code)).hexdigest()]


def _plainly(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else type(value).__qualname__


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The value with everything in its lists and dicts replaced but plain data; itself where nothing is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        mapped: Any = {key: _mapped(function, entry) for key, entry in value.items()}
        same = all(mapped[key] is entry for key, entry in value.items())
    elif isinstance(value, list) or type(value) is tuple:
        mapped = [_mapped(function, entry) for entry in value]
        same = all(new is entry for new, entry in zip(mapped, value, strict=True))
        mapped = tuple(mapped) if isinstance(value, tuple) else mapped
    else:
        return function(value)
    return value if same else mapped
