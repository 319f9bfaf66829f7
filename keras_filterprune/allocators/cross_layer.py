"""Widths from one ranking of all single weights (Lin et al. 2022, "Pruning Networks with Cross-Layer Ranking")."""

from __future__ import annotations

import numpy as np

from keras_filterprune.allocators.base import Allocation, Allocator, last_feasible, top_up
from keras_filterprune.checks import check_number


class CrossLayer(Allocator):
    """Every group loses the share of its weights that is among the lowest of the whole network, |w| / macs^alpha.

    Cross-layer ranking of Lin et al. 2022, "Pruning Networks with Cross-Layer Ranking & k-Reciprocal Nearest Filters":
    macs is what the weight's layer spends, one quantile of all weights is cut off, as low as the budget allows, and a
    group of C filters, a share s of whose weights lie below it, keeps floor(C (1 - s)). Which filters these are is the
    criterion's choice; of coupled layers all weights count. What rounding leaves of the budget goes to the groups that
    it cost most.

    Args:
        alpha: exponent of the layer's cost (0.5; the paper has 0.5 for VGG-16, 1 for MobileNetV2, 10 for ResNet-56).

    Raises:
        InvalidValueError: alpha is below 0.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L1(), kfp.allocators.CrossLayer(alpha=1.0)).allocator
        CrossLayer(alpha=1.0)
    """

    def __init__(self, alpha: float = 0.5):
        self.alpha = check_number("alpha", alpha, "the exponent of the cost", least=0)

    def allocate(self, problem: Allocation) -> np.ndarray:
        # Logarithms: with a high exponent, powers of costs leave the range of numbers.
        groups = [self._ranked(problem, number) for number in range(len(problem.sizes))]
        ranks = np.sort(np.concatenate([np.zeros(0), *groups]))

        def wanted(kept: int) -> np.ndarray:
            gone = len(ranks) - kept
            cut = ranks[gone] if gone < len(ranks) else np.inf
            shares = [np.searchsorted(own, cut) / max(len(own), 1) for own in groups]
            return problem.sizes * (1 - np.array(shares))

        def keep(kept: int) -> np.ndarray:
            # What is whole but for rounding is whole.
            return problem.legal(np.floor(wanted(kept) + 1e-9).astype(int))

        best = last_feasible(lambda kept: problem.feasible(keep(kept)), 0, len(ranks))
        found = keep(best)
        return top_up(problem, found, np.argsort(found - wanted(best), kind="stable"))

    def _ranked(self, problem: Allocation, number: int) -> np.ndarray:
        """log(|w| / macs^alpha) of all weights of a group, rising; none of one that stays whole."""
        if problem.floors[number] == problem.sizes[number]:
            return np.zeros(0)
        with np.errstate(divide="ignore"):
            found = [
                np.log(np.abs(weights)).ravel() - self.alpha * np.log(max(macs, 1))
                for weights, macs in problem.filters(number)
            ]
        return np.sort(np.concatenate([np.zeros(0), *found]))
