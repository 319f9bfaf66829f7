"""What a layer normalises by: the value that handlers return of batch normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights


@dataclass(frozen=True, eq=False)
class Statistics:
    """Stored statistics per channel: a layer computes (x - mean) / sqrt(variance + epsilon) * scale + offset.

    Attributes:
        op: the layer.
        axis: of the channels, negative perhaps.
        epsilon: added to the variance.
        mean, variance: names of weights, of shape (channels,) ("moving_mean", "moving_variance").
        scale, offset: likewise; the layer may lack them ("gamma", "beta").

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layer = keras.layers.BatchNormalization(scale=False)
        >>> layer.build((None, 4))
        >>> statistics = kfp.handlers.Statistics(layer, axis=-1, epsilon=layer.epsilon)
        >>> statistics.weight("moving_mean").shape, statistics.weight("gamma")
        ((4,), None)
    """

    op: Any
    axis: int
    epsilon: float
    mean: str = "moving_mean"
    variance: str = "moving_variance"
    scale: str = "gamma"
    offset: str = "beta"

    def weight(self, name: str) -> keras.Variable | None:
        """A weight of the layer by its name, None where it has none."""
        return named_weights(self.op).get(name)

    def values(self, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Mean, variance, scale and offset, (channels,) each; 1 and 0 where the layer has no scale or offset."""
        mean, variance, scale, offset = (
            None if variable is None else keras.ops.convert_to_numpy(variable.value).astype(dtype)
            for variable in map(self.weight, (self.mean, self.variance, self.scale, self.offset))
        )
        scale = np.ones_like(mean) if scale is None else scale
        return mean, variance, scale, np.zeros_like(mean) if offset is None else offset
