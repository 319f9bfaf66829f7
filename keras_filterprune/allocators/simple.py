"""Uniform and global allocation."""

from __future__ import annotations

import numpy as np

from keras_filterprune.allocators.base import Allocation, Allocator, last_feasible, top_up
from keras_filterprune.checks import check_number

_RESOLUTION = 2**20


class Uniform(Allocator):
    """The same fraction of every group, as large as the budget allows.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(8, 3, name="a"), keras.layers.Conv2D(32, 3, name="b"), keras.layers.Flatten()]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(2)])
        >>> small = kfp.prune_model(model, kfp.Method(kfp.criteria.L2(), kfp.allocators.Uniform()), 0.5)
        >>> [small.get_layer(name).filters for name in ("a", "b")]
        [5, 23]
    """

    def allocate(self, problem: Allocation) -> np.ndarray:
        def keep(step: int) -> np.ndarray:
            # Half rounds up: Python's own rounding would send 0.5 * 5 and 0.5 * 7 different ways.
            return problem.legal(np.floor(step / _RESOLUTION * problem.sizes + 0.5).astype(int))

        best = last_feasible(lambda step: problem.feasible(keep(step)), 0, _RESOLUTION)
        kept = keep(best)
        missing = best / _RESOLUTION * problem.sizes - kept
        return top_up(problem, kept, np.argsort(-missing, kind="stable"))


class Global(Allocator):
    """One ranking over all groups: the units with the least score per cost go first, wherever they are.

    Args:
        alpha: units are ranked by score / cost^alpha (0.5); 0 ranks by score alone, 1 by score per multiply-accumulate.

    Raises:
        InvalidValueError: alpha is below 0.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.BNScale(), kfp.allocators.Global(alpha=0.0)).allocator
        Global(alpha=0.0)
    """

    def __init__(self, alpha: float = 0.5):
        self.alpha = check_number("alpha", alpha, "the exponent of the cost", least=0)

    def allocate(self, problem: Allocation) -> np.ndarray:
        unit_cost = np.maximum(problem.cost.gradient(problem.sizes), 1.0)
        owner = np.repeat(np.arange(len(problem.sizes)), problem.sizes)
        ranks = []
        for group in range(len(problem.sizes)):
            if problem.floors[group] == problem.sizes[group]:
                # Such a group stays whole, perhaps because its units have no scores.
                ranks.append(np.full(problem.sizes[group], np.inf))
                continue
            score = problem.scores(group) / unit_cost[group] ** self.alpha
            # The best units of a group are its floor and never go.
            score[np.argsort(-score, kind="stable")[: problem.floors[group]]] = np.inf
            ranks.append(score)
        joined = np.concatenate([*ranks, np.zeros(0)])
        order = np.argsort(joined, kind="stable")
        order = order[np.isfinite(joined[order])]

        def keep(restored: int) -> np.ndarray:
            gone = owner[order[: len(order) - restored]]
            return problem.legal(problem.sizes - np.bincount(gone, minlength=len(problem.sizes)))

        best = last_feasible(lambda restored: problem.feasible(keep(restored)), 0, len(order))
        removed = owner[order[: len(order) - best]]
        return top_up(problem, keep(best), list(dict.fromkeys(removed[::-1])))
