"""Greedy subset selection on Gram matrices: which columns can best stand in for all of them.

Both directions are exact and nested, so that one run serves every count: forward selection as a pivoted Cholesky
factorisation, backward elimination by updating an inverse.
"""

from __future__ import annotations

import numpy as np

_DEPENDENT = 1e-10


def forward_order(gram: np.ndarray, rule: str) -> np.ndarray:
    """Order in which columns are selected to explain all columns by least squares.

    With P the Gram matrix of the residuals (the Schur complement of the selected columns), one selection is one step
    of a pivoted Cholesky factorisation: P <- P - p p^T / p_l.

    Args:
        gram: (n, n) Gram matrix of the columns, float64.
        rule: "omp" takes argmax_l sum_j |P_jl| (simultaneous orthogonal matching pursuit, Purohit et al. 2022);
            "gain" takes argmax_l sum_j P_jl^2 / P_ll, the largest drop of the total squared error.

    Returns:
        int64 of shape (n,), first selected first. Once the rank is reached the rest follow by decreasing norm.
    """
    residual = np.array(gram, np.float64)
    norms = np.diag(gram).copy()
    floor = _DEPENDENT * max(norms.max(initial=0.0), np.finfo(float).tiny)
    free = norms > floor
    order: list[int] = []
    while free.any():
        own = np.maximum(np.diag(residual), floor)
        score = np.abs(residual).sum(axis=0) if rule == "omp" else (residual**2).sum(axis=0) / own
        usable = free & (np.diag(residual) > floor)
        if not usable.any():
            break
        pick = int(np.argmax(np.where(usable, score, -np.inf)))
        column = residual[:, pick].copy()
        residual -= np.outer(column, column / column[pick])
        free[pick] = False
        order.append(pick)
    rest = np.setdiff1d(np.arange(len(gram)), order)
    return np.array([*order, *rest[np.argsort(-norms[rest], kind="stable")]], int)


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
        ridge = 1e-8 * np.trace(gram) / len(gram) + np.finfo(float).tiny
        inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
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
