"""Least squares on moments: what kept columns can say about the others."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from keras_filterprune.probe.consumers import Joint, parts

_TINY = 1e-12
# Turns of fit and targets behind a ReLU, and the factor by which the squared error has to fall for another one.
_TURNS, _PROGRESS = 20, 0.95
# Rows for each unknown that need no ridge, about as many as there are unknowns tell least; and whose targets may follow
# the fit, which with fewer follows noise.
ENOUGH = 4
# One sample in so many is held out to find a ridge.
_HELD_OUT = 4
# Outputs that are asked for it: a ridge is one number, and solving for all of them is what takes long.
_ASKED = 64
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def regression(gram: np.ndarray, cross: np.ndarray, ridge: float, prior: Any = 0.0) -> np.ndarray:
    """Weights (d, o) that solve (gram + r I) W = cross + r prior with r = ridge * mean(diag(gram)), in float64.

    Args:
        gram: (d, d) Gram matrix or covariance of the columns.
        cross: (d, o) its counterpart with the targets.
        ridge: relative to the mean of the diagonal.
        prior: (d, o) weights for what the columns say nothing of (0).
    """
    factor, added = _factor(gram, ridge)
    return cho_solve(factor, cross + added * prior)


def _factor(gram: np.ndarray, ridge: float, dtype: Any = np.float64) -> tuple[Any, float]:
    """The Cholesky factor of gram + r I, and r; see `regression`."""
    gram = gram.astype(dtype)
    added = ridge * np.trace(gram) / len(gram) + _TINY
    gram[np.diag_indices_from(gram)] += added
    # Transposed, as LAPACK has it, it is factored where it is.
    return cho_factor(gram.T, overwrite_a=True), added


def halves(x: np.ndarray, y: np.ndarray, samples: np.ndarray) -> tuple[Joint, Joint]:
    """Moments to learn from, and those of every fourth sample, which are held out.

    Args:
        x, y: rows (n, d) and targets (n, o), float32.
        samples: (n,) which sample a row is of; rows of one sample resemble each other.
    """
    held_out = samples % _HELD_OUT == 0
    return Joint.of(x[~held_out], y[~held_out]), Joint.of(x[held_out], y[held_out])


def fitting_ridge(learnt: Joint, held_out: Joint, ridge: float, prior: np.ndarray) -> float:
    """The ridge with which weights that are found on some samples are best on others: `ridge`, or 1e-4, ... 10.

    Args:
        learnt, held_out: moments of either.
        ridge: the least.
        prior: see `regression`.
    """
    some = slice(None, None, -(-prior.shape[1] // _ASKED))
    # In single precision, in half the time: they are a power of ten apart.
    prior, cross, other_cross = (m[:, some].astype(np.float32) for m in (prior, learnt.cross, held_out.cross))
    gram, other_gram = (moments.covariance.astype(np.float32) for moments in (learnt, held_out))
    shift, rise = held_out.mean - learnt.mean, (held_out.level - learnt.level)[some]

    @functools.cache
    def tried(ridge: float) -> tuple[float, float]:
        """The squared error on the others, less what all weights have in common, and its slope over the ridge."""
        try:
            factor, added = _factor(gram, ridge, np.float32)
        except np.linalg.LinAlgError:
            return np.inf, -np.inf  # too little for what rounding leaves of dependent columns
        weights = cho_solve(factor, cross + np.float32(added) * prior)
        missed, of_others = rise - shift @ weights, other_gram @ weights
        error = np.square(missed).sum() + np.sum(weights * (of_others - 2 * other_cross))
        turn = cho_solve(factor, prior - weights)
        return float(error), float(np.sum(turn * (of_others - other_cross - np.outer(shift, missed))))

    # Without any, what fewer rows than columns leave open has no solution. The error falls, and rises then.
    ridges = sorted(r for r in {ridge, *_RIDGES} if r >= max(ridge, _TINY))
    low, high = 0, len(ridges) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(ridges[middle])[1] > 0 else (middle, high)
    return min(ridges[low : high + 1], key=lambda ridge: tried(ridge)[0])


def rectified_regression(
    x: np.ndarray,
    y: np.ndarray,
    known: Joint,
    threshold: np.ndarray,
    rising: np.ndarray,
    ridge: float,
    prior: Any = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Regression of what a ReLU makes of y on what it makes of x W + c.

    Where the ReLU cuts y off, the fit need only be cut off as well: there the target is the fit itself, or the
    threshold where the fit is beyond it. Fit and targets are found in turn; the error behind the ReLU falls each time.
    With fewer than four rows for each column, which can be fitted whatever they are, it is the regression of y on x.

    Args:
        x: float32 (n, d).
        y: float32 (n, o), before the ReLU.
        known: the moments of both.
        threshold: float32 (n, o) or (o,), where the ReLU begins, in units of y.
        rising: boolean (o,), whether it passes what is above the threshold (or below, for a negative scale).
        ridge, prior: see `regression`.

    Returns:
        (weights (d, o), constant (o,)).
    """
    # Upside down where the ReLU passes what is below, and around the targets' means.
    sign = np.where(rising, 1.0, -1.0).astype(np.float32)
    level = known.level.astype(np.float32)
    target, threshold = ((values - level).astype(np.float32, copy=False) for values in (y, threshold))
    target *= sign
    threshold *= sign
    # Between which values the target follows the fit. They are large: as few arrays as can be.
    off = target <= threshold
    least, most = target, np.maximum(target, threshold, out=threshold if threshold.ndim > 1 else None)
    least[off] = -np.inf
    centre = known.mean.astype(np.float32)
    factor, added = _factor(known.covariance, ridge)
    pull = added * prior * sign
    weights, shift, before = cho_solve(factor, known.cross * sign + pull), np.zeros(y.shape[1]), np.inf
    for _ in range(_TURNS if len(x) >= ENOUGH * x.shape[1] else 0):
        kernel, constant = weights.astype(np.float32), shift.astype(np.float32)
        error, total, cross = 0.0, np.zeros_like(shift), np.zeros_like(weights)
        for part in parts(len(x)):
            centred = x[part] - centre
            fit = centred @ kernel
            fit += constant
            target = np.clip(fit, least[part], most[part])
            fit -= target
            error += float(np.vdot(fit, fit))
            total += np.ones(len(fit), np.float32) @ target
            cross += centred.T @ target
        weights, shift = cho_solve(factor, cross / len(x) + pull), total / len(x)
        if error > _PROGRESS * before:
            break
        before = error
    return weights * sign, known.level + shift * sign - known.mean @ (weights * sign)


def refit(
    mean: np.ndarray, covariance: np.ndarray, kernel: np.ndarray, kept: np.ndarray, mixing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A kernel on the kept columns that does what the whole kernel did, as far as these moments tell.

    W' = M W, rescaled so that every output keeps its variance.

    Args:
        mean: (d,) of the columns.
        covariance: (d, d) of the columns, alike for every tap.
        kernel: (taps, d, outputs).
        kept: boolean (d,).
        mixing: M (n_kept, d), from which kept columns every column is taken.

    Returns:
        (kernel of shape (taps, n_kept, outputs), constant of shape (outputs,) that the outputs then lack).
    """
    new = mixing @ kernel
    inner = covariance[np.ix_(kept, kept)]
    wanted, reached = (np.einsum("tio,tio->o", k, m @ k) for k, m in ((kernel, covariance), (new, inner)))
    new *= scale_to(wanted, reached)
    return new, mean @ kernel.sum(axis=0) - mean[kept] @ new.sum(axis=0)


def mixed_by_all(covariance: np.ndarray, kept: np.ndarray, ridge: float) -> np.ndarray:
    """The least-squares mixing Sigma_SS^-1 Sigma_S: (n_kept, d) of Xie et al. (2021); `ridge` as in `regression`."""
    return regression(covariance[np.ix_(kept, kept)], covariance[kept], ridge)


def mixed_by_nearest(covariance: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The mixing (n_kept, d) in which a lost column is a multiple of the kept one it correlates with most.

    The multiple is that of least squares, and 0 where no correlation is positive.
    """
    places, lost = np.flatnonzero(kept), np.flatnonzero(~kept)
    variance = np.diag(covariance)[places]
    between = covariance[np.ix_(places, lost)]
    nearest = (between * reciprocal_roots(variance)[:, None]).argmax(axis=0)
    mixing = np.zeros((len(places), len(covariance)))
    mixing[np.arange(len(places)), places] = 1
    shared = between[nearest, np.arange(len(lost))]
    mixing[nearest, lost] = np.divide(shared, variance[nearest], out=np.zeros(len(lost)), where=shared > 0)
    return mixing


def scale_to(wanted: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Factors (o,) that bring outputs from one variance to another; 1 where next to nothing is reached."""
    ratio = np.divide(wanted, reached, out=np.ones(len(wanted)), where=reached > 1e-8 * wanted)
    return np.sqrt(ratio)


def coefficients(gram: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The least-squares coefficients of all columns on the kept ones: f_j ~ sum_l L_jl f_kept[l].

    Solved for columns of unit norm and scaled back, L_jl = L~_jl |f_j| / |f_l|, so that the norms do not matter.

    Args:
        gram: (n, n) Gram matrix of the columns; they may be dependent or zero.
        kept: (k,) indices of the kept columns, in any order.

    Returns:
        float64 of shape (n, k), its columns in the order of `kept`. A kept column stands for itself alone.
    """
    norms = np.diag(gram).astype(np.float64)
    scale = reciprocal_roots(norms)
    unit = gram * np.outer(scale, scale)
    # Dependent columns share their coefficients out; the ridge exceeds what rounding takes from a pivot.
    block = unit[np.ix_(kept, kept)] + 1e-12 * len(kept) * np.eye(len(kept))
    found = cho_solve(cho_factor(block), unit[kept]).T * np.outer(np.sqrt(norms), scale[kept])
    found[kept] = np.eye(len(kept))
    return found


def reciprocal_roots(norms: np.ndarray) -> np.ndarray:
    """1 / sqrt(norms), 0 for zeros."""
    return np.divide(1.0, np.sqrt(norms), out=np.zeros_like(norms), where=norms > 0)
