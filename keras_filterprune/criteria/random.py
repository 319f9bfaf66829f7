"""The baseline every other criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from keras_filterprune.checks import check_integer
from keras_filterprune.criteria.base import Criterion
from keras_filterprune.graph.types import Group


class Random(Criterion):
    """Independent uniform scores, reproducible by seed and group name: the baseline every other criterion has to beat.

    Args:
        seed: any non-negative integer (0); `prune_model(method="random", seed=...)` sets it.

    Raises:
        InvalidValueError: seed is negative, or no integer.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.Random(seed=3)
        Random(seed=3)
    """

    def __init__(self, seed: int = 0):
        self.seed = check_integer("seed", seed, least=0)

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return np.random.default_rng([self.seed, zlib.crc32(group.name.encode())]).random(group.size)
