"""Widths of tensors as affine functions of how many units each group keeps."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from keras_filterprune.graph.types import ChannelGraph, Tensor


class Widths:
    """Collects widths, each of which gets a number.

    Args:
        graph: the channel graph they belong to.
    """

    def __init__(self, graph: ChannelGraph):
        self._sizes = graph.sizes
        self._group_of_id = graph.group_of_id
        self._numbers: dict[int, int] = {}
        # Id vectors are known by their address: they have to stay where they are.
        self._known: list[np.ndarray | None] = []
        self._fixed: list[int] = []
        # Groups, and how many channels of each of their units.
        self._slopes: list[tuple[np.ndarray, np.ndarray]] = []

    def of_ids(self, ids: np.ndarray) -> int:
        """Number of the width of an id vector; passed-through vectors are the same array and share it."""
        if id(ids) not in self._numbers:
            group = self._group_of_id[ids]
            groups, counts = np.unique(group[group >= 0], return_counts=True)
            self._numbers[id(ids)] = self._add(int((group < 0).sum()), groups, counts // self._sizes[groups])
            self._known.append(ids)
        return self._numbers[id(ids)]

    def number(self, tensor: Tensor) -> int:
        """Number of the width of a tensor's last axis."""
        if tensor.tracked and tensor.axis == len(tensor.shape) - 1:
            return self.of_ids(tensor.ids)
        return self.constant(tensor.last)

    def constant(self, width: int) -> int:
        """Number of a width that never changes."""
        return self._add(width, np.zeros(0, int), np.zeros(0, int))

    def affine(self) -> tuple[np.ndarray, csr_array]:
        """Fixed parts, int64 of shape (n_widths,), and channels per unit of each group, sparse (n_widths, n_groups)."""
        groups, counts = (np.concatenate([np.zeros(0, int), *(slope[n] for slope in self._slopes)]) for n in (0, 1))
        ends = np.cumsum([0, *(len(row) for row, _ in self._slopes)])
        shape = len(self._slopes), len(self._sizes)
        return np.array(self._fixed, int), csr_array((counts, groups, ends), shape=shape)

    def at(self, keep: np.ndarray) -> list[int]:
        """All widths at the kept counts `keep`, int64 of shape (n_groups,)."""
        fixed, slope = self.affine()
        return (fixed + slope @ keep).tolist()

    def _add(self, fixed: int, groups: np.ndarray, counts: np.ndarray) -> int:
        self._fixed.append(fixed)
        self._slopes.append((groups, counts))
        return len(self._fixed) - 1
