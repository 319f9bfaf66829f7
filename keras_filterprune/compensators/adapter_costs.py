"""What a model with adapters costs once those that cost more than they save are multiplied into their convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from keras_filterprune.compensators.adapters import Adapted, adapted_convolutions
from keras_filterprune.cost import Budget, Cost, CostModel
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.handlers.base import volume

# Whether (before, after) are multiplied into the kernel; of equal costs the first is taken.
_CHOICES = ((True, True), (True, False), (False, True), (False, False))


def counts_params(budget: str) -> bool:
    """Whether a budget, as plans name it, counts parameters: then adapters are to save these, else multiplications."""
    return budget.startswith("ParamsBudget")


class Convolutions:
    """Convolutions with adapters: which of these cost more than they save, at some widths between them.

    Args:
        adapted: the convolutions.
        params: count parameters, else multiply-accumulates.

    Attributes:
        narrow: channels that each reads, and that each makes: two int64 arrays of shape (convolutions,).
        wide: the same outside the adapters.
    """

    def __init__(self, adapted: Sequence[Adapted], params: bool):
        kernels = [found.core.op.kernel.shape for found in adapted]
        self.narrow = tuple(np.array([kernel[axis] for kernel in kernels], int) for axis in (-2, -1))
        self.wide = (
            np.array([(found.before or found.core).op.kernel.shape[-2] for found in adapted], int),
            np.array([(found.after or found.core).op.kernel.shape[-1] for found in adapted], int),
        )
        taps = np.array([math.prod(kernel[:-2]) for kernel in kernels], int)
        shapes = [(found.core.input_shapes[0], found.core.output_shapes[0]) for found in adapted]
        self._inputs, self._outputs = (
            np.array([1 if params else volume(pair[n][1:-1]) for pair in shapes], int) for n in (0, 1)
        )
        self._window = self._outputs * taps

    def merged(self, narrow_in: np.ndarray, narrow_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the adapters (before, behind) are cheaper as part of the kernel; also True where there are none.

        Args:
            narrow_in, narrow_out: channels between them, int64 of shape (..., convolutions).
        """
        wide_in, wide_out = self.wide
        before, after = self._inputs * wide_in * narrow_in, self._outputs * narrow_out * wide_out
        costs = [
            self._window * (wide_in if into else narrow_in) * (wide_out if onto else narrow_out)
            + (0 if into else before)
            + (0 if onto else after)
            for into, onto in _CHOICES
        ]
        best = np.argmin(np.stack(np.broadcast_arrays(*costs)), axis=0)
        into, onto = np.array(_CHOICES).T
        return into[best], onto[best]


class AdaptedCost(Cost):
    """A budget's cost of a model with adapters, those that cost more than they save being merged.

    Args:
        budget: what counts.
        graph: of a model with adapters.
    """

    def __init__(self, budget: Budget, graph: ChannelGraph):
        adapted = list(adapted_convolutions(graph.view).values())
        self._cost = budget.cost(CostModel(_with_own_biases(graph, adapted)))
        self.unknown, self._sizes = self._cost.unknown, graph.sizes
        self._convolutions = Convolutions(adapted, counts_params(repr(budget)))
        number_of = {layer: number for number, group in enumerate(graph.groups) for layer in group.producers}
        befores = [(place, found.before, found.before) for place, found in enumerate(adapted) if found.before]
        afters = [(place, found.core, found.after) for place, found in enumerate(adapted) if found.after]
        # (places of the convolutions, groups between them and their adapters, names of these) before and behind; what
        # is pinned there is in no group.
        self._before, self._after = (
            (
                np.array([place for place, _, _ in side], int),
                np.array([number_of[maker.path] for _, maker, _ in side], int),
                np.array([adapter.path for _, _, adapter in side], object),
            )
            for side in ([entry for entry in found if entry[1].path in number_of] for found in (befores, afters))
        )

    def __call__(self, keep: np.ndarray) -> int:
        merged, gone = self._merged(keep)
        spent = self._cost.by_layer(merged) if gone else {}
        return self._cost(merged) - sum(spent.get(layer, 0) for layer in gone)

    def by_layer(self, keep: np.ndarray) -> dict[str, int]:
        merged, gone = self._merged(keep)
        return self._cost.by_layer(merged) | dict.fromkeys(gone, 0)

    def worthwhile(self, group: int, counts: list[int]) -> list[int]:
        keep = np.tile(self._sizes, (len(counts), 1))
        keep[:, group] = counts
        merged = np.zeros(len(counts), bool)
        for (places, groups, _), hit in zip((self._before, self._after), self._choices(keep), strict=True):
            merged |= hit[:, places[groups == group]].any(axis=1)
        kept = [count for count, lost in zip(counts, merged, strict=True) if not lost or count == self._sizes[group]]
        return self._cost.worthwhile(group, kept)

    def raised(self, keep: np.ndarray) -> np.ndarray:
        # What lies between a kernel and an adapter that is merged costs nothing.
        keep = keep.copy()
        for (places, groups, _), hit in zip((self._before, self._after), self._choices(keep), strict=True):
            free = groups[hit[places]]
            keep[free] = self._sizes[free]
        return keep

    def _choices(self, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the adapters (before, behind) every convolution are merged, at counts of shape (..., groups)."""
        narrow = []
        for (places, groups, _), own in zip((self._before, self._after), self._convolutions.narrow, strict=True):
            counts = np.broadcast_to(own, (*keep.shape[:-1], len(own))).copy()
            counts[..., places] = keep[..., groups]
            narrow.append(counts)
        return self._convolutions.merged(*narrow)

    def _merged(self, keep: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Counts at which every kernel is what it is when adapters are merged, and the names of these."""
        keep, gone = keep.copy(), []
        sides = zip((self._before, self._after), self._choices(keep), self._convolutions.wide, strict=True)
        for (places, groups, adapters), hit, wide in sides:
            keep[groups[hit[places]]] = wide[places][hit[places]]
            gone += adapters[hit[places]].tolist()
        return keep, gone


def _with_own_biases(graph: ChannelGraph, adapted: Sequence[Adapted]) -> ChannelGraph:
    """The graph in which a convolution has the bias of the adapter behind it: it stays when that is merged."""
    core_of = {found.after.path: found.core.path for found in adapted if found.after}
    weights = {layer: dict(shapes) for layer, shapes in graph.weights.items()}
    for after, core in core_of.items():
        if "bias" in weights[after]:
            weights[core]["bias"] = weights[after].pop("bias")
    binds = tuple(
        replace(bind, layer=core_of[bind.layer]) if bind.layer in core_of and bind.weight == "bias" else bind
        for bind in graph.binds
    )
    return replace(graph, weights=weights, binds=binds)
