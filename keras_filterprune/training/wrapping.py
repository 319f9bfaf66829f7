"""Put training-time wrappers around the layers of a model, and take them off again."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.errors import UnknownNameError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.rebuild.clone import Rewriter
from keras_filterprune.training.bridgeout import WINDOWED, BatchBridgeout


def apply_bridgeout(
    model: keras.Model,
    rate: float = 0.3,
    norm: float = 1.5,
    target_fraction: float = 1.0,
    *,
    include: str | Iterable[str] | None = None,
    seed: int = 0,
) -> keras.Model:
    """An equal model with every convolution with a window in a `BatchBridgeout`; the original is not touched.

    Args:
        model: a built functional or Sequential model.
        rate, norm, target_fraction: see `BatchBridgeout`.
        include: names or globs of the layers to wrap, `Dense` and 1x1 convolutions too (None: every convolution with a
            window).
        seed: seed of the masks; every layer has its own, counted from it (0).

    Returns:
        A model of the same kind, with the weights, and compiled like the original if that was.

    Raises:
        UnknownNameError: no layer matches, or an argument is out of range.
        UnsupportedLayerError: a layer that matches has no kernel, or is wrapped already.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> [layer.name for layer in kfp.apply_bridgeout(model).layers]
        ['conv_bridgeout']
    """
    graph = analyze(model)
    patterns = None if include is None else (include,) if isinstance(include, str) else tuple(include)
    chosen = {}
    for call in graph.view.calls:
        named = patterns is not None and any(fnmatch.fnmatch(call.path, pattern) for pattern in patterns)
        windowed = patterns is None and type(call.op) in WINDOWED and math.prod(call.op.kernel_size) > 1
        if call.inputs and (named or windowed):
            chosen.setdefault(id(call.op), len(chosen))
    if not chosen:
        wanted = "a convolution with a window" if patterns is None else f"{include!r}"
        raise UnknownNameError(f"model '{model.name}' has no layer that matches {wanted}. analyze(model) lists them.")

    def wrapped(op: Any, clone: Callable[[Any], Any]) -> Any | None:
        if id(op) not in chosen:
            return None
        plain = op if isinstance(op, keras.layers.Wrapper) else clone(op)
        return BatchBridgeout(plain, rate, norm, target_fraction, seed=seed + chosen[id(op)])

    return _Swapper(graph, wrapped).result(model)


def strip_wrappers(model: keras.Model) -> keras.Model:
    """The plain model inside a wrapped one: bit-identical at inference, and without any custom object.

    Args:
        model: a model, with training-time wrappers perhaps, in nested models too. It is not modified.

    Returns:
        A model of the same kind, with the weights, and compiled like the original if that was.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> [layer.name for layer in kfp.strip_wrappers(kfp.apply_bridgeout(model)).layers]
        ['conv']
    """
    return _Swapper(analyze(model), lambda op, clone: clone(_plain(op)) if _plain(op) is not op else None).result(model)


def _plain(op: Any) -> Any:
    return op.layer if isinstance(op, BatchBridgeout) else op


class _Swapper(Rewriter):
    """Clones a model with other layers in the place of some, of the same weights.

    Args:
        graph: the channel graph of the model.
        swap: `f(operation, clone)` returns the layer in an operation's place, None for its clone.
    """

    def __init__(self, graph: ChannelGraph, swap: Callable[[Any, Callable[[Any], Any]], Any | None]):
        super().__init__(graph)
        self._swap = swap
        self._swapped: list[tuple[Any, Any]] = []

    def _clone(self, op: Any) -> Any:
        new = self._swap(op, super()._clone)
        if new is None:
            return super()._clone(op)
        self.written.add(id(op))
        self._swapped.append((op, new))
        return new

    def write(self) -> None:
        for old, new in self._swapped:
            _plain(new).set_weights(_plain(old).get_weights())
