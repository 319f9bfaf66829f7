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
        >>> tuple(statistics.weight("moving_mean").shape), statistics.weight("gamma")
        ((4,), None)
    """

    op: Any
    axis: int
    epsilon: float
    mean: str = "moving_mean"
    variance: str = "moving_variance"
    scale: str = "gamma"
    offset: str = "beta"

    @property
    def weights(self) -> dict[str, keras.Variable]:
        """The weights of the layer by their names."""
        return named_weights(self.op)

    def weight(self, name: str) -> keras.Variable | None:
        """A weight of the layer by its name, None where it has none."""
        return self.weights.get(name)

    def values(self, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Mean, variance, scale and offset, (channels,) each; 1 and 0 where the layer has no scale or offset."""
        found = {name: keras.ops.convert_to_numpy(v.value).astype(dtype) for name, v in self.weights.items()}
        mean = found[self.mean]
        scale, offset = found.get(self.scale, np.ones_like(mean)), found.get(self.offset, np.zeros_like(mean))
        return mean, found[self.variance], scale, offset
