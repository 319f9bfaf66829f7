"""FP-OMP (Purohit et al. 2022) and LRF (Joo et al. 2021): keep the filters that best replace the others."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_filterprune.checks import check_option
from keras_filterprune.criteria.base import Criterion, read_filters
from keras_filterprune.criteria.greedy import backward_order, forward_order, replaceable_order
from keras_filterprune.graph.types import ChannelGraph, Group

_SELECTIONS = ("omp", "gain", "backward")

# Gram entries selected from at once: larger stacks leave the cache and gain nothing.
_STACK = 2**18
# Units whose Gram matrix, 512 MiB in float64, is factorised.
_WIDEST = 8192


class FPOMP(Criterion):
    """Keep the filters whose linear combinations reproduce all filters of the layer best (Purohit et al. 2022).

    Orthogonal matching pursuit with one support for all filters, min sum_j ||f_j - sum_{l in S} L_jl f_l||^2, solved
    by exact least squares. The orders are nested: one run serves every count. In a coupled group the layers' filters
    stand below each other, every layer with equal weight.

    Where one layer hands its channels to one other without bias or normalization between, as the 1x1 convolutions do
    that the papers put before and after a convolution, a channel is a filter of the first layer as much as an input
    slice of the second. The layer with the larger window is then reproduced: a convolution's own filters before
    the 1x1 convolution after it (the papers' output side), its input slices after the 1x1 convolution before it (their
    input side).

    Args:
        selection: "omp" (default, the paper: unit-norm filters, sum of absolute correlations); "gain" (largest drop of
            the squared error, norms kept); "backward" (eliminate the filter whose loss raises the error least:
            FP-Backward of the successor of 2024).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.FPOMP(selection="backward")
        FPOMP(selection='backward')
    """

    order_only = True

    def __init__(self, selection: str = "omp"):
        self.selection = check_option("selection", selection, _SELECTIONS)
        self._scores: dict[str, np.ndarray] = {}

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        """This criterion with the scores of the groups that gain from being selected from together, by size."""
        if self.selection == "backward":
            return self
        observed = copy.copy(self)
        observed._scores = {}
        for size in sorted({group.size for group in graph.groups if not self.refuses(group)}):
            alike = [group for group in graph.groups if group.size == size]
            together = _STACK // size**2
            for start in range(0, len(alike), together) if together > 1 else ():
                stack = alike[start : start + together]
                names = [group.name for group in stack]
                observed._scores |= zip(names, self._ranked(stack, weights), strict=True)
        return observed

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Position in the order as a fraction: the first selected has 1, the last 1 / n."""
        if group.name in self._scores:
            return self._scores[group.name]
        return self._ranked([group], weights)[0]

    def refuses(self, group: Group) -> str | None:
        if group.size <= _WIDEST:
            return None
        return (
            f"has {group.size:,} filters, and a Gram matrix of {8 * group.size**2 / 2**30:.1f} GiB: more than "
            f"{_WIDEST:,} are ranked by methods that look at each filter alone, such as l2"
        )

    def _ranked(self, groups: Sequence[Group], weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Scores (groups, n_units) of groups of equal size."""
        orders = self._orders(groups, weights)
        scores = np.empty(orders.shape)
        np.put_along_axis(scores, orders, 1 - np.arange(groups[0].size) / groups[0].size, axis=1)
        return scores

    def _orders(self, groups: Sequence[Group], weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Units (groups, n_units) of groups of equal size, the first to stay first."""
        grams = np.stack([_gram(group, weights) for group in groups])
        if self.selection == "backward":
            return np.stack([backward_order([(g, np.eye(len(g)), np.arange(len(g))[:, None])])[0][::-1] for g in grams])
        return forward_order(grams, self.selection)


class LRF(FPOMP):
    """Linearly replaceable filters (Joo et al. 2021): the one that the remaining ones replace best goes, one by one.

    The filter with the least ||e_j|| ||g_j|| goes first: e_j is what the others cannot replace of it, and g_j are the
    weights that read its channel, which pass on to the others what they replace. That needs one layer that reads the
    channels of one other without bias or normalization between; the filters are then those of the layer with the larger
    window, as in `FPOMP`. Everywhere else g_j is unknown, and the order is that of untrained 1x1
    convolutions, `FPOMP(selection="backward")`.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.LRF()
        LRF()
    """

    def __init__(self):
        super().__init__(selection="backward")

    def __repr__(self) -> str:
        return "LRF()"

    def _orders(self, groups: Sequence[Group], weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        orders = []
        for group in groups:
            sides = _sides(group, weights)
            if sides is None:
                orders.append(super()._orders([group], weights)[0])
            else:
                filters, downstream = sides
                orders.append(replaceable_order(filters @ filters.T, downstream)[0][::-1])
        return np.stack(orders)


def _sides(group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """What makes the channels of a linear group and what reads them, (n_units, weights per unit) each.

    The one with the larger window comes first. None where there are several of either, or a bias or a
    normalization between them.
    """
    if sorted(member.role for member in group.members) != ["filter", "input"]:
        return None
    made, read = (next(m for m in group.members if m.role == role) for role in ("filter", "input"))
    windows = [math.prod(weights[m.layer, m.weight].shape[:-2]) for m in (made, read)]
    first, second = (made, read) if windows[0] >= windows[1] else (read, made)
    return read_filters(first, weights), read_filters(second, weights)


def _gram(group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Gram matrix (n_units, n_units) of the filters of a group, layers of equal total weight."""
    sides = _sides(group, weights)
    stacked = [read_filters(m, weights) for m in group.members if m.role == "filter"] if sides is None else sides[:1]
    gram = np.zeros((group.size, group.size))
    for rows in stacked:
        own = rows @ rows.T
        gram += own / max(np.trace(own), np.finfo(float).tiny)
    return gram
