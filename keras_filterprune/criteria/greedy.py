"""Greedy subset selection on Gram matrices: which columns can best stand in for all of them, and how.

All directions are exact and nested, so that one run serves every count: forward selection as a pivoted Cholesky
factorisation, backward elimination by updating an inverse.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky
from scipy.linalg.lapack import dpotri

from keras_filterprune.probe.consumers import blocks
from keras_filterprune.probe.regression import reciprocal_roots

# A column with less than this share of its squared norm outside the span of the others counts as dependent.
_DEPENDENT = 1e-10

# Scores closer than this differ by rounding alone.
_TIE = 1e-12

# Columns whose products are carried out together.
_BLOCK = 64

# Rows of a matrix that products are subtracted from at once.
_ROWS = 256

# Added to a Gram matrix before it is inverted, relative to its mean squared norm.
_RIDGE = 1e-8
# Added as it is: where nothing but zeros is read, inverses and their squares must stay numbers.
_LEAST = 1e-150


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


def forward_units(problems: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Order in which units are selected to explain what kernels make of all, and what each explains (Xie et al. 2021).

    With P the Gram matrix of what the selected columns do not explain of the others and R that with what a kernel W
    makes of all (G and G W at first), selecting the columns p of a unit explains tr(R_p^T P_pp^-1 R_p) more.

    Args:
        problems: as in `backward_order`.

    Returns:
        (order, gain): int64 of shape (n_units,), first selected first; float64 of the same shape.
    """
    states = []
    for gram, kernel, columns in problems:
        ridge = _RIDGE * np.trace(gram) / len(gram) + _LEAST
        states.append((gram + ridge * np.eye(len(gram)), gram @ kernel.astype(np.float64), columns))
    left = np.ones(len(problems[0][2]), bool)
    order, gains = [], []
    while left.any():
        units = np.flatnonzero(left)
        gain = np.zeros(len(units))
        for gram, cross, columns in states:
            own = columns[units]
            solved = np.linalg.solve(gram[own[:, :, None], own[:, None, :]], cross[own])
            gain = gain + np.einsum("nmo,nmo->n", solved, cross[own])
        pick = int(np.argmax(gain >= (1 - _TIE) * gain.max()))
        order.append(units[pick])
        gains.append(float(gain[pick]))
        left[units[pick]] = False
        for gram, cross, columns in states if left.any() else ():
            own = columns[units[pick]]
            step = np.linalg.solve(gram[np.ix_(own, own)], np.hstack([gram[own], cross[own]]))
            column = gram[:, own].copy()
            gram -= column @ step[:, : len(gram)]
            cross -= column @ step[:, len(gram) :]
    return np.array(order, int), np.array(gains)


def backward_order(problems: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Order in which units are eliminated so that least squares on the rest loses least, and what each one costs.

    With B = inverse of the Gram matrix G of the remaining columns and A = B G W the regression on them of what a kernel
    W makes of all, dropping the columns p of a unit raises the squared error by exactly tr(A_p^T (B_pp)^-1 A_p).

    Args:
        problems: per consumer (gram, kernel, columns): Gram matrix (d, d) of its input columns, W (d, outputs), and
            the columns of every unit, int64 of shape (n_units, m).

    Returns:
        (order, increase): int64 of shape (n_units,), first eliminated first; float64 of the same shape, the rise of
        the summed squared error at each elimination.
    """
    eliminations = []
    for gram, kernel, columns in problems:
        inverse, ridge = _inverse(gram)
        # B G = I - ridge B.
        fitted = (part - ridge * (inverse @ part) for part in blocks(kernel))
        energy = sum((part @ part.T for part in fitted), np.zeros_like(inverse))
        eliminations.append(_Elimination(inverse, energy, columns))
    remaining = np.arange(len(problems[0][2]))
    order, increase = [], []
    nothing: float | None = None
    while len(remaining):
        cost = sum((elimination.costs(remaining) for elimination in eliminations), np.zeros(len(remaining)))
        if nothing is None:
            nothing = _TIE * float(cost.sum())
        # Of units that cost nothing but rounding, as those behind a dead ReLU, the first one goes.
        pick = int(np.argmax(cost <= max(float(cost.min()), nothing)))
        unit = remaining[pick]
        order.append(unit)
        increase.append(max(float(cost[pick]), 0.0))
        remaining = np.delete(remaining, pick)
        for elimination in eliminations if len(remaining) else ():
            elimination.drop(unit, remaining)
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
    # What the others take over is what least squares does to a regression: the squared loss is that of `_Elimination`.
    downstream = downstream.astype(np.float64)
    elimination = _Elimination(inverse, downstream @ downstream.T, np.arange(len(gram))[:, None])
    remaining = np.arange(len(gram))
    order, errors = [], []
    while len(remaining):
        cost = elimination.costs(remaining)
        pick = int(np.argmin(cost))
        unit, squared = remaining[pick], max(float(cost[pick]), 0.0)
        order.append(unit)
        remaining = np.delete(remaining, pick)
        step, row = elimination.drop(unit, remaining)
        # 1 / C_jj less what the ridge adds to it.
        errors.append(np.sqrt(squared * max(1 - ridge * float((step * row).sum()), 0.0)))
    return np.array(order, int), np.array(errors)


class _Elimination:
    """One regression while units are eliminated from it: B, the inverse of the Gram matrix, and H = A A^T.

    Dropping the columns p, with S = B_:p B_pp^-1 and T = H_:p - S H_pp / 2:

        B <- B - S B_p:      H <- H - S T^T - T S^T

    Both stay symmetric. A step needs rows p of both and the diagonal blocks of every unit. So the products of `_BLOCK`
    columns are carried out together, as matrix products, on what remains then; until that, rows are corrected as they
    are read.

    Args:
        inverse: B (d, d).
        energy: H (d, d).
        columns: int64 (n_units, m), the columns of every unit.
    """

    def __init__(self, inverse: np.ndarray, energy: np.ndarray, columns: np.ndarray):
        units, self._m = columns.shape
        flat = columns.ravel()
        self._inverse, self._energy = inverse[np.ix_(flat, flat)], energy[np.ix_(flat, flat)]
        self._own_inverse, self._own_energy = (self._diagonal(x) for x in (self._inverse, self._energy))
        self._slots = np.arange(units)
        self._begin()

    def costs(self, units: np.ndarray) -> np.ndarray:
        """tr(A_p^T B_pp^-1 A_p) of every one of these units, (n,)."""
        slots = self._slots[units]
        inverse, energy = self._own_inverse[slots], self._own_energy[slots]
        if self._m == 1:
            return (energy / inverse)[:, 0, 0]
        return np.trace(np.linalg.solve(inverse, energy), axis1=1, axis2=2)

    def drop(self, unit: int, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eliminate a unit, after which these remain; returns S^T and B_p:, (m, stored columns) each."""
        own = slice(self._slots[unit] * self._m, (self._slots[unit] + 1) * self._m)
        steps, rows, turns = (panel[: self._pending] for panel in (self._steps, self._rows, self._turns))
        row = self._inverse[own] - steps[:, own].T @ rows
        energy = self._energy[own] - steps[:, own].T @ turns - turns[:, own].T @ steps
        step = row / row[:, own] if self._m == 1 else np.linalg.solve(row[:, own], row)
        turn = energy - energy[:, own] @ step / 2
        new = slice(self._pending, self._pending + self._m)
        self._steps[new], self._rows[new], self._turns[new] = step, row, turn
        self._pending += self._m
        self._own_inverse -= self._blocks(step, row)
        both = self._blocks(step, turn)
        self._own_energy -= both + both.swapaxes(1, 2)
        if self._pending == len(self._steps):
            self._carry_out(remaining)
        return step, row

    def _carry_out(self, remaining: np.ndarray) -> None:
        slots = self._slots[remaining]
        left = (slots[:, None] * self._m + np.arange(self._m)).ravel()
        steps, rows, turns = (panel[:, left] for panel in (self._steps, self._rows, self._turns))
        self._inverse = _less(self._inverse, left, steps, rows)
        both = np.concatenate([steps, turns]), np.concatenate([turns, steps])
        self._energy = _less(self._energy, left, *both)
        self._own_inverse, self._own_energy = self._own_inverse[slots], self._own_energy[slots]
        self._slots[remaining] = np.arange(len(remaining))
        self._begin()

    def _begin(self) -> None:
        shape = max(1, _BLOCK // self._m) * self._m, len(self._inverse)
        self._steps, self._rows, self._turns = (np.empty(shape) for _ in range(3))
        self._pending = 0

    def _diagonal(self, x: np.ndarray) -> np.ndarray:
        """Blocks (n_units, m, m) of every unit with itself."""
        units = np.arange(len(x) // self._m)
        return x.reshape(len(units), self._m, len(units), self._m)[units, :, units].copy()

    def _blocks(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Diagonal blocks (n_units, m, m) of a^T b, from two panels (m, columns)."""
        if self._m == 1:
            return (a * b).T[:, :, None]
        a, b = (panel.reshape(self._m, -1, self._m) for panel in (a, b))
        return np.einsum("knm,knl->nml", a, b)


def _less(matrix: np.ndarray, left: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows and columns `left`, ascending, of a matrix, less a^T b.

    The matrix is written over, a few rows at a time: new memory, and what no cache holds, take longer than the product.
    """
    size = len(left)
    for start in range(0, size, _ROWS):
        rows = slice(start, min(start + _ROWS, size))
        matrix[rows, :size] = matrix[left[rows]].take(left, axis=1) - a[:, rows].T @ b
    return matrix[:size, :size]


def _inverse(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """Inverse of a Gram matrix (n, n) that may be singular, and the ridge that was added for it.

    Rounding leaves sums of products in single precision with eigenvalues below zero: the ridge grows until it exceeds
    them, and every pivot with it.
    """
    ridge = _RIDGE * np.trace(gram) / len(gram) + _LEAST
    while True:
        try:
            factor = cholesky(gram + ridge * np.eye(len(gram)), check_finite=False)
            if np.diag(factor).min() ** 2 >= ridge / 2:
                break
        except np.linalg.LinAlgError:
            pass
        ridge *= 10
    inverse = np.triu(dpotri(factor)[0])
    return inverse + np.triu(inverse, 1).T, ridge
