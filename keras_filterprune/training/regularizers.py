"""Penalties for `kernel_regularizer=` that leave weights, or whole filters, near zero."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import keras

from keras_filterprune.errors import UnknownNameError
from keras_filterprune.training.bridgeout import check_norm


class Penalty(keras.regularizers.Regularizer):
    """A regularizer whose strength can change while a network trains.

    Args:
        strength: of the penalty, not negative.
    """

    def __init__(self, strength: float):
        if isinstance(strength, bool) or not isinstance(strength, Real) or not strength >= 0:
            raise UnknownNameError(f"strength is a number, not negative. Received: strength={strength!r}.")
        self._strength = float(strength)
        # Compiled training steps never look at a Python number again.
        self._variable = keras.Variable(self._strength, trainable=False, name="strength")

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = value
        self._variable.assign(value)

    def times_strength(self, total: Any) -> Any:
        """The penalty, in the dtype of `total`."""
        return keras.ops.cast(self._variable.value, total.dtype) * total


@keras.saving.register_keras_serializable(package="keras_filterprune")
class BridgePenalty(Penalty):
    """strength * sum |w|^q, the penalty that `BatchBridgeout` stands for on average (Frank and Friedman 1993).

    With q=1 on the scales of batch normalization it is network slimming (Liu et al. 2017).

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
        super().__init__(strength)
        self.q = check_norm(q)

    def __call__(self, x: Any) -> Any:
        # Without the small number the gradient at 0 is infinite for q < 1.
        return self.times_strength(keras.ops.sum((keras.ops.abs(x) + 1e-12) ** self.q))

    def get_config(self) -> dict[str, Any]:
        return {"q": self.q, "strength": self.strength}


@keras.saving.register_keras_serializable(package="keras_filterprune")
class GroupLasso(Penalty):
    """strength * sum_j sqrt(d) ||w_j||_2 over the filters w_j of d weights: whole filters go to zero (Wen et al. 2016).

    Args:
        strength: of the penalty, not negative (1e-4).
        axis: along which the kernel's filters are numbered: -1 (default), -2 for transposed convolutions.

    Raises:
        UnknownNameError: an argument is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layer = keras.layers.Conv2D(8, 3, kernel_regularizer=kfp.GroupLasso(1e-4))
    """

    def __init__(self, strength: float = 1e-4, axis: int = -1):
        super().__init__(strength)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise UnknownNameError(f"axis is an integer. Received: axis={axis!r}.")
        self.axis = axis

    def __call__(self, x: Any) -> Any:
        others = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        weights = math.prod(x.shape[axis] for axis in others)
        # Without the small number the gradient of a filter of zeros is not a number.
        norms = keras.ops.sqrt(keras.ops.sum(keras.ops.square(x), axis=others) + 1e-12)
        return self.times_strength(math.sqrt(weights) * keras.ops.sum(norms))

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "axis": self.axis}
