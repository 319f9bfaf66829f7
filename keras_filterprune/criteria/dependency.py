"""Dependency-aware importance (Zhao et al. 2020): a filter matters as much as it is scaled and as it is read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_filterprune.criteria.base import Criterion, read_filters
from keras_filterprune.criteria.magnitude import BNScale
from keras_filterprune.graph.types import Group, Member


class Dependency(Criterion):
    """|gamma| of the batch normalization behind a filter times the norm of the weights that read its channel.

    Zhao et al. 2020, "Dependency Aware Filter Pruning". Where gamma is scaled and what reads it scaled back, the
    network and this score are the same, and `BNScale` is not. Without batch normalization, the filter's own norm stands
    for gamma. Of coupled layers, and of several that read, squares are added. Meant for networks trained with a
    sparsity penalty on gamma, whose strength the paper controls as `PenaltySchedule` does.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.Dependency(), kfp.allocators.Global(0.0)).name
        'Dependency() + Global(alpha=0.0)'
    """

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        made = BNScale().members(group) or [member for member in group.members if member.role == "filter"]
        read = [member for member in group.members if member.role == "input"]
        return np.sqrt(_squares(made, weights) * _squares(read, weights))

    def refuses(self, group: Group) -> str | None:
        return (
            None if any(member.role == "input" for member in group.members) else "feeds no layer whose weights read it"
        )


def _squares(members: list[Member], weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Squared weights of every unit in some members, (n_units,)."""
    return sum(np.square(read_filters(member, weights)).sum(axis=1) for member in members)
