"""LASSO channel selection (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_filterprune.checks import check_integer
from keras_filterprune.criteria.base import Criterion
from keras_filterprune.criteria.reconstruction import Quadratic
from keras_filterprune.graph.types import ChannelGraph, Group
from keras_filterprune.progress import track

# Penalties of a path, each so much smaller than the one before, down to this share of the largest.
_FALL, _LEAST = 0.9, 1e-4
_HALVINGS = 20
_SWEEPS = 200
# What a gradient may exceed the penalty by, and a squared contribution is nothing below, relative to the mean one.
_ROUNDING, _NOTHING = 1e-9, 1e-12

# Penalties (steps,), falling, and the solution at each, (steps, n_units).
Path = tuple[np.ndarray, np.ndarray]


class Lasso(Quadratic):
    """The channels that a LASSO over the consumers' inputs keeps, min_b ||Y - sum_i b_i Z_i||^2 / 2 + l ||b||_1.

    He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks": Z_i is what channel i adds to the
    consumers' outputs, Y their sum, means taken off. The penalty l is raised until as many channels are left as may
    stay, never more; where the next channel comes with others, those whose gradients are largest fill up. Solved by
    coordinate descent on the Gram matrix of the Z_i alone. `LeastSquares` is the paper's second step. The paper goes
    layer by layer and takes the inputs of the layers pruned so far; here all are the original's. Scores are the largest
    penalties that a channel withstands.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.Lasso(), compensator=kfp.compensators.LeastSquares()).name
        'Lasso() + Uniform()'
    """

    def __init__(self):
        super().__init__()
        self._paths: dict[str, Path] = {}

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        observed: Any = super().observe(graph, weights, data, progress)
        whole = [group for group in graph.groups if observed.refuses(group) is None]
        paths = {g.name: lasso_path(*observed.found(g)) for g in track(whole, "shrinking", len(whole), progress)}
        observed._paths = paths
        return observed

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        (q,) = self.found(group)
        penalties, path = self._paths[group.name]
        scores = np.zeros(len(q))
        for penalty, b in zip(penalties[::-1], path[::-1], strict=True):
            # Of channels that come in together, between two penalties, the larger go last.
            own = np.abs(b) / (1 + np.abs(b))
            scores = np.where(b != 0, penalty * (1 + (1 / _FALL - 1) * own), scores)
        return scores

    def select(self, group: Group, n_keep: int, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        check_integer("n_keep", n_keep, f"how many of the {group.size} units stay", most=group.size)
        (q,) = self.found(group)
        b, gradient = _at_most(q, self._paths[group.name], n_keep)
        kept = b != 0
        rank = np.where(kept, np.inf, np.abs(gradient))
        return np.sort(np.argsort(-rank, kind="stable")[:n_keep])


def lasso_path(q: np.ndarray) -> Path:
    """Penalties, falling, and the solution at each, float64 (steps,) and (steps, n); see `lasso`."""
    largest = np.abs(q.sum(axis=1)).max(initial=0.0)
    penalties = largest * _FALL ** np.arange(1 + int(np.log(_LEAST) / np.log(_FALL)))
    path = [np.zeros(len(q))]
    for penalty in penalties[1:]:
        path.append(lasso(q, penalty, path[-1]))
    return penalties, np.array(path)


def _at_most(q: np.ndarray, found: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The solution with the most channels, up to `count`, before it has more for the first time; and the gradient."""
    penalties, path = found
    more = np.flatnonzero((path != 0).sum(axis=1) > count)
    step = more[0] if more.size else len(path)
    b, low, high = path[step - 1], penalties[min(step, len(path) - 1)], penalties[step - 1]
    for _ in range(_HALVINGS if more.size else 0):
        middle = (low + high) / 2
        other = lasso(q, middle, b)
        b, low, high = (b, middle, high) if (other != 0).sum() > count else (other, low, middle)
    return b, q @ (1 - b)


def lasso(q: np.ndarray, penalty: float, start: np.ndarray) -> np.ndarray:
    """argmin_b (1 - b)^T Q (1 - b) / 2 + penalty ||b||_1, by coordinate descent.

    A sweep settles which coordinates are zero and the signs of the others, and a linear system what these are.

    Args:
        q: Q (n, n), positive semidefinite.
        penalty: above 0.
        start: (n,), a guess.
    """
    b, own, whole = start.copy(), np.diag(q), q.sum(axis=1)
    usable = own > _NOTHING * max(own.mean(), np.finfo(float).tiny)
    for _ in range(_SWEEPS):
        gradient = whole - q @ b
        for i in np.flatnonzero(usable & ((b != 0) | (np.abs(gradient) > penalty))):
            pull = gradient[i] + own[i] * b[i]
            new = np.sign(pull) * max(abs(pull) - penalty, 0.0) / own[i]
            if new != b[i]:
                gradient -= (new - b[i]) * q[i]
                b[i] = new
        exact = _with_signs(q, whole - penalty * np.sign(b), b)
        if exact is not None:
            beyond = np.abs(whole - q @ exact)[usable & (exact == 0)].max(initial=0.0)
            if beyond <= penalty * (1 + _ROUNDING):
                return exact
            b = exact
    return b


def _with_signs(q: np.ndarray, right: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The solution among those whose coordinates have the signs of `b`, None where it has others."""
    kept = np.flatnonzero(b)
    ridge = _NOTHING * np.diag(q).mean() * np.eye(len(kept))
    exact = np.zeros(len(b))
    exact[kept] = np.linalg.solve(q[np.ix_(kept, kept)] + ridge, right[kept])
    return exact if (np.sign(exact) == np.sign(b)).all() else None
