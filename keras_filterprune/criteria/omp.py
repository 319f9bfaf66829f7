"""FP-OMP (Purohit et al. 2022) and LRF (Joo et al. 2021): keep the filters that best replace the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_filterprune.criteria.base import Criterion, filter_rows
from keras_filterprune.criteria.greedy import backward_order, forward_order
from keras_filterprune.errors import UnknownNameError
from keras_filterprune.graph.types import Group

_SELECTIONS = ("omp", "gain", "backward")


class FPOMP(Criterion):
    """Keep the filters whose linear combinations reproduce all filters of the layer best.

    Orthogonal matching pursuit with one support for all filters, min sum_j ||f_j - sum_{l in S} L_jl f_l||^2, solved
    by exact least squares. The orders are nested: one run serves every count. In a coupled group the layers' filters
    stand below each other, every layer with equal weight.

    Args:
        selection: "omp" (default, the paper: unit-norm filters, sum of absolute correlations); "gain" (largest drop of
            the squared error, norms kept); "backward" (eliminate the filter whose loss raises the error least:
            FP-Backward of the TMLR 2024 successor, and LRF before its adapters are trained).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.FPOMP(selection="backward")
        FPOMP(selection='backward')
    """

    def __init__(self, selection: str = "omp"):
        if selection not in _SELECTIONS:
            raise UnknownNameError(f"selection is one of {', '.join(_SELECTIONS)}. Received: selection={selection!r}.")
        self.selection = selection

    def __repr__(self) -> str:
        return f"{type(self).__name__}(selection={self.selection!r})"

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        """Position in the order as a fraction: the first selected has 1, the last 1 / n."""
        gram = _gram(group, weights, unit_norm=self.selection == "omp")
        if self.selection == "backward":
            order = backward_order([(gram, gram, np.arange(group.size)[:, None])])[0][::-1]
        else:
            order = forward_order(gram, self.selection)
        scores = np.empty(group.size)
        scores[order] = 1 - np.arange(group.size) / group.size
        return scores


class LRF(FPOMP):
    """Linearly replaceable filters: remove, one by one, the filter that the remaining ones replace best.

    Starting from untrained adapters the removal cost ||e_j|| * ||g_j|| of LRF is the FP-Backward score, so this is
    `FPOMP(selection="backward")` under its own name.
    """

    def __init__(self):
        super().__init__(selection="backward")

    def __repr__(self) -> str:
        return "LRF()"


def _gram(group: Group, weights: Mapping[tuple[str, str], np.ndarray], unit_norm: bool) -> np.ndarray:
    """Gram matrix (n_units, n_units) of the filters of a group, layers of equal total weight."""
    gram = np.zeros((group.size, group.size))
    for member in group.members:
        if member.role == "filter":
            rows = filter_rows(member, weights)
            own = rows @ rows.T
            gram += own / max(np.trace(own), np.finfo(float).tiny)
    if unit_norm:
        norms = np.sqrt(np.maximum(np.diag(gram), 0))
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        gram *= np.outer(scale, scale)
    return gram
