"""What a criterion is: it ranks the units of a group."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from keras_filterprune.errors import UnknownNameError
from keras_filterprune.graph.types import ChannelGraph, Group, Member

_AGGREGATE = {
    "mean": lambda s: s.mean(axis=0),
    "sum": lambda s: s.sum(axis=0),
    "max": lambda s: s.max(axis=0),
    "prod": lambda s: s.prod(axis=0),
    "first": lambda s: s[0],
}


class Criterion(abc.ABC):
    """Decides which units of a group stay.

    Attributes:
        requires: what it needs besides weights, any of {"activations", "gradients", "labels"}.
        order_only: its scores are places in an order within a group, and say nothing of the group as a whole.
    """

    requires: frozenset[str] = frozenset()
    order_only = False

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        """This criterion with whatever it measures on calibration `data`; one that needs weights alone is itself."""
        return self

    @abc.abstractmethod
    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Score of every unit, float64 of shape (n_units,), higher = keep, comparable between groups."""

    def of_layers(
        self, group: Group, layers: Collection[str], weights: Mapping[tuple[str, str], np.ndarray]
    ) -> np.ndarray:
        """Scores of the filters of a group that these layers make, float64 of shape (n,), not normalised; none at all
        where they share them with other layers."""
        return self.scores(group, weights) if set(group.producers) <= set(layers) else np.zeros(0)

    def select(self, group: Group, n_keep: int, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Sorted indices of the `n_keep` units with the highest scores; of equal ones the first stay."""
        return np.sort(np.argsort(-self.scores(group, weights), kind="stable")[:n_keep])

    def redundant(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> int | None:
        """How many units the criterion itself calls redundant; None where it ranks, and leaves that to the budget."""
        return None

    def refuses(self, group: Group) -> str | None:
        """Why this criterion cannot rank a group, which then stays whole; None where it can."""
        return None


class MemberCriterion(Criterion):
    """Scores every member of a group on its own, divides by the member's mean, and aggregates over members.

    Args:
        aggregate: "mean" (default), "sum", "max", "prod" over the members, or "first" for the first layer alone.

    Attributes:
        normalised: whether a member's scores are divided by their mean, so that layers compare.
    """

    normalised = True

    def __init__(self, aggregate: str = "mean"):
        if aggregate not in _AGGREGATE:
            raise UnknownNameError(f"aggregate is one of {', '.join(_AGGREGATE)}. Received: aggregate={aggregate!r}.")
        self.aggregate = aggregate

    def __repr__(self) -> str:
        return f"{type(self).__name__}(aggregate={self.aggregate!r})"

    def members(self, group: Group) -> list[Member]:
        """The members that are scored: the kernels whose filters these units are."""
        return [m for m in group.members if m.role == "filter"]

    def filters(self, member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """What `score` is given of a member: its filters in float64, of shape (n, weights per unit)."""
        return filter_rows(member, weights)

    @abc.abstractmethod
    def score(self, filters: np.ndarray) -> np.ndarray:
        """Scores of shape (n,) of one member, from its `filters`."""

    def of_layers(
        self, group: Group, layers: Collection[str], weights: Mapping[tuple[str, str], np.ndarray]
    ) -> np.ndarray:
        own = [member for member in self.members(group) if member.layer in layers]
        return np.concatenate([np.zeros(0), *(self.score(self.filters(member, weights)) for member in own)])

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        raw = np.stack([self.score(self.filters(m, weights)) for m in self.members(group)])
        if not self.normalised:
            return _AGGREGATE[self.aggregate](raw)
        means = raw.mean(axis=1, keepdims=True)
        return _AGGREGATE[self.aggregate](np.divide(raw, means, out=np.zeros_like(raw), where=means > 0))


def filter_tensors(member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Weights of every unit of a member, of shape (n_units, filters per unit, taps, channels)."""
    array = np.moveaxis(weights[member.layer, member.weight], member.axis, 0)[member.positions]
    return array.reshape(*member.positions.shape, -1, array.shape[-1] if array.ndim > 2 else 1)


def filter_rows(member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Weights of every unit of a member as rows: float64 of shape (n_units, weights per unit)."""
    return filter_tensors(member, weights).reshape(len(member.positions), -1).astype(np.float64)
