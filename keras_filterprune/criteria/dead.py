"""Units that nothing reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from keras_filterprune.criteria.base import Criterion, read_filters
from keras_filterprune.graph.types import Group


class Dead(Criterion):
    """Sum of absolute weights with which other layers read a unit; units of score 0 are redundant.

    With `RedundancyBudget` it removes what training has masked or driven to zero, and changes no output.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.Dead()
        Dead()
    """

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        readers = [m for m in group.members if m.role == "input"]
        return sum((np.abs(read_filters(m, weights)).sum(axis=1) for m in readers), np.zeros(group.size))

    def redundant(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> int:
        return int((self.scores(group, weights) == 0).sum())

    def refuses(self, group: Group) -> str | None:
        return None if any(m.role == "input" for m in group.members) else "feeds no layer whose weights read it"


def warn_of_none() -> None:
    """Warn of a model that is finished without any unit that nothing reads."""
    warnings.warn(
        "no filter is dead, and the model stays whole. Files that are saved while SoftPruning trains hold filters that "
        "are small: give its method and a fraction, see SoftPruning.",
        stacklevel=4,
    )
