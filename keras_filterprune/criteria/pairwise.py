"""Spatial prototypes of filters, their nearest neighbours, and what is redundant next to them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_filterprune.criteria.base import filter_tensors
from keras_filterprune.graph.types import Group

# Values of one block of float64 filters (64 MiB), and bytes of one block of similarities, which stays in the cache.
_FILTERS, _BLOCK = 2**23, 2**20
# Share of its largest entry below which the sign of a singular vector's first entry is rounding.
_ROUNDING = 1e-9
# Squared distance from the landmarks' span, and singular value of the landmarks, that count as none.
_SPANNED, _DEPENDENT = 1e-12, 1e-6


def group_prototypes(
    group: Group, weights: Mapping[tuple[str, str], np.ndarray], sign: str
) -> tuple[np.ndarray, np.ndarray]:
    """Prototypes of the units of a group, those of all its filters side by side, and the sizes of the units.

    Returns:
        (float64 of shape (n_units, d), rows of norm 1, or 0 for units without weights; squared norms of the units,
        every layer relative to its mean, (n_units,)).
    """
    parts, sizes = [], np.zeros(group.size)
    for member in (m for m in group.members if m.role == "filter"):
        tensors = filter_tensors(member, weights)
        parts.append(prototypes(tensors.reshape(-1, *tensors.shape[2:]), sign).reshape(group.size, -1))
        squares = np.einsum("ufts,ufts->u", tensors, tensors, dtype=np.float64)
        sizes += squares / max(squares.mean(), np.finfo(float).tiny)
    return _of_norm_one(np.concatenate(parts, axis=1)), sizes


def _of_norm_one(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def prototypes(filters: np.ndarray, sign: str) -> np.ndarray:
    """Left singular vectors u_1 of the largest singular values: the spatial pattern of each filter's rank-1 part.

    Args:
        filters: (n, taps, channels). Filters of a single tap have no spatial pattern and are their own prototypes.
        sign: "first_channel" or "dominant", the channel in which u_1 v_1^T is made positive.

    Returns:
        float64 of shape (n, taps), or (n, channels) for a single tap; rows of norm 1, or 0 for filters of zeros.
    """
    count, taps, channels = filters.shape
    if taps == 1:
        return _of_norm_one(filters[:, 0].astype(np.float64))
    found = np.empty((count, taps))
    step = max(1, _FILTERS // (taps * channels))
    for start in range(0, count, step):
        found[start : start + step] = _rank_one(filters[start : start + step].astype(np.float64), sign)
    return found


def _rank_one(filters: np.ndarray, sign: str) -> np.ndarray:
    # The smaller of the two Gram matrices has the same largest eigenvalue.
    flipped = filters.swapaxes(1, 2)
    if filters.shape[1] <= filters.shape[2]:
        left = np.linalg.eigh(filters @ flipped)[1][:, :, -1]
        right = np.einsum("ntc,nt->nc", filters, left)
    else:
        right = np.linalg.eigh(flipped @ filters)[1][:, :, -1]
        left = _of_norm_one(np.einsum("ntc,nc->nt", filters, right))
    dominant = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    decides = dominant
    if sign == "first_channel":
        decides = np.where(np.abs(right[:, :1]) > _ROUNDING * np.abs(dominant), right[:, :1], dominant)
    return left * np.where(np.any(filters, axis=(1, 2))[:, None], np.sign(decides), 0.0)


def landmarks(rows: np.ndarray, m: int | None, tolerance: float) -> np.ndarray:
    """Rows whose inner products are the Nystrom approximation C W^+ C^T of those of the given rows.

    They are the inner products of what the rows have in the span of the landmarks. n * m similarities are computed, and
    nothing of size n * n is formed.

    Args:
        rows: (n, d) of norm 1.
        m: take the first m rows as landmarks; with None, the row that is represented worst, again and again.
        tolerance: with m=None, the error at which to stop; errors of similarities are at most the largest row's.

    Returns:
        float64 of shape (n, number of independent landmarks).
    """
    if m is not None:
        _, singular, basis = np.linalg.svd(rows[:m], full_matrices=False)
        return rows @ basis[singular > _DEPENDENT].T
    columns: list[np.ndarray] = []
    error = np.einsum("ij,ij->i", rows, rows)
    while error.max(initial=0) > max(tolerance, _SPANNED):
        # One more column of a Cholesky factor, by the largest pivot that is left.
        chosen = int(error.argmax())
        column = rows @ rows[chosen] - sum(other[chosen] * other for other in columns)
        columns.append(column / np.sqrt(error[chosen]))
        error -= columns[-1] ** 2
    return np.stack(columns, axis=1) if columns else rows[:, :0]


def neighbours(rows: np.ndarray, search: type[np.floating] = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Nearest other row of every row by inner product, of equals the first, and the cosine distance to it.

    Args:
        rows: (n, d), n > 1; similarities are formed in blocks of 1 MiB.
        search: precision in which neighbours are looked for; distances are in float64. In float32 it takes half the
            time and less, and one of two neighbours is found that are as near to 1e-7.
    """
    count = len(rows)
    nearest = np.empty(count, int)
    own = rows.astype(search, copy=False)
    other = np.ascontiguousarray(own.T)
    step = max(1, _BLOCK // (own.itemsize * count))
    block = np.empty((step, count), search)
    for start in range(0, count, step):
        here = np.arange(start, min(start + step, count))
        found = np.matmul(own[here], other, out=block[: len(here)])
        found[here - start, here] = -np.inf
        nearest[here] = found.argmax(axis=1)
    distance = 1 - np.einsum("ij,ij->i", rows, rows[nearest])
    # Rounding would rank equal pairs in any order.
    return nearest, np.maximum(np.round(distance, 12), 0)


def sweeps(
    rows: np.ndarray, sizes: np.ndarray, search: type[np.floating] = np.float64
) -> tuple[np.ndarray, np.ndarray, int]:
    """Eliminate redundant rows sweep by sweep, until one is left.

    Rows are visited from the closest pair on. One that is not redundant by then stays and makes its nearest neighbour
    redundant. Of two that are nearest to each other the larger is visited first.

    Args:
        rows: (n, d).
        sizes: (n,).
        search: see `neighbours`.

    Returns:
        (rows in the order in which they went, the survivor last; the distances at which they went, 2 for the survivor;
        how many the first sweep removed).
    """
    alive, order, distances, first = np.arange(len(rows)), [], [], 0
    while len(alive) > 1:
        nearest, distance = neighbours(rows[alive], search)
        gone, at = sweep(nearest, distance, sizes[alive])
        first = first or len(gone)
        order.append(alive[gone])
        distances.append(at)
        alive = np.delete(alive, gone)
    return np.concatenate([*order, alive]), np.concatenate([*distances, np.full(len(alive), 2.0)]), first


def sweep(nearest: np.ndarray, distance: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What becomes redundant in one sweep, and at which distance; every visit depends on those before it."""
    kept: set[int] = set()
    redundant: dict[int, float] = {}
    for row in np.lexsort((-sizes, distance)).tolist():
        if row not in redundant:
            kept.add(row)
            neighbour = int(nearest[row])
            if neighbour not in kept:
                redundant.setdefault(neighbour, distance[row])
    return np.array(list(redundant), int), np.array(list(redundant.values()))
