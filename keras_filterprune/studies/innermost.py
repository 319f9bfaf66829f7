"""Where the channels of an encoder-decoder are that it needs least."""

from __future__ import annotations

import math

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_integer
from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.types import Call, Shape


def innermost(model: keras.Model, k: int = 1) -> list[str]:
    """Name the layers around the bottleneck of an encoder-decoder, where most filters are useless (Kim 2022).

    They hold most parameters of a U-Net and few of its multiply-accumulates, so that cutting them alone makes a file
    small, not fast.

    Args:
        model: a built `keras.Model` that makes tensors smaller, and larger again. It is not modified.
        k: how many resolutions, from the lowest one on, of those from which something is made larger (1).

    Returns:
        Layers whose filters can be pruned, on the way in and out, in the order of the model: for `include=`, or as keys
        of a `FiltersBudget`.

    Raises:
        UnsupportedModelError: the model is not built, or nothing in it is made larger.
        InvalidValueError: k is no number from 1 on.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((16, 16, 3))
        >>> skip = keras.layers.Conv2D(8, 3, padding="same", name="outer")(x)
        >>> y = keras.layers.Conv2D(32, 3, 2, padding="same", name="inner")(skip)
        >>> y = keras.layers.Concatenate()([keras.layers.UpSampling2D()(y), skip])
        >>> model = keras.Model(x, keras.layers.Conv2D(2, 3, padding="same", name="logits")(y))
        >>> kfp.studies.innermost(model)
        ['inner']
        >>> small = kfp.prune_model(model, "l2", kfp.ParamsBudget(keep=0.5), include=kfp.studies.innermost(model))
    """
    check_integer("k", k, "a number of resolutions")
    graph = analyze(model)
    enlarged = {_positions(call.input_shapes[0]) for call in graph.view.calls if _enlarges(call)}
    if not enlarged:
        raise UnsupportedModelError(f"nothing in model '{model.name}' is made larger: it is no encoder-decoder.")
    positions = {call.path: _positions(call.output_shapes[0]) for call in graph.view.calls}
    # Depthwise convolutions hand on filters of the resolution before: a group is where its first layer is.
    levels = sorted(enlarged & {positions[group.producers[0]] for group in graph.groups})[:k]
    inner = {layer for group in graph.groups if positions[group.producers[0]] in levels for layer in group.producers}
    return [layer for layer in positions if layer in inner and positions[layer] in levels]


def _enlarges(call: Call) -> bool:
    """Whether there are at least twice as many positions behind it; padding adds fewer, and joining reads several."""
    return len(call.inputs) == 1 and _positions(call.output_shapes[0]) >= 2 * _positions(call.input_shapes[0])


def _positions(shape: Shape) -> int:
    return math.prod(size or 1 for size in shape[1:-1])
