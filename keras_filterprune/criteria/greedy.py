"""Greedy subset selection on Gram matrices: which columns can best stand in for all of them, and how.

All directions are exact and nested, so that one run serves every count: forward selection as a pivoted Cholesky
factorisation, backward elimination by updating an inverse.
"""

from __future__ import annotations

import numpy as np

from keras_filterprune.probe.regression import reciprocal_roots

# A column with less than this share of its squared norm outside the span of the others counts as dependent.
_DEPENDENT = 1e-10

# Scores closer than this differ by rounding alone.
_TIE = 1e-12

# Added to a Gram matrix before it is inverted, relative to its mean squared norm.
_RIDGE = 1e-8


def forward_order(gram: np.ndarray, rule: str) -> np.ndarray:
    """Order in which columns are selected to explain all columns by least squares.

    With P the Gram matrix of the residuals (the Schur complement of the selected columns), one selection is one step
    of a pivoted Cholesky factorisation: P <- P - p p^T / p_l. A stack of problems takes its steps together.

    Args:
        gram: (..., n, n) Gram matrices of the columns.
        rule: "omp" takes argmax_l sum_j |P_jl| over the columns scaled to unit norm (simultaneous orthogonal matching
            pursuit, Purohit et al. 2022); "gain" takes argmax_l sum_j P_jl^2 / P_ll, the largest drop of the total
            squared error.

    Returns:
        int64 of shape (..., n), first selected first; of equal columns the first. Once the rank is reached the rest
        follow by decreasing norm.
    """
    size = gram.shape[-1]
    residual = gram.reshape(-1, size, size).astype(np.float64)
    norms = np.diagonal(residual, axis1=1, axis2=2).copy()
    if rule == "omp":
        scale = reciprocal_roots(norms)
        residual *= scale[:, :, None] * scale[:, None, :]
    # A live view: it holds the squared residual of every column at every step.
    own = np.diagonal(residual, axis1=1, axis2=2)
    floor = _DEPENDENT * own
    selected_at = np.full(norms.shape, size)
    items = np.arange(len(residual))
    work = np.empty_like(residual)
    for step in range(size):
        usable = own > floor
        active = usable.any(axis=1)
        if not active.any():
            break
        if rule == "omp":
            score = np.abs(residual, out=work).sum(axis=1)
        else:
            energy = np.square(residual, out=work).sum(axis=1)
            score = np.divide(energy, own, out=energy, where=usable)
        score = np.where(usable, score, 0)
        picks = np.argmax(score >= (1 - _TIE) * score.max(axis=1, keepdims=True), axis=1)
        selected_at[items[active], picks[active]] = step
        columns = residual[items, picks]
        # An infinite pivot leaves the items alone whose rank is exhausted.
        pivots = np.where(active, own[items, picks], np.inf)
        residual -= np.multiply(columns[:, :, None], (columns / pivots[:, None])[:, None, :], out=work)
    # Single precision: rounding does not rank equal norms.
    return np.lexsort((-norms.astype(np.float32), selected_at)).reshape(gram.shape[:-1])


def backward_order(problems: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Order in which units are eliminated so that least squares on the rest loses least, and what each one costs.

    With B = inverse of the Gram matrix of the remaining columns and A = B * cross the regression on them, dropping the
    columns p of a unit raises the squared error by exactly tr(A_p^T (B_pp)^-1 A_p).

    Args:
        problems: per consumer (gram, cross, columns): Gram matrix (d, d), its product with the targets (d, o), and the
            columns of every unit, int64 of shape (n_units, m).

    Returns:
        (order, increase): int64 of shape (n_units,), first eliminated first; float64 of the same shape, the rise of
        the summed squared error at each elimination.
    """
    states = []
    for gram, cross, columns in problems:
        inverse = _inverse(gram)[0]
        states.append([inverse, inverse @ cross, columns])
    remaining = np.arange(len(problems[0][2]))
    order, increase = [], []
    while len(remaining):
        cost = np.zeros(len(remaining))
        for inverse, fit, columns in states:
            own = columns[remaining]
            blocks = inverse[own[:, :, None], own[:, None, :]]
            rows = fit[own]
            cost += np.einsum("nmo,nmo->n", rows, np.linalg.solve(blocks, rows))
        pick = int(np.argmin(cost))
        unit = remaining[pick]
        order.append(unit)
        increase.append(max(float(cost[pick]), 0.0))
        remaining = np.delete(remaining, pick)
        for state in states if len(remaining) else ():
            inverse, fit, columns = state
            gone = columns[unit]
            step = inverse[:, gone] @ np.linalg.inv(inverse[np.ix_(gone, gone)])
            state[1] = fit - step @ fit[gone]
            state[0] = inverse - step @ inverse[gone]
    return np.array(order, int), np.array(increase)


def replaceable_order(gram: np.ndarray, downstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order in which linearly replaceable filters are removed (Joo et al. 2021), and the error of each removal.

    Filter j, with residual e_j on the remaining ones, and its row g_j of what reads it linearly, the layer's output
    loses ||e_j|| ||g_j|| at most. The least goes, and the others take over: g_i <- g_i + l_ji g_j. With C the inverse
    of the Gram matrix of the remaining filters ||e_j||^2 = 1 / C_jj and l_ji = -C_ij / C_jj.

    Args:
        gram: (n, n) Gram matrix of the filters.
        downstream: (n, o) weights that read each filter's channel.

    Returns:
        (order, errors): int64 of shape (n,), first removed first; float64 of the same shape, ||e_j|| ||g_j|| at its
        removal. Of filters that can be replaced exactly, those with the smallest coefficients go first.
    """
    inverse, ridge = _inverse(gram)
    # Rotating the outputs changes no norm, and leaves at most n of them.
    read = np.transpose(np.linalg.qr(downstream.T.astype(np.float64), mode="r"))
    remaining = np.arange(len(gram))
    order, errors = [], []
    while len(remaining):
        weight = np.linalg.norm(read[remaining], axis=1)
        unit = remaining[np.argmin(weight / np.sqrt(inverse[remaining, remaining]))]
        own = inverse[unit, unit]
        step = inverse[:, unit] / own
        # 1 / C_jj less what the ridge adds to it.
        residual = max(1 - ridge * (step[remaining] @ inverse[remaining, unit]), 0.0) / own
        order.append(unit)
        errors.append(np.sqrt(residual) * np.linalg.norm(read[unit]))
        remaining = remaining[remaining != unit]
        read -= np.outer(step, read[unit])
        inverse -= np.outer(step, inverse[unit])
    return np.array(order, int), np.array(errors)


def _inverse(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """Inverse of a Gram matrix (n, n) that may be singular, and the ridge that was added for it."""
    ridge = _RIDGE * np.trace(gram) / len(gram) + np.finfo(float).tiny
    return np.linalg.inv(gram + ridge * np.eye(len(gram))), ridge
