"""Penalties for `kernel_regularizer=` that leave weights near zero."""

from __future__ import annotations

from numbers import Real
from typing import Any

import keras

from keras_filterprune.errors import UnknownNameError
from keras_filterprune.training.bridgeout import check_norm


@keras.saving.register_keras_serializable(package="keras_filterprune")
class BridgePenalty(keras.regularizers.Regularizer):
    """strength * sum |w|^q, the penalty that `BatchBridgeout` stands for on average (Frank and Friedman 1993).

    Args:
        q: the norm, above 0; 2 is weight decay, 1 the lasso (1.5).
        strength: of the penalty, not negative (1e-4).

    Raises:
        UnknownNameError: an argument is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layer = keras.layers.Conv2D(8, 3, kernel_regularizer=kfp.BridgePenalty(q=1.5, strength=1e-4))
    """

    def __init__(self, q: float = 1.5, strength: float = 1e-4):
        self.q = check_norm(q)
        if isinstance(strength, bool) or not isinstance(strength, Real) or not strength >= 0:
            raise UnknownNameError(f"strength is a number, not negative. Received: strength={strength!r}.")
        self.strength = float(strength)

    def __call__(self, x: Any) -> Any:
        # Without the small number the gradient at 0 is infinite for q < 1.
        return self.strength * keras.ops.sum((keras.ops.abs(x) + 1e-12) ** self.q)

    def get_config(self) -> dict[str, Any]:
        return {"q": self.q, "strength": self.strength}
