"""Nystrom: columns that stand for all similarities, as near as asked for."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from filters import every_sign, kept_by, layer_of, matrices, random_kernel, removed_by, unit_rows

from keras_filterprune import criteria
from keras_filterprune.criteria import pairwise as closeness


def approximate(rows: np.ndarray, m: int | None, tolerance: float = 0) -> np.ndarray:
    columns = closeness.landmarks(rows, m, tolerance)
    return columns @ columns.T


@pytest.mark.parametrize("apart", [1e-7, 1e-6, 1e-5, 1e-4, 1e-2])
def test_landmarks_that_nearly_coincide_spoil_nothing(apart):
    for seed in range(20):
        rows = unit_rows(40, 9, seed=seed)
        rows[1] = rows[0] + apart * unit_rows(1, 9, seed=seed + 1000)[0]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(approximate(rows, 12), rows @ rows.T, atol=1e-9)


@pytest.mark.parametrize("width", [4, 9, 49])
@pytest.mark.parametrize("m", [1, 3, 7, 8, 9, 12, 40])
def test_landmarks_give_the_nystrom_approximation(m, width):
    rows = unit_rows(40, width, seed=15)
    # Landmarks that depend on those before them, among the others.
    rows[2], rows[4] = rows[0], -rows[3]
    rows[6] = (rows[0] + rows[3]) / np.linalg.norm(rows[0] + rows[3])
    cosines = rows @ rows.T
    first = cosines[:, :m]
    expected = first @ np.linalg.pinv(first[:m], rcond=1e-10, hermitian=True) @ first.T
    np.testing.assert_allclose(approximate(rows, m), expected, atol=1e-9)
    assert closeness.landmarks(rows, m, 0).shape[1] == np.linalg.matrix_rank(first[:m])


@every_sign
@pytest.mark.parametrize(("side", "channels"), [(3, 16), (3, 2), (5, 30)])
def test_as_many_columns_as_taps_give_what_all_pairs_give(side, channels, sign):
    kernel = random_kernel(side, side, channels, 40, seed=16)
    for m in (side**2, side**2 + 5, 40):
        nystrom = criteria.Nystrom(m=m, sign=sign)
        assert removed_by(nystrom, kernel) == removed_by(criteria.Similarity(sign), kernel)
        for count in range(1, 40):
            assert kept_by(nystrom, kernel, count) == kept_by(criteria.Similarity(sign), kernel, count)


def test_a_column_less_is_a_real_error():
    kernel = random_kernel(3, 3, 16, 40, seed=17)
    rows = closeness.prototypes(matrices(kernel), "dominant")
    errors = [np.abs(rows @ rows.T - approximate(rows, m)).max() for m in (7, 8, 9)]
    assert errors[0] > 0.1 and errors[1] > 0.1
    assert errors[2] < 1e-9
    assert kept_by(criteria.Nystrom(m=3), kernel) != kept_by(criteria.Similarity(), kernel)


@pytest.mark.parametrize("width", [9, 49])
def test_no_similarity_is_off_by_more_than_the_tolerance(width):
    rows = unit_rows(60, width, seed=18)
    rows[:20] = rows[0]
    tolerances = (0.8, 0.5, 0.2, 1e-2, 1e-3, 0.0)
    counts = []
    for tolerance in tolerances:
        assert np.abs(rows @ rows.T - approximate(rows, None, tolerance)).max() <= tolerance + 1e-9
        counts.append(closeness.landmarks(rows, None, tolerance).shape[1])
    assert all(a <= b for a, b in pairwise(counts))
    assert counts[0] < counts[2] <= counts[-1] == min(width, 41)


def test_the_tolerance_takes_the_worst_represented_filter_next():
    """Twenty equal filters stand first, and one column is enough for them."""
    rows = np.concatenate([np.repeat(np.eye(3)[:1], 20, axis=0), np.eye(3)[1:]])
    assert closeness.landmarks(rows, None, 0.5).shape == (22, 3)
    np.testing.assert_allclose(approximate(rows, None), rows @ rows.T, atol=1e-12)
    assert np.abs(approximate(rows, 20) - rows @ rows.T).max() == pytest.approx(1)


def test_the_arguments_of_nystrom_reach_its_columns():
    kernel = random_kernel(3, 3, 16, 1) + 0.1 * random_kernel(3, 3, 16, 40, seed=19)
    group, weights = layer_of(kernel)
    rows, _ = closeness.group_prototypes(group, weights, "dominant")
    cases = {
        criteria.Nystrom(m=4): (4, 0),
        criteria.Nystrom(): (None, 1e-3),
        criteria.Nystrom(tolerance=0.01): (None, 0.01),
    }
    for criterion, arguments in cases.items():
        np.testing.assert_array_equal(criterion.embed(group, rows), closeness.landmarks(rows, *arguments))
    assert len({criterion.embed(group, rows).shape for criterion in cases}) == 3


@pytest.mark.parametrize("m", [9, None])
def test_nothing_of_the_size_of_all_pairs_is_formed(m):
    rows = unit_rows(4096, 9, seed=20)
    tracemalloc.start()
    try:
        nearest, _ = closeness.neighbours(closeness.landmarks(rows, m, 1e-3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert nearest.shape == (4096,)
    assert peak < 4096 * 4096 * 8 / 20
