"""What a layer handler is, and the registry that finds the one for a Keras operation."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_returned
from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Bind, Call, Tensor
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.statistics import Statistics
from keras_filterprune.parts import Checked, returns

UNTRACKED = "comes from a tensor whose channels are not tracked"


@dataclass(frozen=True, eq=False)
class Resize:
    """One call, and which of its channels stay.

    Attributes:
        call: the call in the original model.
        inputs, outputs: its tensors in the original model.
        alive: boolean array over channel ids.
        binds: the axes of the layer's weights that channels index, those of no tensor (heads of attention) included.

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
    binds: tuple[Bind, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether any channel of the call goes, of its tensors or inside of it."""
        tensors = [t.ids for t in (*self.inputs, *self.outputs) if t.tracked]
        return any(not self.alive[ids].all() for ids in (*tensors, *(bind.ids for bind in self.binds)))

    def kept(self, tensor: Tensor) -> np.ndarray:
        """Boolean array of shape (channels,): which channels of a tracked tensor stay."""
        return self.alive[tensor.ids]

    def width(self, tensor: Tensor) -> int:
        """Channels of a tracked tensor that stay."""
        return int(self.kept(tensor).sum())

    def shape(self, tensor: Tensor) -> tuple[int | None, ...]:
        """Shape of a tensor after removal."""
        shape = list(tensor.shape)
        if tensor.axis is not None:
            shape[tensor.axis] = self.width(tensor)
        return tuple(shape)


def _check_config(handler: Any, config: Any, _: Any, r: Resize) -> None:
    """A configuration is a dict."""
    _check(handler, isinstance(config, dict), "resize", "the configuration, a dict", r.call.op, config)


def _check_arguments(handler: Any, found: Any, *arguments: Any) -> None:
    """Arguments of a call are a tuple and a dict."""
    right = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], tuple) and isinstance(found[1], dict)
    _check(handler, right, "rewrite", "(args, kwargs), a tuple and a dict", arguments[-1].call.op, found)


def _check_masked(handler: Any, found: Any, op: Any, args: tuple, kwargs: dict, r: Resize) -> None:
    """What stands for a call has the shapes of its outputs."""
    given, wanted = [tuple(getattr(x, "shape", ())) for x in keras.tree.flatten(found)], r.call.output_shapes
    right = [len(shape) for shape in given] == [len(shape) for shape in wanted] and all(
        None in (n, m) or n == m
        for one, other in zip(given, wanted, strict=True)
        for n, m in zip(one[1:], other[1:], strict=True)
    )
    _check(handler, right, "masked_call", f"tensors of shapes {wanted}", op, found)


def _check_linear(handler: Any, found: Any, op: Any) -> None:
    """What is multiplied is a `Linear`."""
    _check(handler, found is None or isinstance(found, Linear), "linear", "a Linear, or None", op, found)


def _check_statistics(handler: Any, found: Any, op: Any) -> None:
    """What is normalised by are `Statistics`."""
    _check(handler, found is None or isinstance(found, Statistics), "statistics", "Statistics, or None", op, found)


def _check(handler: Any, right: bool, method: str, what: str, op: Any, found: Any) -> None:
    who = f"{type(handler).__name__}.{method}, for layer '{op.name}' ({type(op).__name__}),"
    check_returned(right, who, f"return {what}", found, UnsupportedLayerError)


class Handler(Checked, abc.ABC):
    """How one family of operations moves channels, and how its configuration follows when some are removed.

    A subclass implements `trace`; `resize`, `rewrite` and `masked_call` only where the defaults do not fit; `linear` or
    `statistics` for layers that multiply or normalise: whatever measures, refits or perturbs layers asks them, and
    leaves those alone that answer None. `LinearHandler` needs `linear` alone. Register it with
    `@register_handler(MyLayer)`.

    Attributes:
        sized: the configuration depends on the number of channels although no weight does (`Reshape`); a layer
            of this kind that is called again needs the same channels at each call (False).

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
        ...         ids = kfp.handlers.read_last_axis(call, inputs[0], t)
        ...         t.bind(call.path, "gamma", 0, ids)
        ...         return [kfp.handlers.Tensor(call.output_shapes[0], len(call.output_shapes[0]) - 1, ids)]
        ...
        >>> layers = [keras.layers.Conv2D(8, 3, name="conv"), Scale(name="scale"), keras.layers.Conv2D(2, 1)]
        >>> small = kfp.prune_model(keras.Sequential([keras.Input((8, 8, 3)), *layers]), "l2", 0.5)
        >>> small.get_layer("conv").filters, tuple(small.get_layer("scale").gamma.shape)
        (4, (4,))
    """

    _fault = UnsupportedLayerError
    sized = False

    @abc.abstractmethod
    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        """Report what a call does to its input channels.

        Args:
            call: the call, with the live layer as `call.op`.
            inputs: its tensors, with the ids of their channels where they are tracked.
            t: takes the reports: which channels begin here, which are tied, which stay, which weights they index.

        Returns:
            One `Tensor` per output, in the order of `call.output_shapes`.
        """

    @returns(_check_config)
    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        """The configuration after removal.

        Args:
            config: the `get_config()` of the operation, a copy that may be changed.
            r: which channels stay.

        Returns:
            The configuration of the smaller operation; the same by default.
        """
        return config

    @returns(_check_arguments)
    def rewrite(self, args: tuple, kwargs: dict, r: Resize) -> tuple[tuple, dict]:
        """The call arguments after removal (slice bounds, constant arrays)."""
        return args, kwargs

    @returns(_check_masked)
    def masked_call(self, op: Any, args: tuple, kwargs: dict, r: Resize) -> Any:
        """Apply the original operation as if removed channels did not exist; differs from `op` only for statistics."""
        return op(*args, **kwargs)

    @returns(_check_linear)
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

    @returns(_check_statistics)
    def statistics(self, op: Any) -> Statistics | None:
        """The stored statistics by which a layer normalises every channel on its own, None (default) for others.

        Recalibration measures them anew; what follows a layer that multiplies is counted as part of it.
        """
        return None


def weight_axis(call: Call, weight: str, axis: int) -> int:
    """`axis` of a weight as a non-negative number."""
    return axis % len(named_weights(call.op)[weight].shape)


def read_last_axis(call: Call, x: Tensor, t: Tracer) -> np.ndarray:
    """Read the ids of a tensor's last axis, where most layers have their channels.

    Args:
        call: the call that reads `x`.
        x: one of its inputs.
        t: the tracer, which pins channels that lie on another axis.

    Returns:
        int64 array of shape (channels,); new ids, pinned, where none are tracked.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> call = kfp.analyze(model).view.calls[1]
        >>> x = kfp.handlers.Tensor((None, 8, 8, 3), axis=3, ids=np.arange(3))
        >>> kfp.handlers.read_last_axis(call, x, kfp.handlers.Tracer())
        array([0, 1, 2])
    """
    if x.axis == len(x.shape) - 1:
        return x.ids
    if x.tracked:
        t.pin(x.ids, f"lies on axis {x.axis} where {describe(call)} reads its channels on the last")
    return t.pinned(x.last, UNTRACKED)


def volume(shape: tuple[int | None, ...]) -> int:
    """Number of positions of a shape; dimensions that stay unknown count once."""
    return math.prod(n for n in shape if n is not None)


def untracked(call: Call) -> list[Tensor]:
    """Outputs of a call without any tracked channel."""
    return [Tensor(shape) for shape in call.output_shapes]


def give_up(call: Call, inputs: tuple[Tensor, ...], t: Tracer, why: str) -> list[Tensor]:
    """Pin everything that reaches the call; `why` is a predicate about the channels."""
    t.pin_tensors(inputs, f"{why} {describe(call)}")
    t.reconsider(*(x.ids for x in inputs))
    return untracked(call)


def describe(call: Call) -> str:
    kind = "layer" if isinstance(call.op, keras.layers.Layer) else "operation"
    return f"{kind} '{call.path}' ({type(call.op).__name__})"
