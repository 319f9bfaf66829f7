"""Which handler an operation has, which class of Keras it counts as, and how both are told."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

import keras

from keras_filterprune.errors import UnsupportedLayerError, UnsupportedModelError
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.apart import channels_apart
from keras_filterprune.handlers.base import Handler, Resize, describe, untracked
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.passing import treats_alike
from keras_filterprune.handlers.statistics import Statistics

T = TypeVar("T")


def taught_by(op: Any, closed: str = "") -> str:
    """How to teach the library a layer that is not of Keras, as the end of a sentence; `closed` as in `Call`."""
    if not isinstance(op, keras.layers.Layer) or type(op).__module__.startswith("keras."):
        return ""
    taught = f"; register_handler({type(op).__name__}, like=...) teaches it"
    return f"{taught}; it is not opened: it {closed}" if closed else taught


def remedy(call: Call) -> str:
    """What would make the library know what a call does, as the end of a sentence."""
    if not isinstance(call.op, keras.layers.Layer):
        return "; a layer of your own around it, with a kfp.handlers.Handler, teaches it"
    known = "; a kfp.handlers.Handler of your own, registered for its class, teaches it"
    known += f"; it is not opened: it {call.closed}" if call.closed else ""
    return taught_by(call.op, call.closed) or known


class Opaque(Handler):
    """Any operation without a handler: its inputs are pinned, its outputs carry no channels."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        axes = {x.axis for x in inputs}
        if len(axes) == 1 and axes != {None} and not named_weights(call.op) and treats_alike(call):
            t.tie(*(x.ids for x in inputs))
            return [Tensor(call.output_shapes[0], inputs[0].axis, inputs[0].ids)]
        if not named_weights(call.op) and (found := channels_apart(call, inputs)) is not None:
            ids = next(x.ids for x in inputs if x.tracked)
            t.tie(ids, *(x.ids for x in inputs if x.tracked))
            return [Tensor(s, axis, ids) if s else Tensor(s) for s, axis in zip(call.output_shapes, found, strict=True)]
        t.constant(call.path, *named_weights(call.op))
        t.pin_tensors(inputs, f"feeds unsupported {describe(call)}{remedy(call)}")
        for x in inputs:
            t.reconsider(x.ids)
        return untracked(call)


# Classes with a handler of their own, and those that are registered like one of them.
_BY_TYPE: dict[type, Handler] = {}
_LIKE: dict[type, type] = {}
_BY_NAME: dict[str, Handler] = {}
_OPAQUE = Opaque()


def register_handler(*layer_types: type, like: type | None = None):
    """Teach the library a layer type.

    Args:
        *layer_types: layer classes, matched exactly: a subclass may compute something else, so it registers itself.
        like: a registered class that computes the same: these layers have its attributes, weights and configuration,
            and count as that class everywhere, in pruning, compensation, training and prices; without it, use as a
            class decorator.

    Returns:
        None with `like`, else a decorator for a `Handler` subclass.

    Raises:
        UnsupportedLayerError: a type is not the class of a layer, or `like` has no handler.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class MyConv(keras.layers.Conv2D): pass
        >>> kfp.register_handler(MyConv, like=keras.layers.Conv2D)
    """
    for layer_type in layer_types:
        if not inspect.isclass(layer_type):
            raise UnsupportedLayerError(f"register_handler expects classes. Received: {layer_type!r}.")
        if issubclass(layer_type, Handler):
            raise UnsupportedLayerError(
                "register_handler expects classes of layers: @register_handler(MyLayer) above a handler. Received: "
                f"{layer_type!r}."
            )
    if like is not None:
        known = _LIKE.get(like, like) if inspect.isclass(like) else None
        if known not in _BY_TYPE:
            raise UnsupportedLayerError(
                f"register_handler(like=) expects a layer class with a handler. Received: {like!r}."
            )
        if not layer_types or like in layer_types:
            raise UnsupportedLayerError(
                f"register_handler(MyLayer, like={like.__name__}) expects classes of your own. Received: "
                f"{', '.join(kind.__name__ for kind in layer_types) or 'none'}."
            )
        _LIKE.update(dict.fromkeys(layer_types, known))
        return None

    def decorator(handler: type[Handler]) -> type[Handler]:
        if not inspect.isclass(handler) or not issubclass(handler, Handler):
            raise UnsupportedLayerError(f"a handler is a subclass of kfp.handlers.Handler. Received: {handler!r}.")
        for layer_type in layer_types:
            _LIKE.pop(layer_type, None)
        _BY_TYPE.update(dict.fromkeys(layer_types, handler()))
        return handler

    return decorator


def register_keras_names(*names: str):
    """Class decorator: handle Keras' own operations of these names, whose classes Keras does not export."""

    def decorator(handler: type[Handler]) -> type[Handler]:
        _BY_NAME.update(dict.fromkeys(names, handler()))
        return handler

    return decorator


def handler_for(op: Any) -> Handler:
    """The handler of a Keras operation; an opaque one that pins its inputs where none is registered."""
    kind = _LIKE.get(type(op), type(op))
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    return _BY_NAME.get(keras_name(op), _OPAQUE)


def check_format(op: Any) -> None:
    """Raise `UnsupportedModelError` where channels are not on the last axis."""
    if getattr(op, "data_format", None) == "channels_first":
        raise UnsupportedModelError(
            f"layer '{op.name}' uses data_format='channels_first'; expected 'channels_last', the format of TFLite and "
            "of CPUs. kfp.open_model(model) makes that of it; of a layer inside of another, rebuild it with "
            "data_format='channels_last' and copy its weights: kernels have the same layout."
        )


def is_known(op: Any) -> bool:
    """Whether an operation has a handler, of its own or of what it is registered like."""
    return handler_for(op) is not _OPAQUE


def keras_class(op: Any) -> type | None:
    """The class of Keras that an operation is or is registered like; None for all others, subclasses among them."""
    kind = _LIKE.get(type(op), type(op))
    return kind if kind.__module__.startswith("keras.") else None


def keras_name(op: Any) -> str:
    """Name of the `keras_class`, "" for None: layers and raw operations of one name compute the same."""
    return getattr(keras_class(op), "__name__", "")


def linear_of(op: Any) -> Linear | None:
    """What an operation multiplies, see `Handler.linear`; None where its kernel is not all, or packed: LoRA, int8."""
    if getattr(op, "lora_enabled", False) or getattr(op, "quantization_mode", None) is not None:
        return None
    return handler_for(op).linear(op)


def statistics_of(op: Any) -> Statistics | None:
    """What an operation normalises by, see `Handler.statistics`."""
    return handler_for(op).statistics(op)


def untaught(op: Any) -> bool:
    """Whether an operation is a layer of somebody's own that does not say what it multiplies or normalises by."""
    own = isinstance(op, keras.layers.Layer) and keras_class(op) is None
    return own and linear_of(op) is None and statistics_of(op) is None


def known_linear(op: Any) -> Linear:
    """What an operation multiplies that is known to multiply: the twin of one that does, say."""
    return _known(linear_of(op), op, "multiplies")


def known_statistics(op: Any) -> Statistics:
    """What an operation normalises by that is known to."""
    return _known(statistics_of(op), op, "normalises by")


def _known(value: T | None, op: Any, does: str) -> T:
    if value is None:
        raise UnsupportedLayerError(f"the handler of layer '{op.name}' does not say what it {does}{taught_by(op)}.")
    return value


def resized(op: Any, config: dict[str, Any], r: Resize) -> dict[str, Any]:
    """The configuration of a layer with fewer channels; an `UnsupportedLayerError` where it does not hold what its
    handler changes."""
    with explained():
        try:
            return handler_for(op).resize(config, r)
        except KeyError as error:
            (key,) = error.args
            if key in config:
                raise
            raise _lacking(op, f"{key!r} in its get_config()") from error


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say so where a layer lacks an attribute that its handler looks at, or what knows the class it is like."""
    try:
        yield
    except AttributeError as error:
        if not isinstance(error.obj, keras.layers.Layer):
            raise
        raise _lacking(error.obj, f"attribute '{error.name}'") from error


def check_weights(op: Any) -> None:
    """Raise `UnsupportedLayerError` unless a layer has the weights that its handler says it multiplies."""
    handler, present = handler_for(op), named_weights(op)
    linear, statistics = handler.linear(op), handler.statistics(op)
    needed = [] if linear is None else list(linear.kernels)
    needed += [] if statistics is None else [statistics.mean, statistics.variance]
    missing = [name for name in needed if name not in present]
    if missing:
        raise _lacking(op, f"weight '{missing[0]}'")


def likeness(op: Any) -> type | None:
    """The class that a layer was registered like, None where it was not."""
    return _LIKE.get(type(op))


def registered(op: Any) -> str:
    """How a layer is registered, in words."""
    like = likeness(op)
    return f"registered with handler {type(handler_for(op)).__name__}{f', like {like.__name__}' if like else ''}"


def _lacking(layer: Any, what: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"layer '{layer.name}' ({type(layer).__name__}) is {registered(layer)}, which expects a layer with {what}. "
        "Received: one without. Give it to the layer, or register a handler of its own (kfp.handlers.Handler)."
    )
