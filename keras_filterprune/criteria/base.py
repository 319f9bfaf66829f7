"""What a criterion is: it ranks the units of a group."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from keras_filterprune.checks import check_option, check_returned
from keras_filterprune.graph.types import ChannelGraph, Group, Member
from keras_filterprune.parts import Part, returns
from keras_filterprune.probe.data import Samples

_AGGREGATE = {
    "mean": lambda s: s.mean(axis=0),
    "sum": lambda s: s.sum(axis=0),
    "max": lambda s: s.max(axis=0),
    "prod": lambda s: s.prod(axis=0),
    "first": lambda s: s[0],
}


def check_observed(criterion: Any, found: Any, *_: Any, **__: Any) -> None:
    """A criterion that has looked at a network is a criterion."""
    check_returned(isinstance(found, Criterion), f"{criterion!r}.observe", "return a copy that knows", found)


def check_scores(criterion: Any, scores: Any, group: Group, *_: Any, **__: Any) -> None:
    """Scores are numbers of shape (n_units,)."""
    right = isinstance(scores, np.ndarray) and scores.shape == (group.size,) and scores.dtype.kind in "iuf"
    expected = f"score group '{group.name}' with an array of {group.size} numbers, one per unit"
    check_returned(right and not np.isnan(scores).any(), repr(criterion), expected, scores)


def check_selected(criterion: Any, chosen: Any, group: Group, n_keep: int, *_: Any, **__: Any) -> None:
    """A choice is the indices of units, integers of shape (n_keep,), rising."""
    right = isinstance(chosen, np.ndarray) and chosen.shape == (n_keep,) and chosen.dtype.kind in "iu"
    expected = f"select {n_keep} units of group '{group.name}' by their indices below {group.size}, rising"
    rising = right and (np.diff(chosen, prepend=-1, append=group.size) > 0).all()
    check_returned(rising, repr(criterion), expected, chosen)


def check_redundant(criterion: Any, count: Any, group: Group, *_: Any, **__: Any) -> None:
    """A number of redundant units is one."""
    right = count is None or (isinstance(count, Integral) and 0 <= int(count) <= group.size)
    check_returned(right, f"{criterion!r}.redundant", f"return a number from 0 to {group.size}, or None", count)


def check_members(criterion: Any, found: Any, group: Group) -> None:
    """What is scored of a group are members."""
    right = isinstance(found, list | tuple) and all(isinstance(m, Member) for m in found)
    check_returned(right, f"{criterion!r}.members", f"return some of group '{group.name}'.members", found)


def check_filters(criterion: Any, found: Any, member: Member, *_: Any, **__: Any) -> None:
    """Filters are rows, one per unit."""
    right = isinstance(found, np.ndarray) and found.ndim > 1 and len(found) == len(member.positions)
    expected = f"return an array of {len(member.positions)} rows, the filters of '{member.layer}'"
    check_returned(right, f"{criterion!r}.filters", expected, found)


def check_reason(criterion: Any, why: Any, *_: Any, **__: Any) -> None:
    """Why something is refused is text."""
    right = why is None or isinstance(why, str)
    check_returned(right, f"{criterion!r}.refuses", "return why it cannot rank a group, in words, or None", why)


class Criterion(Part, abc.ABC):
    """Decides which units of a group stay.

    A subclass implements `scores`; `MemberCriterion` and `ActivationCriterion` ask for less. The others of the methods
    have defaults that fit criteria which rank by scores and read weights alone.

    Attributes:
        requires: what it needs besides weights, any of {"activations", "gradients", "labels"} (none). Data is asked
            for, and `observe` called, before anything is ranked.
        order_only: its scores are places in an order within a group, and say nothing of the group as a whole (False).

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> class Peak(kfp.criteria.Criterion):
        ...     def scores(self, group, weights):
        ...         filters = [m for m in group.members if m.role == "filter"]
        ...         return sum(np.abs(kfp.criteria.read_filters(m, weights)).max(axis=1) for m in filters)
        ...
        >>> conv = keras.layers.Conv2D(8, 3, name="conv")
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), conv, keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> kfp.prune_model(model, Peak(), 0.5).get_layer("conv").filters
        4
    """

    requires: frozenset[str] = frozenset()
    order_only = False

    @returns(check_observed)
    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Samples | None, progress: bool
    ) -> Criterion:
        """This criterion with whatever it has measured; one that needs weights alone is itself.

        Args:
            graph: the channel graph of the model; `graph.view.calls` are its layers, live and in order.
            weights: {(layer, weight): array}, to read.
            data: `Samples` of the calibration data, arrays by `data.read(graph.view)`; None without.
            progress: show progress bars.

        Returns:
            A copy that knows; the criterion itself stays as it was configured.
        """
        return self

    @abc.abstractmethod
    @returns(check_scores)
    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Score of every unit of a group.

        Args:
            group: what is ranked: `group.size` units, which live in `group.members`.
            weights: {(layer, weight): array}, to read.

        Returns:
            float64 of shape (n_units,); the higher, the rather a unit stays. Comparable between groups.
        """

    def of_layers(
        self, group: Group, layers: Collection[str], weights: Mapping[tuple[str, str], np.ndarray]
    ) -> np.ndarray:
        """Scores of the filters of a group that these layers make, float64 of shape (n,), not normalised; none at all
        where they share them with other layers."""
        return self.scores(group, weights) if set(group.producers) <= set(layers) else np.zeros(0)

    @returns(check_selected)
    def select(self, group: Group, n_keep: int, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Sorted indices of the `n_keep` units with the highest scores; of equal ones the first stay."""
        scores = self.scores(group, weights).astype(np.float64)
        return np.sort(np.argsort(-scores, kind="stable")[:n_keep])

    @returns(check_redundant)
    def redundant(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> int | None:
        """How many units the criterion itself calls redundant; None where it ranks, and leaves that to the budget."""
        return None

    @property
    def ranks_only(self) -> bool:
        """Whether the number of units that go is left to the budget: `redundant` is not the criterion's own."""
        return type(self).redundant is Criterion.redundant

    @returns(check_reason)
    def refuses(self, group: Group) -> str | None:
        """Why this criterion cannot rank a group, which then stays whole; None where it can."""
        return None


class MemberCriterion(Criterion):
    """Scores every member of a group on its own, divides by the member's mean, and aggregates over members.

    A subclass implements `score`; `members` and `filters` where it looks at something else than kernels. Settings of
    its own are attributes, set in its `__init__` or as fields of a frozen dataclass.

    Args:
        aggregate: "mean" (default), "sum", "max", "prod" over the members, or "first" for the first layer alone.

    Attributes:
        normalised: whether a member's scores are divided by their mean, so that layers compare (True).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Spread(kfp.criteria.MemberCriterion):
        ...     def score(self, filters):
        ...         return filters.std(axis=1)
        ...
        >>> conv = keras.layers.Conv2D(8, 3, name="conv")
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), conv, keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> kfp.prune_model(model, Spread(aggregate="max"), 0.5).get_layer("conv").filters
        4
    """

    normalised = True
    # For subclasses that have an `__init__` of their own.
    aggregate = "mean"

    def __init__(self, aggregate: str = "mean"):
        self.aggregate = check_option("aggregate", aggregate, _AGGREGATE)

    @returns(check_members)
    def members(self, group: Group) -> list[Member]:
        """The members that are scored: kernels whose filters these units are, and those that read heads."""
        roles = ("filter", "input") if group.heads else ("filter",)
        return [m for m in group.members if m.role in roles]

    @returns(check_filters)
    def filters(self, member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """What `score` is given of a member: its filters in float64, of shape (n, weights per unit)."""
        return read_filters(member, weights)

    @abc.abstractmethod
    def score(self, filters: np.ndarray) -> np.ndarray:
        """Scores of one member.

        Args:
            filters: float64 of shape (n_units, weights per unit), from `filters`.

        Returns:
            Numbers of shape (n_units,), the higher, the rather a unit stays; none negative where they are `normalised`.
        """

    def of_layers(
        self, group: Group, layers: Collection[str], weights: Mapping[tuple[str, str], np.ndarray]
    ) -> np.ndarray:
        own = [member for member in self.members(group) if member.layer in layers]
        return np.concatenate([np.zeros(0), *(self.score(self.filters(member, weights)) for member in own)])

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        members = self.members(group)
        check_returned(bool(members), f"{self!r}.members", f"return some of group '{group.name}'.members", members)
        raw = np.stack([self._raw(group, member, weights) for member in members])
        if not self.normalised:
            return _AGGREGATE[self.aggregate](raw)
        means = raw.mean(axis=1, keepdims=True)
        return _AGGREGATE[self.aggregate](np.divide(raw, means, out=np.zeros_like(raw), where=means > 0))

    def _raw(self, group: Group, member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Scores of one member, float64 of shape (n_units,)."""
        found = self.score(self.filters(member, weights))
        check_scores(self, found, group)
        expected = f"score group '{group.name}' with numbers of which none is negative: add the same to all"
        check_returned(not self.normalised or found.min() >= 0, repr(self), expected, found)
        return found.astype(np.float64)


def filter_tensors(member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Weights of every unit of a member, of shape (n_units, filters per unit, taps, channels)."""
    array = np.moveaxis(weights[member.layer, member.weight], member.axis, 0)[member.positions]
    return array.reshape(*member.positions.shape, -1, array.shape[-1] if array.ndim > 2 else 1)


def read_filters(member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Read the weights of every unit of a member.

    Args:
        member: one of `group.members`.
        weights: {(layer, weight): array}, as `Criterion.scores` is given them.

    Returns:
        float64 of shape (n_units, weights per unit).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 1)]
        >>> graph = kfp.analyze(keras.Sequential(layers))
        >>> member = graph.groups[0].members[0]
        >>> kfp.criteria.read_filters(member, kfp.criteria.Weights(graph.view)).shape
        (4, 27)
    """
    array = np.moveaxis(weights[member.layer, member.weight], member.axis, -1)
    # They stay as they lie in memory: to move them about takes longer than all that is computed of them.
    filters = array.reshape(-1, array.shape[-1]).T
    if not np.array_equal(member.positions, np.arange(len(filters))[:, None]):
        filters = filters[member.positions].reshape(len(member.positions), -1)
    return filters.astype(np.float64)
