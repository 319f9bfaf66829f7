"""Geometric median (He et al. 2019, "Filter Pruning via Geometric Median")."""

from __future__ import annotations

import numpy as np

from keras_filterprune.criteria.base import MemberCriterion

# Rows of the distance matrix held at a time: 1 024 x n float64, 64 MiB at n = 8 192.
_BLOCK = 1024


class FPGM(MemberCriterion):
    """Sum of distances to all filters of the layer, sum_i ||f_i - f_j||: the most central filters go first.

    Those next to the geometric median are what the others can replace (He et al. 2019, "Filter Pruning via Geometric
    Median").

    Args:
        aggregate: how the layers of a coupled group combine, see `MemberCriterion` ("mean").

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.FPGM()
        FPGM(aggregate='mean')
    """

    def score(self, filters: np.ndarray) -> np.ndarray:
        squares = np.einsum("ij,ij->i", filters, filters)
        total = np.empty(len(filters))
        for start in range(0, len(filters), _BLOCK):
            rows = slice(start, start + _BLOCK)
            # ||a - b||^2 = a.a + b.b - 2 a.b, clamped because rounding may leave it below zero.
            distance = squares[rows, None] + squares - 2 * filters[rows] @ filters.T
            total[rows] = np.sqrt(np.maximum(distance, 0)).sum(axis=1)
        return total
