"""analyze(model) -> ChannelGraph: what can be removed from a model, once it is a graph of plain layers."""

from __future__ import annotations

import keras

from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.opening import opened_view
from keras_filterprune.tracing import trace_view


def analyze(model: keras.Model) -> ChannelGraph:
    """Find which filters of a model can be removed, together with what, and which cannot and why.

    Subclassed models, layers that are made of layers, and models in channels_first are opened first, see `open_model`;
    `graph.model` is then the opened one, else the model itself. Beyond that, time is linear in the number of layers and
    channels, and no weight is read or copied.

    Args:
        model: a built `keras.Model` (nested, shared, multi-input, subclassed, channels_first: all fine).

    Returns:
        A `ChannelGraph`: `groups` to prune, `pinned` with reasons; `summary()` and `plot()` show them.

    Raises:
        UnsupportedModelError: the model is not built, or cannot be opened.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((32, 32, 3))
        >>> y = keras.layers.Conv2D(16, 3, name="conv")(x)
        >>> y = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(y))
        >>> [(g.name, g.size) for g in kfp.analyze(keras.Model(x, y)).groups]
        [('conv', 16)]
    """
    return trace_view(opened_view(model))
