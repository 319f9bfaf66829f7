"""Collects channel ids, ties, bindings and pins while a model is traced, then resolves them into a `ChannelGraph`."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keras_filterprune.checks import check_integer, shown, wrong
from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.graph.types import Bind, ChannelGraph, Group, Member, ModelView, Pinned, Tensor, Term

T = TypeVar("T")
# What channels are that live inside of a layer and in no tensor, see `Tracer.fresh`.
HEADS = "heads"
_NO_FILTER = "is zero padding that no filter fills"


class Tracer:
    """What layer handlers report to while channel ids flow through the model.

    Every channel of every tensor has an id. Handlers make new ones (`fresh`), say which live and die together (`tie`),
    which stay (`pin`), and which axes of which weights they index (`bind`). Whatever weight they say nothing of pins
    all channels of the layer.

    Args:
        avoided: {reshape or weight: axes along which it is not to lay channels}, as far as it has others ({}).

    Attributes:
        regrets: {reshape or weight: the axis along which its channels came to where they cannot go on}.

    Example:
        >>> import keras_filterprune as kfp
        >>> tracer = kfp.handlers.Tracer()
        >>> tracer.fresh(3, ("conv", "filters"))
        array([0, 1, 2])
        >>> tracer.fresh(2, ("dense", "filters"))
        array([3, 4])
    """

    def __init__(self, avoided: Mapping[str, Collection[Hashable]] | None = None):
        self.regrets: dict[str, Hashable] = {}
        self._avoided = avoided or {}
        self._laid: dict[str, tuple[Hashable, np.ndarray, bool]] = {}
        self._hoped: dict[str, tuple[int, np.ndarray]] = {}
        self._fixed: set[int] = set()
        self._size = 0
        self._repeat = 1
        self._fresh: dict[tuple[str, str], np.ndarray] = {}
        self._ties: list[np.ndarray] = []
        self._pins: list[tuple[np.ndarray, str]] = []
        self._approximate: list[tuple[np.ndarray, str]] = []
        self._binds: dict[tuple[str, str, int], Bind] = {}
        self._terms: list[Term] = []
        self._known: defaultdict[str, set[str]] = defaultdict(set)

    def fresh(self, size: int, key: tuple[str, str] | None = None) -> np.ndarray:
        """New channel ids of shape (size,); the same `key` (layer, what) gives the same ids at every call."""
        if key in self._fresh:
            return self._fresh[key]
        check_integer("size", size, "a number of channels", least=0, error=UnsupportedLayerError)
        ids = np.arange(self._size, self._size + size)
        self._size += size
        if key is not None:
            self._fresh[key] = ids
        return ids

    def knows(self, ids: Any) -> bool:
        """Whether these are ids of channels, int of shape (channels,)."""
        right = isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"
        return right and (not len(ids) or (ids.min() >= 0 and ids.max() < self._size))

    def _check(self, *vectors: np.ndarray) -> None:
        for ids in vectors:
            if not self.knows(ids):
                raise UnsupportedLayerError(f"channels are named by an array of their ids. Received: {shown(ids)}.")

    def pinned(self, size: int, reason: str) -> np.ndarray:
        """New channel ids that never go away."""
        ids = self.fresh(size)
        self.pin(ids, reason)
        self._fixed.update(ids.tolist())
        return ids

    def fixed(self, ids: np.ndarray) -> bool:
        """Whether these ids, channels of an input of the model say, were made to stay."""
        return self._fixed.issuperset(ids.tolist())

    def tie(self, *vectors: np.ndarray) -> None:
        """Channels at the same position of these id vectors live and die together."""
        self._check(*vectors)
        first = vectors[0]
        if len({len(vector) for vector in vectors}) > 1:
            lengths = ", ".join(str(len(vector)) for vector in vectors)
            raise UnsupportedLayerError(f"channels are tied in id vectors of one length. Received: {lengths}.")
        self._ties.extend(np.stack([first, other]) for other in vectors[1:] if other is not first)

    def pin(self, ids: np.ndarray, reason: str, first: bool = False) -> None:
        """These channels stay, because of `reason` (a predicate: "feeds ..."); `first` puts it before others."""
        self._check(ids)
        if not isinstance(reason, str):
            raise wrong("reason", reason, 'why channels stay, as in "feeds ..."', UnsupportedLayerError)
        self._pins.insert(0 if first else len(self._pins), (ids, reason))

    def pin_tensors(self, tensors: Iterable[Tensor], reason: str) -> None:
        """All tracked channels of these tensors stay."""
        for tensor in tensors:
            if tensor.tracked:
                self.pin(tensor.ids, reason)

    def pin_layer(self, layer: str, reason: str) -> None:
        """All channels that index weights of a layer stay, those inside of it included."""
        for owner, weight, axis in list(self._binds):
            if owner == layer:
                self.pin(self._binds[owner, weight, axis].ids, reason)

    def lay(self, layer: str, axes: Sequence[T]) -> T:
        """The axis along which a reshape, or a weight, lays channels: of these, best first, the first not to avoid."""
        return next((axis for axis in axes if axis not in self._avoided.get(layer, ())), axes[0])

    def laid(self, layer: str, axis: Hashable, ids: np.ndarray, last: bool = False) -> None:
        """Channels lie along an axis and could lie along another; `last` ones are the last to be reconsidered."""
        if axis not in self._avoided.get(layer, ()):
            self._laid[layer] = axis, ids, last

    def reconsider(self, *vectors: np.ndarray) -> None:
        """Channels cannot go on from here: what laid those of one of these vectors is to try another axis.

        Where one of them will be laid otherwise already, it remains to be seen what comes here then.
        """
        regretted = [self._laid[layer][1] for layer in self.regrets if layer in self._laid]
        if any(len(ids) and np.isin(ids, laid).all() for ids in vectors for laid in regretted):
            return
        found = [
            (last, -number, layer)
            for number, (layer, (_, laid, last)) in enumerate(self._laid.items())
            if any(len(ids) and np.isin(ids, laid).all() for ids in vectors)
        ]
        if found:
            layer = min(found)[2]
            self.regrets[layer] = self._laid[layer][0]

    def hoped(self, layer: str, axis: int, ids: np.ndarray) -> None:
        """Channels lie along an axis so that some can go; where all of them stay, the layer is to try another axis."""
        if axis not in self._avoided.get(layer, ()):
            self._hoped[layer] = axis, ids

    def approximate(self, ids: np.ndarray, reason: str) -> None:
        """Removing these channels changes what the others compute, because of `reason`."""
        self._check(ids)
        self._approximate.append((ids, reason))

    def bind(self, layer: str, weight: str, axis: int, ids: np.ndarray, role: str = "channel") -> None:
        """Index axis `axis` (non-negative) of a weight by channel ids; a layer called again ties the two id vectors."""
        self._check(ids)
        self._known[layer].add(weight)
        earlier = self._binds.setdefault((layer, weight, axis), Bind(layer, weight, axis, role, ids))
        self.tie(earlier.ids, ids)

    def constant(self, layer: str, *weights: str) -> None:
        """These weights have no axis along channels."""
        self._known[layer].update(weights)

    def known_weights(self, layer: str) -> set[str]:
        """Weights of a layer that were bound or declared constant."""
        return self._known[layer]

    def spend(self, layer: str, coefficient: int, *axes: np.ndarray) -> None:
        """One call of `layer` costs `coefficient` times the widths of these id vectors, in multiply-accumulates."""
        self._check(*axes)
        check_integer("coefficient", coefficient, "a number of multiply-accumulates", 0, error=UnsupportedLayerError)
        self._terms.append(Term(layer, int(coefficient) * self._repeat, axes))

    def counted_layers(self) -> set[str]:
        """Layers that spend multiply-accumulates."""
        return {term.layer for term in self._terms}

    @contextlib.contextmanager
    def times(self, repeat: int):
        """Everything spent inside is spent `repeat` times (once per time step)."""
        self._repeat *= repeat
        yield
        self._repeat //= repeat

    def resolve(
        self,
        view: ModelView,
        tensors: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]],
        weights: dict[str, dict[str, tuple[int, ...]]],
        uncounted: tuple[str, ...],
    ) -> ChannelGraph:
        """Turn everything reported so far into a `ChannelGraph`."""
        unit_of_id = self._units()
        binds = tuple(self._binds.values())
        reasons, reason_of_unit = self._pin_reasons(unit_of_id, binds)
        for layer, (axis, ids) in self._hoped.items():
            if (reason_of_unit[unit_of_id[ids]] >= 0).all():
                self.regrets[layer] = axis
        groups = _groups(binds, unit_of_id, reason_of_unit < 0, self._approximate, self._heads(unit_of_id))
        graph = ChannelGraph(
            view=view,
            groups=groups,
            pinned=(),
            tensors=tuple(tensors),
            binds=binds,
            terms=tuple(self._terms),
            weights=weights,
            uncounted=uncounted,
            unit_of_id=unit_of_id,
        )
        pinned: Counter[tuple[str, str]] = Counter()
        for layer, ids in graph.filter_ids.items():
            numbers, counts = np.unique(reason_of_unit[unit_of_id[ids]], return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                if number >= 0:
                    pinned[layer, reasons[number]] += count
        return replace(graph, pinned=tuple(Pinned(layer, n, reason) for (layer, reason), n in pinned.items()))

    def _units(self) -> np.ndarray:
        """Unit number of every id: connected components of the ties, numbered by their first id."""
        pairs = np.concatenate([*self._ties, np.zeros((2, 0), int)], axis=1)
        ties = coo_array((np.ones(pairs.shape[1], np.int8), tuple(pairs)), shape=(self._size, self._size))
        _, labels = connected_components(ties, directed=False)
        _, first = np.unique(labels, return_index=True)
        return np.argsort(np.argsort(first))[labels]

    def _heads(self, unit_of_id: np.ndarray) -> np.ndarray:
        """Units that are heads of attention."""
        heads = [ids for (_, what), ids in self._fresh.items() if what == HEADS]
        return unit_of_id[np.concatenate([np.zeros(0, int), *heads])]

    def _pin_reasons(self, unit_of_id: np.ndarray, binds: tuple[Bind, ...]) -> tuple[list[str], np.ndarray]:
        """Reasons, and per unit the number of the first one that pins it (-1: prunable)."""
        reason_of_unit = np.full(unit_of_id.max(initial=-1) + 1, -1)
        has_filter = np.zeros(len(reason_of_unit), bool)
        for bind in binds:
            if bind.role == "filter":
                has_filter[unit_of_id[bind.ids]] = True
        reasons = [_NO_FILTER, *(reason for _, reason in self._pins)]
        reason_of_unit[~has_filter] = 0
        for number in range(len(self._pins), 0, -1):
            reason_of_unit[unit_of_id[self._pins[number - 1][0]]] = number
        return reasons, reason_of_unit


def _groups(
    binds: tuple[Bind, ...],
    unit_of_id: np.ndarray,
    prunable: np.ndarray,
    approximate: list[tuple[np.ndarray, str]],
    heads: np.ndarray,
) -> tuple[Group, ...]:
    """Prunable units that live in the same weight axes, equally often, form a group."""
    # A unit's signature is the sum of one random number per position it holds: equal sums, equal memberships.
    numbers = np.random.default_rng(0).integers(1, 2**63, len(binds), dtype=np.uint64)
    signature = np.zeros(len(prunable), np.uint64)
    for number, bind in zip(numbers, binds, strict=True):
        np.add.at(signature, unit_of_id[bind.ids], number)
    units = np.flatnonzero(prunable)
    _, first, inverse = np.unique(signature[units], return_index=True, return_inverse=True)
    group_of_unit = np.full(len(prunable), -1)
    group_of_unit[units] = np.argsort(np.argsort(first))[inverse]
    sizes = np.bincount(group_of_unit[units], minlength=len(first))
    members: list[list[Member]] = [[] for _ in sizes]
    for bind in binds:
        unit = unit_of_id[bind.ids]
        group = group_of_unit[unit]
        order = np.lexsort((unit, group))
        order = order[group[order] >= 0]
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        for positions in np.split(order, starts[1:]) if len(starts) else ():
            number = group[positions[0]]
            positions = positions.reshape(sizes[number], -1)
            members[number].append(Member(bind.layer, bind.weight, bind.axis, bind.role, positions))
    reasons: list[dict[str, None]] = [{} for _ in sizes]
    for ids, reason in approximate:
        for number in np.unique(group_of_unit[unit_of_id[ids]]):
            if number >= 0:
                reasons[number][reason] = None
    of_heads = np.isin(np.arange(len(sizes)), group_of_unit[heads])
    names = _names(members, of_heads)
    own = np.split(units[np.argsort(group_of_unit[units], kind="stable")], np.cumsum(sizes)[:-1])
    return tuple(
        Group(names[g], own[g], tuple(members[g]), tuple(reasons[g]), bool(of_heads[g])) for g in range(len(sizes))
    )


def _names(members: list[list[Member]], heads: np.ndarray) -> list[str]:
    """Each group is named after the layer that makes it, heads with "/heads" behind it.

    A layer that is split over several groups numbers them from 1.
    """
    makers = [next(m.layer for m in group if m.role == "filter") for group in members]
    owners = [f"{maker}/{HEADS}" if inside else maker for maker, inside in zip(makers, heads, strict=True)]
    total, seen = Counter(owners), Counter[str]()
    names = []
    for owner in owners:
        seen[owner] += 1
        names.append(owner if total[owner] == 1 else f"{owner}#{seen[owner]}")
    return names
