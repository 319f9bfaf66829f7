"""What a layer handler is, and the registry that finds the one for a Keras operation."""

from __future__ import annotations

import abc
import contextlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import UnsupportedLayerError, UnsupportedModelError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, ChannelGraph, ModelView, Tensor
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.statistics import Statistics

UNTRACKED = "comes from a tensor whose channels are not tracked"


@dataclass(frozen=True, eq=False)
class Resize:
    """One call, and which of its channels stay.

    Attributes:
        call: the call in the original model.
        inputs, outputs: its tensors in the original model.
        alive: boolean array over channel ids.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 1)])
        >>> graph = kfp.analyze(model)
        >>> kept = kfp.handlers.Kept(graph, {graph.groups[0].name: [0, 3]})
        >>> resize = kfp.handlers.Resize(graph.view.calls[2], *graph.tensors[2], kept.alive)
        >>> resize.width(resize.inputs[0]), resize.shape(resize.inputs[0])
        (2, (None, 6, 6, 2))
    """

    call: Call
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    alive: np.ndarray

    @property
    def changed(self) -> bool:
        """Whether any channel of the call goes."""
        return any(not self.kept(t).all() for t in (*self.inputs, *self.outputs) if t.tracked)

    def kept(self, tensor: Tensor) -> np.ndarray:
        """Boolean array of shape (channels,): which channels of a tracked tensor stay."""
        return self.alive[tensor.ids]

    def width(self, tensor: Tensor) -> int:
        """Channels of a tracked tensor that stay."""
        return int(self.kept(tensor).sum())

    def shape(self, tensor: Tensor) -> tuple[int | None, ...]:
        """Shape of a tensor after removal."""
        shape = list(tensor.shape)
        if tensor.tracked:
            shape[tensor.axis] = self.width(tensor)
        return tuple(shape)


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A smaller model next to the original: what a compensator is given.

    Attributes:
        kept: which units of the original stayed.
        model: the new model, with the surviving weights.
        twins: id of every original operation -> its clone, see `twin`.
        resizes: call number -> what happened to the call's channels.
        notes: what could not be carried over, in sentences.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Shown(kfp.compensators.Compensator):
        ...     def apply(self, rebuilt, data, progress=True):
        ...         call = rebuilt.graph.view.calls[1]
        ...         return f"{call.path}: {call.op.filters} filters, {rebuilt.twin(call).filters} stay"
        ...
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> settings = {"compensate": Shown(), "return_report": True}
        >>> kfp.prune_model(keras.Sequential(layers), "l2", 0.5, **settings)[1].compensation
        'conv: 8 filters, 4 stay'
    """

    kept: Kept
    model: keras.Model
    twins: dict[int, Any]
    resizes: dict[int, Resize]
    notes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the original."""
        return self.kept.graph

    def twin(self, call: Call) -> Any:
        """The layer or operation of the new model that stands in the place of the original's."""
        return self.twins[id(call.op)]

    def smaller_view(self) -> ModelView:
        """The original's view with the call arguments of the smaller model; its operations are the `twins`."""
        calls = list(self.graph.view.calls)
        for number, r in self.resizes.items():
            if r.changed:
                args, kwargs = handler_for(r.call.op).rewrite(r.call.args, r.call.kwargs, r)
                calls[number] = replace(r.call, args=args, kwargs=kwargs)
        return replace(self.graph.view, calls=tuple(calls))


class Handler(abc.ABC):
    """How one family of operations moves channels, and how its configuration follows when some are removed.

    A subclass implements `trace`; `resize`, `rewrite` and `masked_call` only where the defaults do not fit; `linear` or
    `statistics` for layers that multiply or normalise: whatever measures, refits or perturbs layers asks them, and
    leaves those alone that answer None. Register it with `@register_handler(MyLayer)`.

    Attributes:
        sized: the configuration depends on the number of channels although no weight does (`Reshape`); a layer
            of this kind that is called again needs the same channels at each call.
    """

    sized = False

    @abc.abstractmethod
    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        """Report what this call does to its input channels; return one `Tensor` per output."""

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        """The `get_config()` of the operation after removal; `config` is a copy and may be changed."""
        return config

    def rewrite(self, args: tuple, kwargs: dict, r: Resize) -> tuple[tuple, dict]:
        """The call arguments after removal (slice bounds, constant arrays)."""
        return args, kwargs

    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        """Apply the original operation as if removed channels did not exist; differs from `op` only for statistics."""
        return op(*args, **kwargs)

    def linear(self, op: Any) -> Linear | None:
        """What a layer multiplies: the sums that it computes over its input, before bias and activation.

        Criteria on data, least squares, linear compensation and the mean shift read and write its kernel through this,
        `BatchBridgeout` perturbs it.

        Args:
            op: the layer, which may not be built yet.

        Returns:
            A `Linear`; None (default) for a layer that computes something else, or more than that.

        Example:
            A layer that stores its kernel as (outputs, channels), in a weight named "rows"; docs/extending.md has all
            of its handler:

            >>> import keras, keras_filterprune as kfp
            >>> def linear(self, op):
            ...     product = lambda x, rows: keras.ops.matmul(x, keras.ops.transpose(rows))
            ...     return kfp.handlers.Linear(op, product, kernel="rows", channels=1, filters=0)
        """
        return None

    def statistics(self, op: Any) -> Statistics | None:
        """The stored statistics by which a layer normalises every channel on its own, None (default) for others.

        Recalibration measures them anew; what follows a layer that multiplies is counted as part of it.
        """
        return None


def weight_axis(call: Call, weight: str, axis: int) -> int:
    """`axis` of a weight as a non-negative number."""
    return axis % len(named_weights(call.op)[weight].shape)


def last_axis_ids(call: Call, x: Tensor, t: Tracer) -> np.ndarray:
    """Get the ids of the last axis of a call's input, where most layers have their channels.

    Args:
        call: the call that reads `x`.
        x: the input.
        t: the tracer, which pins channels that lie on another axis.

    Returns:
        int64 array of shape (channels,); new ids, pinned, where none are tracked.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Scale(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.gamma = self.add_weight((shape[-1],), "ones", name="gamma")
        ...     def call(self, x):
        ...         return x * self.gamma
        ...
        >>> @kfp.register_handler(Scale)
        ... class ScaleHandler(kfp.handlers.Handler):
        ...     def trace(self, call, inputs, t):
        ...         ids = kfp.handlers.last_axis_ids(call, inputs[0], t)
        ...         t.bind(call.path, "gamma", 0, ids)
        ...         return [kfp.handlers.Tensor(call.output_shapes[0], len(call.output_shapes[0]) - 1, ids)]
        ...
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), Scale(), keras.layers.Conv2D(2, 1)]
        >>> [group.size for group in kfp.analyze(keras.Sequential(layers)).groups]
        [4]
    """
    if x.axis == len(x.shape) - 1:
        return x.ids
    if x.tracked:
        t.pin(x.ids, f"lies on axis {x.axis} where {describe(call)} reads its channels on the last")
    return t.pinned(x.shape[-1], UNTRACKED)


def volume(shape: tuple[int | None, ...]) -> int:
    """Number of positions of a shape; dimensions that stay unknown count once."""
    return math.prod(n for n in shape if n is not None)


def untracked(call: Call) -> list[Tensor]:
    """Outputs of a call without any tracked channel."""
    return [Tensor(shape) for shape in call.output_shapes]


def give_up(call: Call, inputs: tuple[Tensor, ...], t: Tracer, why: str) -> list[Tensor]:
    """Pin everything that reaches the call; `why` is a predicate about the channels."""
    t.pin_tensors(inputs, f"{why} {describe(call)}")
    return untracked(call)


def describe(call: Call) -> str:
    kind = "layer" if isinstance(call.op, keras.layers.Layer) else "operation"
    return f"{kind} '{call.path}' ({type(call.op).__name__})"


def taught_by(op: Any) -> str:
    """How to teach the library a layer that is not of Keras, as the end of a sentence."""
    known = not isinstance(op, keras.layers.Layer) or type(op).__module__.startswith("keras.")
    return "" if known else f"; register_handler({type(op).__name__}, like=...) teaches it"


class Opaque(Handler):
    """Any operation without a handler: its inputs are pinned, its outputs carry no channels."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        t.constant(call.path, *named_weights(call.op))
        t.pin_tensors(inputs, f"feeds unsupported {describe(call)}{taught_by(call.op)}")
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
        UnsupportedLayerError: a type is not a class, or `like` has no handler.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class MyConv(keras.layers.Conv2D): pass
        >>> kfp.register_handler(MyConv, like=keras.layers.Conv2D)
    """
    for layer_type in layer_types:
        if not inspect.isclass(layer_type):
            raise UnsupportedLayerError(f"register_handler expects classes. Received: {layer_type!r}.")
    if like is not None:
        known = _LIKE.get(like, like) if inspect.isclass(like) else None
        if known not in _BY_TYPE:
            raise UnsupportedLayerError(
                f"register_handler(like=) expects a layer class with a handler. Received: {like!r}."
            )
        _LIKE.update(dict.fromkeys(layer_types, known))
        return None

    def decorator(handler: type[Handler]) -> type[Handler]:
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
    if getattr(op, "data_format", None) == "channels_first":
        raise UnsupportedModelError(
            f"layer '{op.name}' uses data_format='channels_first'; expected 'channels_last', the format of TFLite "
            "and of CPUs. Rebuild the model with data_format='channels_last' and copy its weights: kernels have the "
            "same layout."
        )
    kind = _LIKE.get(type(op), type(op))
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    return _BY_NAME.get(keras_name(op), _OPAQUE)


def keras_class(op: Any) -> type | None:
    """The class of Keras that an operation is or is registered like; None for all others, subclasses among them."""
    kind = _LIKE.get(type(op), type(op))
    return kind if kind.__module__.startswith("keras.") else None


def keras_name(op: Any) -> str:
    """Name of the `keras_class`, "" for None: layers and raw operations of one name compute the same."""
    return getattr(keras_class(op), "__name__", "")


def linear_of(op: Any) -> Linear | None:
    """What an operation multiplies, see `Handler.linear`."""
    return handler_for(op).linear(op)


def statistics_of(op: Any) -> Statistics | None:
    """What an operation normalises by, see `Handler.statistics`."""
    return handler_for(op).statistics(op)


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


def _lacking(layer: Any, what: str) -> UnsupportedLayerError:
    like = _LIKE.get(type(layer))
    return UnsupportedLayerError(
        f"layer '{layer.name}' ({type(layer).__name__}) is registered with handler "
        f"{type(handler_for(layer)).__name__}{f', like {like.__name__}' if like else ''}, which expects a layer with "
        f"{what}. Received: one without. Give it to the layer, or register a handler of its own (kfp.handlers.Handler)."
    )
