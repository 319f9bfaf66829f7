"""Lists of kept fractions, one per epoch, for `PruningSchedule` and `SoftPruning`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq

from keras_filterprune.checks import check_integer, check_number
from keras_filterprune.cost.base import check_fraction


def polynomial(keep: float, epochs: int, power: float = 3.0) -> list[float]:
    """Fractions kept that fall from 1 to `keep` fast at first (Zhu and Gupta 2017): 1 - (1 - keep) (1 - (1 - e/E)^k).

    Args:
        keep: the last fraction, in (0, 1].
        epochs: E, how many fractions.
        power: k, above 0 (3); 1 is a straight line.

    Returns:
        One fraction per epoch, the last of them `keep`.

    Raises:
        InfeasibleBudgetError: keep is outside (0, 1].
        InvalidValueError: epochs is no positive integer, or power not above 0.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.polynomial(0.5, 2, power=1)
        [0.75, 0.5]
    """
    _check(keep, epochs)
    check_number("power", power, above=0)
    return [1 - (1 - keep) * (1 - (1 - (epoch + 1) / epochs) ** power) for epoch in range(epochs)]


def exponential(keep: float, epochs: int) -> list[float]:
    """Fractions kept that fall from 1 to `keep` exponentially, three quarters of the way in the first quarter.

    The pruning rate is a exp(-k e) + b through (0, 0), (E/4, 3P/4) and (E, P), as in asymptotic soft filter pruning
    (He et al. 2019).

    Args:
        keep: the last fraction, in (0, 1].
        epochs: E, how many fractions.

    Returns:
        One fraction per epoch, the last of them `keep`.

    Raises:
        InfeasibleBudgetError: keep is outside (0, 1].
        InvalidValueError: epochs is no positive integer.

    Example:
        >>> import keras_filterprune as kfp
        >>> [round(fraction, 3) for fraction in kfp.callbacks.exponential(0.2, 4)]
        [0.4, 0.248, 0.21, 0.2]
    """
    _check(keep, epochs)
    decay = brentq(lambda k: (1 - math.exp(-k / 4)) / (1 - math.exp(-k)) - 0.75, 1e-3, 50)
    share = (np.exp(-decay * np.arange(1, epochs + 1) / epochs) - 1) / (math.exp(-decay) - 1)
    return [float(fraction) for fraction in 1 - (1 - keep) * share]


def _check(keep: Any, epochs: Any) -> None:
    check_fraction("keep", keep)
    check_integer("epochs", epochs)
