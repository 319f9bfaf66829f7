"""Sweeps over filters that resemble each other go pair by pair, and distances are those of all pairs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from filters import (
    by_definition,
    every_layer,
    every_sign,
    kept_by,
    layer_of,
    matrices,
    random_kernel,
    removed_by,
    unit_rows,
)

from keras_filterprune import criteria
from keras_filterprune.criteria import pairwise as closeness


def plain_sweep(rows: np.ndarray, sizes: np.ndarray) -> list[int]:
    """Rows that one sweep makes redundant, in this order; of equally close ones the larger is visited first."""
    nearest, closest = [], []
    for i, row in enumerate(rows):
        distances = {}
        for j, other in enumerate(rows):
            cosine = float(np.sum(row * other))
            distances[j] = 1 - cosine
        del distances[i]
        nearest.append(min(distances, key=distances.get))
        closest.append(round(distances[nearest[-1]], 12))
    kept, redundant = [], []
    for i in sorted(range(len(rows)), key=lambda i: (closest[i], -sizes[i])):
        if i in redundant:
            continue
        kept.append(i)
        if nearest[i] not in kept and nearest[i] not in redundant:
            redundant.append(nearest[i])
    return redundant


def plain_elimination(rows: np.ndarray, sizes: np.ndarray) -> tuple[list[int], int]:
    """(rows in the order in which they go, how many of them in the first sweep)."""
    alive, order, first = list(range(len(rows))), [], 0
    while len(alive) > 1:
        gone = [alive[i] for i in plain_sweep(rows[alive], sizes[alive])]
        first = first or len(gone)
        order += gone
        alive = [i for i in alive if i not in gone]
    return order + alive, first


@every_sign
@every_layer
@pytest.mark.parametrize("seed", range(3))
def test_sweeps_equal_the_rule_pair_by_pair(shape, sign, seed):
    kernel = random_kernel(*shape, seed=seed)
    rows = np.array([by_definition(f, sign) for f in matrices(kernel)])
    order, first = plain_elimination(rows, np.linalg.norm(matrices(kernel), axis=(1, 2)))
    group, weights = layer_of(kernel)
    criterion = criteria.Similarity(sign)
    assert np.argsort(criterion.scores(group, weights)).tolist() == order
    assert criterion.redundant(group, weights) == first
    assert kept_by(criterion, kernel) == sorted(order[first:])


@every_sign
@every_layer
def test_a_filter_goes_for_its_mutual_nearest_neighbour_that_is_larger(shape, sign):
    """Whoever is nearer to a filter than those that are nearest to it is visited first: no others make it redundant."""
    kernel = random_kernel(*shape, seed=5)
    rows = np.array([by_definition(f, sign) for f in matrices(kernel)])
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    nearest, norms = cosines.argmax(axis=1), np.linalg.norm(matrices(kernel), axis=(1, 2))
    pairs = [(i, j) for i, j in enumerate(nearest) if nearest[j] == i and norms[i] > norms[j]]
    assert removed_by(criteria.Similarity(sign), kernel) == {j for _, j in pairs}
    assert 1 <= len(pairs) <= shape[3] // 2


@every_sign
def test_kept_sets_are_nested_and_scores_are_distances(sign):
    kernel = random_kernel(3, 3, 8, 20, seed=6)
    kept = [set(kept_by(criteria.Similarity(sign), kernel, count)) for count in range(1, 21)]
    assert all(a < b for a, b in pairwise(kept))
    group, weights = layer_of(kernel)
    scores = np.sort(criteria.Similarity(sign).scores(group, weights))
    rows = closeness.prototypes(matrices(kernel), sign)
    cosines = (rows @ rows.T)[np.triu_indices(20, 1)]
    assert scores[0] == pytest.approx(1 - cosines.max(), abs=1e-10)
    assert scores[-1] == pytest.approx(2, abs=1e-9)
    assert (np.diff(scores) > 0).all()


@every_sign
@pytest.mark.parametrize("shape", [(3, 3, 16), (5, 5, 4), (1, 1, 12)], ids=str)
def test_of_positively_scaled_duplicates_the_larger_stays(shape, sign):
    rng = np.random.default_rng(7)
    kernel = random_kernel(*shape, 24, seed=7)
    pairs = rng.permutation(24)[:12].reshape(6, 2)
    factors = rng.uniform(0.1, 10, 6)
    for (a, b), factor in zip(pairs, factors, strict=True):
        kernel[..., b] = factor * kernel[..., a]
    for criterion in (
        criteria.Similarity(sign),
        criteria.Nystrom(sign=sign),
        criteria.Nystrom(m=24, sign=sign),
    ):
        gone = removed_by(criterion, kernel)
        for (a, b), factor in zip(pairs, factors, strict=True):
            assert {a, b} & gone == {a if factor > 1 else b}


def test_only_the_spatial_pattern_counts_unless_there_is_none():
    """Two filters of one pattern over different channels are duplicates; 1x1 filters of other channels are not."""
    rng = np.random.default_rng(8)
    kernel = random_kernel(3, 3, 8, 10, seed=8)
    patterns, channels = rng.normal(size=(3, 3)), rng.uniform(0.5, 1.5, size=(2, 8))
    for j, profile in zip((2, 9), channels, strict=True):
        kernel[..., j] = patterns[..., None] * profile
    group, weights = layer_of(kernel)
    lowest = np.argsort(criteria.Similarity().scores(group, weights))[0]
    assert lowest in (2, 9)
    assert criteria.Similarity().scores(group, weights)[lowest] < 1e-9
    group, weights = layer_of(kernel[1:2, 1:2])
    assert criteria.Similarity().scores(group, weights).min() > 1e-6


@every_sign
def test_opposite_vectors_are_no_duplicates(sign):
    kernel = random_kernel(1, 1, 9, 12, seed=9)
    kernel[..., 7] = -2 * kernel[..., 3]
    group, weights = layer_of(kernel)
    assert criteria.Similarity(sign).scores(group, weights).min() > 0.05


@every_sign
@every_layer
@pytest.mark.parametrize("criterion", [criteria.Similarity, criteria.Nystrom])
def test_positive_factors_change_nothing_but_which_filter_is_the_larger(shape, sign, criterion):
    kernel = random_kernel(*shape, seed=10)
    norms = np.linalg.norm(matrices(kernel), axis=(1, 2))
    criterion = criterion(sign=sign)
    for count in range(1, shape[3]):
        # |w|^2 orders filters as |w| does.
        assert kept_by(criterion, kernel * norms.astype("float32"), count) == kept_by(criterion, kernel, count)
    factors = np.random.default_rng(11).permutation(np.logspace(-3, 3, shape[3])).astype("float32")
    group, weights = layer_of(kernel)
    wild = {("conv", "kernel"): kernel * factors}
    assert criterion.redundant(group, wild) == criterion.redundant(group, weights)


@every_sign
@every_layer
@pytest.mark.parametrize("criterion", [criteria.Similarity, criteria.Nystrom])
def test_renumbered_filters_go_in_the_same_order(shape, sign, criterion):
    kernel = random_kernel(*shape, seed=12)
    if shape[3] > 8:
        kernel[..., 5], kernel[..., 8] = 3 * kernel[..., 1], 0.5 * kernel[..., 4]
    order = np.random.default_rng(13).permutation(shape[3])
    group, weights = layer_of(kernel)
    moved = {("conv", "kernel"): kernel[..., order]}
    criterion = criterion(sign=sign)
    assert criterion.redundant(group, moved) == criterion.redundant(group, weights)
    ranked, again = (np.argsort(criterion.scores(group, w)) for w in (weights, moved))
    assert order[again].tolist() == ranked.tolist()


def test_a_search_in_single_precision_finds_the_same_neighbours_and_the_same_distances():
    rows = unit_rows(300, 9, seed=15)
    (ours, near), (theirs, exact) = (closeness.neighbours(rows, kind) for kind in (np.float32, np.float64))
    assert ours.tolist() == theirs.tolist()
    np.testing.assert_array_equal(near, exact)


@pytest.mark.parametrize("block", [1, 60, 100, 2**20])
def test_neighbours_in_blocks_are_those_of_the_whole_matrix(block, monkeypatch):
    monkeypatch.setattr(closeness, "_BLOCK", 8 * block)
    rows = unit_rows(37, 6, seed=14)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    nearest, distance = closeness.neighbours(rows)
    assert nearest.tolist() == cosines.argmax(axis=1).tolist()
    np.testing.assert_allclose(distance, 1 - cosines.max(axis=1), atol=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_equally_close_rows_are_visited_by_size_and_number(seed):
    """All pairs at one distance: what is redundant makes no other redundant, and what has been visited stays."""
    sizes = np.random.default_rng(seed).permutation([0, 1, 2, 3, 3, 4]).astype(float)
    order, distances, first = closeness.sweeps(np.eye(6), sizes)
    assert (order.tolist(), first) == plain_elimination(np.eye(6), sizes)
    assert distances.tolist() == [1, 1, 1, 1, 1, 2]


def test_a_row_is_never_its_own_neighbour():
    """Not even where approximate similarities are larger to others than to itself, or all are negative."""
    nearest, distance = closeness.neighbours(np.array([[0.1, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert nearest.tolist()[:2] == [1, 0]
    nearest, distance = closeness.neighbours(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert nearest.tolist() == [1, 0]
    assert distance.tolist() == [2.0, 2.0]
