"""Filters that resemble each other: prototypes, sweeps, Nystrom columns, and what merging and budgets make of them."""

from __future__ import annotations

import importlib.util
import tracemalloc
from itertools import combinations, pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from builders import array, assert_all_equal, images
from keras import layers
from scipy.stats import gmean
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria
from keras_filterprune.criteria import pairwise as closeness
from keras_filterprune.graph.types import Group, Member
from keras_filterprune.probe import Weights
from keras_filterprune.probe.regression import mixed_by_nearest

SIGNS = ("first_channel", "dominant")
every_sign = pytest.mark.parametrize("sign", SIGNS)
LAYERS = [(3, 3, 4, 30), (3, 3, 32, 24), (7, 7, 16, 16), (1, 5, 2, 9), (1, 1, 6, 25), (2, 2, 3, 2)]
every_layer = pytest.mark.parametrize("shape", LAYERS, ids=str)


def random_kernel(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def layer_of(kernel: np.ndarray) -> tuple[Group, dict]:
    """(group, weights) of one convolution: what criteria look at."""
    units = np.arange(kernel.shape[3])
    return Group("conv", units, (Member("conv", "kernel", 3, "filter", units[:, None]),)), {("conv", "kernel"): kernel}


def coupled(first: np.ndarray, second: np.ndarray) -> tuple[Group, dict]:
    """(group, weights) of two convolutions whose outputs are added."""
    units = np.arange(first.shape[3])
    members = tuple(Member(name, "kernel", 3, "filter", units[:, None]) for name in "ab")
    return Group("a", units, members), {("a", "kernel"): first, ("b", "kernel"): second}


def kept_by(criterion, kernel: np.ndarray, count: int | None = None) -> list[int]:
    """What stays of a layer, after one sweep if no count is given."""
    group, weights = layer_of(kernel)
    count = group.size - criterion.redundant(group, weights) if count is None else count
    return criterion.select(group, count, weights).tolist()


def removed_by(criterion, kernel: np.ndarray) -> set[int]:
    return set(range(kernel.shape[3])) - set(kept_by(criterion, kernel))


def unit_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def output(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """All outputs as one array (samples, values)."""
    flat = keras.tree.flatten(model(x, training=False))
    return np.concatenate([keras.ops.convert_to_numpy(y).reshape(len(x), -1).astype(float) for y in flat], axis=1)


# ---------------------------------------------------------------------------------------------------- prototypes


def matrices(kernel: np.ndarray) -> np.ndarray:
    """(n, taps, channels) of a convolution's kernel."""
    return np.moveaxis(kernel, 3, 0).reshape(kernel.shape[3], -1, kernel.shape[2])


def by_definition(matrix: np.ndarray, sign: str) -> np.ndarray:
    """A column of the rank-1 part s_1 u_1 v_1^T of a matrix (taps, channels), of norm 1."""
    if len(matrix) == 1:
        return matrix[0] / np.linalg.norm(matrix[0].astype(float))
    left, values, right = np.linalg.svd(matrix.astype(float))
    part = values[0] * np.outer(left[:, 0], right[0])
    column = part[:, 0] if sign == "first_channel" else part[:, np.abs(right[0]).argmax()]
    return column / np.linalg.norm(column)


@every_sign
@pytest.mark.parametrize("shape", [(9, 4), (9, 32), (4, 4), (25, 3), (49, 1), (2, 50), (1, 7)], ids=str)
def test_prototypes_are_columns_of_the_rank_1_part(shape, sign):
    filters = np.random.default_rng(0).normal(size=(20, *shape)).astype("float32")
    found = closeness.prototypes(filters, sign)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.array([by_definition(f, sign) for f in filters]), atol=1e-9)


def test_the_two_signs_differ_where_first_and_largest_channel_do():
    filters = np.random.default_rng(1).normal(size=(50, 9, 8))
    first, dominant = (closeness.prototypes(filters, sign) for sign in SIGNS)
    same = (np.sign(first) == np.sign(dominant)).all(axis=1)
    assert 5 < same.sum() < 45
    np.testing.assert_allclose(np.abs(first), np.abs(dominant))


@every_sign
@pytest.mark.parametrize("shape", [(9, 4), (9, 32), (25, 1), (1, 6)], ids=str)
def test_filters_of_zeros_have_prototypes_of_zeros(shape, sign):
    filters = np.random.default_rng(2).normal(size=(6, *shape)).astype("float32")
    filters[[0, 4]] = 0
    norms = np.linalg.norm(closeness.prototypes(filters, sign), axis=1)
    np.testing.assert_allclose(norms, [0, 1, 1, 1, 0, 1], atol=1e-12)


@pytest.mark.parametrize("taps", [4, 25])
@pytest.mark.parametrize("first", [0.0, 1e-13])
def test_a_first_channel_without_weights_leaves_the_sign_to_the_largest(taps, first):
    filters = np.random.default_rng(3).normal(size=(30, taps, 8))
    filters[::2, :, 0] *= first
    found = closeness.prototypes(filters, "first_channel")
    assert np.isfinite(found).all()
    expected = [by_definition(f, ("dominant", "first_channel")[i % 2]) for i, f in enumerate(filters)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@every_sign
def test_prototypes_in_blocks_are_those_of_one_block(sign, monkeypatch):
    filters = np.random.default_rng(4).normal(size=(23, 9, 5)).astype("float32")
    whole = closeness.prototypes(filters, sign)
    monkeypatch.setattr(closeness, "_FILTERS", 200)
    np.testing.assert_allclose(closeness.prototypes(filters, sign), whole, atol=1e-12)


# {layer: (how to make it, shape of its input, name of the kernel, (kernel, j) -> filter j (taps, channels))}
KINDS = {
    "conv1d": (lambda: layers.Conv1D(6, 3, name="conv"), (9, 4), "kernel", lambda k, j: k[:, :, j]),
    "conv2d": (lambda: layers.Conv2D(6, (3, 2), name="conv"), (6, 6, 4), "kernel", lambda k, j: k[..., j]),
    "conv3d": (lambda: layers.Conv3D(6, 2, name="conv"), (4, 4, 4, 3), "kernel", lambda k, j: k[..., j]),
    "1x1": (lambda: layers.Conv2D(6, 1, name="conv"), (4, 4, 5), "kernel", lambda k, j: k[..., j]),
    "dense": (lambda: layers.Dense(6, name="conv"), (7,), "kernel", lambda k, j: k[None, :, j]),
    "separable": (
        lambda: layers.SeparableConv2D(6, 3, depth_multiplier=2, name="conv"),
        (6, 6, 4),
        "pointwise_kernel",
        lambda k, j: k[..., j],
    ),
    "conv1d transposed": (lambda: layers.Conv1DTranspose(6, 3, name="conv"), (6, 4), "kernel", lambda k, j: k[:, j]),
    "conv2d transposed": (
        lambda: layers.Conv2DTranspose(6, (3, 2), name="conv"),
        (5, 5, 4),
        "kernel",
        lambda k, j: k[:, :, j],
    ),
}


@every_sign
@pytest.mark.parametrize("kind", KINDS)
def test_prototypes_of_keras_layers(kind, sign):
    make, shape, weight, pick = KINDS[kind]
    inputs = keras.Input(shape)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(make()(inputs)))))
    graph = kfp.analyze(model)
    found, sizes = closeness.group_prototypes(graph.by_name["conv"], Weights(graph.view), sign)
    kernel = array(getattr(model.get_layer("conv"), weight))
    filters = [pick(kernel, j) for j in range(6)]
    filters = [f.reshape(-1, f.shape[-1]) for f in filters]
    np.testing.assert_allclose(found, np.array([by_definition(f, sign) for f in filters]), atol=1e-9)
    squares = np.array([np.square(f.astype(float)).sum() for f in filters])
    np.testing.assert_allclose(sizes, squares / squares.mean(), rtol=1e-6)


@every_sign
def test_prototypes_of_a_coupled_group_stand_side_by_side(sign):
    first, second = random_kernel(3, 3, 4, 8), 100 * random_kernel(1, 1, 6, 8, seed=1)
    first[..., 2], second[..., 5] = 0, 0
    first[..., 7] = second[..., 7] = 0
    found, sizes = closeness.group_prototypes(*coupled(first, second), sign)
    parts = [closeness.prototypes(matrices(k), sign) for k in (first, second)]
    expected = np.concatenate(parts, axis=1) / np.sqrt(2)
    expected[[2, 5]] *= np.sqrt(2)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    squares = [np.square(k.astype(float)).sum(axis=(0, 1, 2)) for k in (first, second)]
    np.testing.assert_allclose(sizes, sum(s / s.mean() for s in squares), rtol=1e-6)


def test_a_depthwise_kernel_is_compared_along_with_the_filters_it_follows():
    inputs = keras.Input((6, 6, 4))
    y = layers.DepthwiseConv2D(3, name="depthwise")(layers.Conv2D(6, 2, name="conv")(inputs))
    model = randomise(keras.Model(inputs, layers.Conv2D(2, 1)(y)))
    graph = kfp.analyze(model)
    found, _ = closeness.group_prototypes(graph.by_name["conv"], Weights(graph.view), "dominant")
    kernel, spread = (array(model.get_layer(name).kernel) for name in ("conv", "depthwise"))
    parts = [closeness.prototypes(matrices(k), "dominant") for k in (kernel, spread.swapaxes(2, 3))]
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1) / np.sqrt(2), atol=1e-9)


# -------------------------------------------------------------------------------------------------------- sweeps


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


# -------------------------------------------------------------------------------------------------------- Nystrom


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


# --------------------------------------------------------------------------------- operator norm, geometric mean


def operator_norms(filters: np.ndarray, aggregate: str) -> np.ndarray:
    """Filter by filter and channel by channel, of filters (n, taps, channels)."""
    sums = np.zeros(len(filters))
    for channel in range(filters.shape[2]):
        kernels = filters[:, :, channel].astype(float)
        centred = kernels - kernels.mean(axis=0)
        direction = np.linalg.svd(centred)[2][0]
        if direction @ centred[0] < 0:
            direction = -direction
        for j, kernel in enumerate(centred):
            sums[j] += kernel @ direction if aggregate == "signed" else (kernel @ direction) ** 2
    return sums**2 if aggregate == "signed" else sums


@pytest.mark.parametrize("aggregate", ["sumsq", "signed"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 12), (5, 5, 1, 7), (1, 1, 6, 9), (3, 1, 2, 2)], ids=str)
def test_operator_norm_equals_a_loop(shape, aggregate):
    kernel = random_kernel(*shape, seed=21)
    expected = operator_norms(matrices(kernel), aggregate)
    scores = criteria.OperatorNorm(aggregate).scores(*layer_of(kernel))
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("aggregate", ["sumsq", "signed"])
def test_operator_norm_of_dense_layers_is_that_of_1x1_convolutions(aggregate):
    kernel = random_kernel(1, 1, 6, 9, seed=22)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(9, name="dense")(inputs)))
    model.get_layer("dense").kernel.assign(kernel[0, 0])
    graph = kfp.analyze(model)
    criterion = criteria.OperatorNorm(aggregate)
    found = criterion.scores(graph.by_name["dense"], Weights(graph.view))
    np.testing.assert_allclose(found, criterion.scores(*layer_of(kernel)), rtol=1e-12)


@pytest.mark.parametrize("aggregate", ["sumsq", "signed"])
def test_operator_norm_of_a_unit_with_two_filters_is_their_sum(aggregate):
    kernel = random_kernel(3, 3, 4, 10, seed=23)
    positions = np.stack([np.arange(5), np.arange(5, 10)], axis=1)
    group = Group("conv", np.arange(5), (Member("conv", "kernel", 3, "filter", positions),))
    own = operator_norms(matrices(kernel), aggregate)
    expected = own[:5] + own[5:]
    scores = criteria.OperatorNorm(aggregate).scores(group, {("conv", "kernel"): kernel})
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


def test_the_signed_operator_norm_depends_on_the_numbers_of_the_filters():
    kernel = random_kernel(3, 3, 4, 12, seed=24)
    order = np.random.default_rng(25).permutation(12)
    (group, weights), (_, moved) = layer_of(kernel), layer_of(kernel[..., order])
    summed, signed = criteria.OperatorNorm(), criteria.OperatorNorm("signed")
    np.testing.assert_allclose(summed.scores(group, moved), summed.scores(group, weights)[order], rtol=1e-9)
    ranked, again = (np.argsort(signed.scores(group, w)) for w in (weights, moved))
    assert order[again].tolist() != ranked.tolist()


def test_what_all_filters_have_in_common_does_not_count_for_the_operator_norm():
    kernel = random_kernel(3, 3, 4, 12, seed=26)
    shifted = kernel + 5 * random_kernel(3, 3, 4, 1, seed=27)
    for aggregate in ("sumsq", "signed"):
        scores = (criteria.OperatorNorm(aggregate).scores(*layer_of(k)) for k in (kernel, shifted))
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-4)
    assert criteria.OperatorNorm().scores(*layer_of(np.ones((3, 3, 4, 5), "float32"))).tolist() == [0] * 5


def test_geometric_mean_equals_its_definition():
    kernel = random_kernel(3, 3, 4, 12, seed=28)
    weights = np.abs(kernel.astype(float))
    expected = (gmean(weights, axis=None) - gmean(weights, axis=(0, 1, 2))) ** 2
    scores = criteria.GeometricMean().scores(*layer_of(kernel))
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


def test_a_zero_among_the_weights_makes_the_geometric_mean_zero():
    kernel = random_kernel(3, 3, 4, 6, seed=29)
    kernel[1, 2, 3, 2] = 0
    kernel[..., 4] = 0
    means = gmean(np.abs(kernel.astype(float))[..., [0, 1, 3, 5]], axis=(0, 1, 2))
    # The whole layer's is 0 as well.
    expected = np.array([means[0], means[1], 0, means[2], 0, means[3]]) ** 2
    scores = criteria.GeometricMean().scores(*layer_of(kernel))
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-9)


# ---------------------------------------------------------------------------------------------------------- merge


def normalized(y, number: int):
    return layers.ReLU()(layers.BatchNormalization(epsilon=1e-7, name=f"bn{number}")(y))


def first_block(inputs):
    return normalized(layers.Conv2D(8, 3, padding="same", name="conv1")(inputs), 1)


def chain(inputs):
    return layers.Conv2D(4, 3, name="next")(first_block(inputs))


def residual(inputs):
    y = first_block(inputs)
    z = layers.BatchNormalization(name="bn2")(layers.Conv2D(8, 3, padding="same", name="conv2")(y))
    return layers.Conv2D(4, 3, name="next")(layers.ReLU()(layers.Add()([y, z])))


def flattened(inputs):
    return layers.Dense(4, name="next")(layers.Flatten()(layers.MaxPooling2D(2)(first_block(inputs))))


def depthwise(inputs):
    y = layers.DepthwiseConv2D(3, name="conv2")(first_block(inputs))
    return layers.Conv2D(4, 1, name="next")(normalized(y, 2))


def dense(inputs):
    y = layers.Dense(8, activation="relu", name="conv1")(layers.GlobalAveragePooling2D()(inputs))
    return layers.Dense(4, name="next")(y)


def several(inputs):
    y = first_block(inputs)
    after = layers.BatchNormalization(name="after")(layers.Conv2D(5, 3, strides=2, use_bias=False, name="next")(y))
    return [after, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)), layers.Conv2DTranspose(2, 3, strides=2)(y)]


BUILDERS = [chain, residual, flattened, depthwise, dense, several]


def build(make) -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    return randomise(keras.Model(inputs, make(inputs)), seed=3)


def copy_units(model: keras.Model, pairs, factors: dict[str, float] | None = None) -> None:
    """Make unit b of the layers conv1, conv2, bn1, bn2 that there are unit a, weight by weight times a factor."""
    for layer in model.layers:
        if layer.name in ("conv1", "conv2", "bn1", "bn2"):
            for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"):
                if getattr(layer, name, None) is not None:
                    values = array(getattr(layer, name))
                    axis = -2 if name == "kernel" and isinstance(layer, layers.DepthwiseConv2D) else -1
                    units = np.moveaxis(values, axis, 0)
                    for a, b in pairs:
                        units[b] = (factors or {}).get(name, 1) * units[a]
                    getattr(layer, name).assign(values)


def without(model: keras.Model, method="similarity", keep: float = 6 / 8, compensate="auto") -> tuple:
    """(smaller model, kept units of conv1)."""
    budget = kfp.FiltersBudget({"conv1": keep})
    small, report = kfp.prune_model(
        model, method, budget, compensate=compensate, return_report=True, progress=False, verify=False
    )
    return small, next(g["kept"] for g in report.plan.groups if g["name"] == "conv1")


def assert_same_outputs(model: keras.Model, small: keras.Model, tolerance: float = 1e-4) -> None:
    wanted = output(model, images())
    assert output(small, images()) == pytest.approx(wanted, abs=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("method", ["similarity", "nystrom"])
@pytest.mark.parametrize("make", BUILDERS, ids=lambda f: f.__name__)
def test_duplicates_are_merged_exactly(make, method):
    model = build(make)
    copy_units(model, [(1, 5), (2, 7)])
    small, kept = without(model, method)
    assert kept == [0, 1, 2, 3, 4, 6]
    assert_same_outputs(model, small)
    plain, _ = without(model, method, compensate="none")
    assert np.abs(output(plain, images()) - output(model, images())).max() > 1e-2


SCALED = {
    "filters and mean": ("kernel", "bias", "moving_mean", "beta"),
    "scale alone": ("gamma", "beta"),
    "everything": ("kernel", "bias", "moving_mean", "gamma", "beta"),
}


@pytest.mark.parametrize("make", [chain, flattened, several], ids=lambda f: f.__name__)
@pytest.mark.parametrize("factor", [0.25, 3.0])
@pytest.mark.parametrize("scaled", SCALED)
def test_multiples_in_front_of_a_relu_are_merged_exactly(scaled, factor, make):
    model = build(make)
    factors = dict.fromkeys(SCALED[scaled], factor)
    if scaled == "everything":
        # The variance goes along, and the scale makes up for it.
        factors["moving_variance"] = factor**2
    copy_units(model, [(1, 5), (2, 7)], factors)
    small, kept = without(model)
    assert len({1, 5} & set(kept)) == len({2, 7} & set(kept)) == 1
    assert_same_outputs(model, small)


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_multiples_without_normalization_are_merged_exactly(factor):
    model = build(dense)
    copy_units(model, [(1, 5), (2, 7)], {"kernel": factor, "bias": factor})
    small, kept = without(model)
    assert kept == ([0, 1, 2, 3, 4, 6] if factor < 1 else [0, 3, 4, 5, 6, 7])
    assert_same_outputs(model, small)
    kernel, merged = (array(m.get_layer("next").kernel) for m in (model, small))
    for a, b in ((1, 5), (2, 7)):
        stays, share = (a, factor) if factor < 1 else (b, 1 / factor)
        expected = kernel[stays] + share * kernel[a + b - stays]
        np.testing.assert_allclose(merged[kept.index(stays)], expected, rtol=1e-4, atol=1e-5)


def test_merging_brings_near_duplicates_nearer_than_removing_them():
    """Eight filters lie close together in the middle of the others, where FPGM looks first."""
    model = build(
        lambda inputs: layers.Conv2D(4, 3, name="next")(normalized(layers.Conv2D(16, 3, name="conv1")(inputs), 1))
    )
    rng = np.random.default_rng(30)
    spread = rng.normal(size=(3, 3, 3, 4))
    middle = rng.normal(size=(3, 3, 3, 1))
    kernel = np.concatenate([middle + 3 * spread, middle - 3 * spread, middle + 0.1 * rng.normal(size=(3, 3, 3, 8))], 3)
    model.get_layer("conv1").kernel.assign(kernel)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        variable = getattr(model.get_layer("bn1"), name)
        variable.assign(np.concatenate([array(variable)[:8], np.full(8, array(variable)[8])]))
    model.get_layer("conv1").bias.assign(np.zeros(16))
    wanted = output(model, images())
    merged, plain = (without(model, "fpgm", 10 / 16, how) for how in ("merge", "none"))
    assert set(range(8)) < set(merged[1]) and merged[1] == plain[1]
    errors = [np.square(output(m, images()) - wanted).mean() for m, _ in (merged, plain)]
    assert errors[0] < 0.1 * errors[1]


def test_similarity_merges_unless_there_is_data():
    for name, criterion in (
        ("similarity", criteria.Similarity("first_channel")),
        ("nystrom", criteria.Nystrom(m=3)),
    ):
        for method in (name, criterion):
            model = build(dense)
            _, report = kfp.prune_model(model, method, 0.7, return_report=True, progress=False)
            assert "without data" in report.compensation
            _, report = kfp.prune_model(model, method, 0.7, data=images(), return_report=True, progress=False)
            assert "without data" not in report.compensation


def test_a_lost_column_is_a_multiple_of_the_kept_one_it_correlates_with_most():
    rng = np.random.default_rng(31)
    factor = rng.normal(size=(9, 9)) * rng.uniform(0.1, 5, size=(9, 1))
    covariance = factor @ factor.T
    # Columns that go: 1, 4 and 8; to the last no kept one is positively correlated.
    kept = np.ones(9, bool)
    kept[[1, 4, 8]] = False
    covariance[8, kept] = covariance[kept, 8] = -np.abs(covariance[8, kept])
    found = mixed_by_nearest(covariance, kept)
    expected = np.zeros((6, 9))
    places = np.flatnonzero(kept)
    for row, place in enumerate(places):
        expected[row, place] = 1
    for lost in (1, 4):
        correlations = [covariance[p, lost] / np.sqrt(covariance[p, p] * covariance[lost, lost]) for p in places]
        row = int(np.argmax(correlations))
        assert correlations[row] > 0
        expected[row, lost] = covariance[places[row], lost] / covariance[places[row], places[row]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not found[:, 8].any()


def test_columns_that_are_constant_are_no_multiples_of_each_other():
    covariance = np.diag([0.0, 2.0, 0.0, 1.0])
    covariance[1, 3] = covariance[3, 1] = 0.5
    found = mixed_by_nearest(covariance, np.array([True, True, False, False]))
    assert found.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0.25]]


# ---------------------------------------------------------------------------------------------- budgets, allocators


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Three convolutions, one of them coupled, and a dense layer."""
    inputs = keras.Input((8, 8, 3))
    y = normalized(layers.Conv2D(12, 3, name="conv1")(inputs), 1)
    y = shortcut = normalized(layers.Conv2D(20, 3, padding="same", name="conv2")(y), 2)
    y = layers.Add()([shortcut, layers.Conv2D(20, 3, padding="same", name="conv3")(y)])
    y = layers.Dense(16, activation="relu", name="dense1")(layers.GlobalAveragePooling2D()(y))
    return randomise(keras.Model(inputs, layers.Dense(3, name="dense2")(y)), seed=5)


CRITERIA = [
    criteria.Similarity(),
    criteria.Nystrom(),
    criteria.Nystrom(m=5),
    criteria.Nystrom(tolerance=0.3),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_the_redundancy_budget_removes_what_the_criterion_calls_redundant(network, criterion):
    graph = kfp.analyze(network)
    weights = Weights(graph.view)
    small, report = kfp.prune_model(
        network, criterion, kfp.RedundancyBudget(), return_report=True, progress=False, verify=False
    )
    kept = {g["name"]: g["kept"] for g in report.plan.groups}
    assert set(kept) == {"conv1", "conv2", "dense1"}
    for group in graph.groups:
        redundant = criterion.redundant(group, weights)
        assert 1 <= redundant <= group.size // 2
        assert kept[group.name] == criterion.select(group, group.size - redundant, weights).tolist()
    assert small.get_layer("conv3").filters == len(kept["conv2"])
    assert small.get_layer("dense1").units == len(kept["dense1"])


def test_names_stand_for_the_criteria(network):
    for name, criterion in (("similarity", criteria.Similarity()), ("nystrom", criteria.Nystrom())):
        plans = [kfp.plan_pruning(network, m, kfp.RedundancyBudget(), progress=False) for m in (name, criterion)]
        assert plans[0].groups == plans[1].groups
    assert plans[0].budget == "RedundancyBudget()"


def test_layers_that_are_not_included_stay_whole(network):
    budget = kfp.RedundancyBudget()
    alone = kfp.plan_pruning(network, "similarity", budget, include="conv2", progress=False)
    everything = kfp.plan_pruning(network, "similarity", budget, progress=False)
    sizes = {g["name"]: (len(g["kept"]), g["size"]) for g in alone.groups}
    assert sizes["conv1"] == (12, 12) and sizes["dense1"] == (16, 16)
    assert sizes["conv2"][0] < 20
    assert [g["kept"] for g in alone.groups if g["name"] == "conv2"] == [
        g["kept"] for g in everything.groups if g["name"] == "conv2"
    ]


def test_the_redundancy_budget_keeps_to_multiples_and_floors(network):
    budget = kfp.RedundancyBudget()
    plain, multiple, floor = (
        kfp.plan_pruning(network, "similarity", budget, progress=False, **options).groups
        for options in ({}, {"channel_multiple": 4}, {"min_filters": 15})
    )
    for free, tied, high in zip(plain, multiple, floor, strict=True):
        assert len(tied["kept"]) == min(-(-len(free["kept"]) // 4) * 4, free["size"])
        assert len(high["kept"]) == min(max(len(free["kept"]), 15), free["size"])


def test_a_criterion_that_only_ranks_does_not_go_with_the_redundancy_budget(network):
    for method, named in (("l2", "L2"), ("operator_norm", "OperatorNorm"), (criteria.FPOMP(), "FPOMP")):
        sentence = rf"RedundancyBudget\(\) leaves the number of filters to the criterion, and {named}\(.*\) only ranks"
        with pytest.raises(kfp.errors.InfeasibleBudgetError, match=sentence) as caught:
            kfp.prune_model(network, method, kfp.RedundancyBudget(), progress=False)
        assert str(caught.value).endswith("Use method='similarity', 'nystrom' or 'dead', or give a fraction.")


def test_an_allocator_that_measures_does_not_go_with_the_redundancy_budget(network):
    method = kfp.Method(criteria.Similarity(), allocators.Search())
    with pytest.raises(
        kfp.errors.InfeasibleBudgetError, match=r"and RedundancyBudget\(\) does too\. Give a MacsBudget or a"
    ):
        kfp.plan_pruning(network, method, kfp.RedundancyBudget(), data=(images(), np.zeros(64, int)), progress=False)


@pytest.mark.parametrize(
    "allocator",
    [allocators.Uniform(), allocators.Global(0), allocators.Global(0.5), allocators.Global(1)],
    ids=repr,
)
@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("keep", [0.9, 0.4, 0.05])
def test_fractions_of_the_multiply_accumulates_are_met(network, criterion, allocator, keep):
    """From less than one sweep removes to what takes many."""
    method = kfp.Method(criterion, allocator)
    plan = kfp.plan_pruning(network, method, kfp.MacsBudget(keep), progress=False)
    full, left = plan.cost["macs"]
    assert left <= keep * full
    graph = kfp.analyze(network)
    sizes = np.array([g.size for g in graph.groups])
    counts = np.array([len(g["kept"]) for g in plan.groups])
    cost = kfp.budgets.CostModel(graph).macs
    more = [cost(counts + (np.arange(3) == g)) for g in range(3) if counts[g] < sizes[g]]
    assert left >= 0.99 * keep * full or min(more) > keep * full
    for group, found in zip(graph.groups, plan.groups, strict=True):
        expected = criterion.select(group, len(found["kept"]), Weights(graph.view))
        assert found["kept"] == expected.tolist()


def test_distances_compare_between_layers():
    """One ranking over all layers starts with the near-duplicates, wherever they are."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(16, 3, name="conv2")(layers.ReLU()(layers.Conv2D(16, 3, name="conv1")(inputs)))
    model = randomise(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(y)))))
    kernel = array(model.get_layer("conv2").kernel)
    kernel[..., 8:14] = 0.5 * kernel[..., :6] + 1e-3 * random_kernel(3, 3, 16, 6)
    model.get_layer("conv2").kernel.assign(kernel)
    graph = kfp.analyze(model)
    full, less = (kfp.budgets.CostModel(graph).macs(np.array([16, k])) for k in (16, 10))
    for criterion in (criteria.Similarity(), criteria.Nystrom()):
        plan = kfp.plan_pruning(model, kfp.Method(criterion, allocators.Global(0)), less / full, progress=False)
        assert {g["name"]: g["kept"] for g in plan.groups} == {
            "conv1": list(range(16)),
            "conv2": [*range(8), 14, 15],
        }


# ---------------------------------------------------------------------------------------------- published networks


@pytest.fixture(scope="module")
def networks():
    path = Path(__file__).parents[2] / "examples" / "audio" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dcase21(networks):
    return randomise(networks.dcase21_net(), seed=6)


DCASE21 = {"conv1": 11 / 16, "conv2": 11 / 16, "conv3": 22 / 32}
# Layers pruned: parameters and percent of multiply-accumulates saved, as published and counted.
PUBLISHED = {
    (1,): (42_056, 29.1),
    (2,): (34_461, 29.5),
    (3,): (36_356, 2.2),
    (1, 2): (31_496, 50.1),
    (2, 3): (27_021, 31.0),
    (1, 2, 3): (24_056, 51.6),
}


@pytest.mark.parametrize("numbers", PUBLISHED, ids=str)
def test_parameters_of_dcase21_are_the_published_ones(dcase21, numbers):
    keep = {name: DCASE21[name] for name in (f"conv{n}" for n in numbers)}
    plan = kfp.plan_pruning(dcase21, "similarity", kfp.FiltersBudget(keep), progress=False)
    kept = {g["name"]: len(g["kept"]) for g in plan.groups}
    assert {name: kept[name] for name in keep} == {name: {"conv3": 22}.get(name, 11) for name in keep}
    params, saved = PUBLISHED[numbers]
    assert plan.cost["params"] == [46_246, params]
    before, after = plan.cost["macs"]
    assert round(before / 1e6, 1) == 286.6
    assert round(100 * (1 - after / before), 1) == saved


def test_rows_behind_flatten_belong_to_channels_and_not_to_blocks(dcase21):
    """Two positions, 32 channels: channel c is read by rows c and 32 + c."""
    small, report = kfp.prune_model(
        dcase21, "similarity", kfp.FiltersBudget(DCASE21), compensate="none", return_report=True, progress=False
    )
    assert small.count_params() == 24_056 == report.plan.cost["params"][1]
    assert report.verification < 1e-4
    kept = next(g["kept"] for g in report.plan.groups if g["name"] == "conv3")
    assert len(kept) == 22
    rows = [position * 32 + channel for position in range(2) for channel in kept]
    kernel, smaller = (array(m.get_layer("dense1").kernel) for m in (dcase21, small))
    assert smaller.shape == (44, 100)
    np.testing.assert_array_equal(smaller, kernel[rows])


def test_cost_of_vggish_is_the_published_one(networks):
    before = {"conv1": 64, "conv2": 128, "conv3": 256, "conv4": 256, "conv5": 512, "conv6": 512}
    after = dict(zip(before, (51, 101, 215, 204, 404, 402), strict=True))
    model = networks.vggish_net()
    assert model.count_params() == 55_361_162
    budget = kfp.FiltersBudget({name: after[name] / before[name] for name in before})
    plan = kfp.plan_pruning(model, "l2", budget, progress=False)
    assert {g["name"]: len(g["kept"]) for g in plan.groups if g["name"] in before} == after

    def counted(filters: dict[str, int]) -> tuple[int, int]:
        params, macs, channels = 0, 0, 1
        positions = dict(zip(before, (96 * 64, 48 * 32, 24 * 16, 24 * 16, 12 * 8, 12 * 8), strict=True))
        for name, width in filters.items():
            params += 9 * channels * width + width
            macs += 9 * channels * width * positions[name]
            channels = width
        inputs = 6 * 4 * channels
        for units in (4096, 128, 10):
            params, macs, inputs = params + inputs * units + units, macs + inputs * units, units
        return params, macs

    costs = list(zip(counted(before), counted(after), strict=True))
    assert [tuple(plan.cost[kind]) for kind in ("params", "macs")] == costs
    (params, fewer), (macs, less) = costs
    assert round(macs / 1e6, 1) == 847.1 and round(less / 1e6, 1) == 552.2
    assert round(100 * (1 - fewer / params), 1) == 22.5


# ------------------------------------------------------------------------------------------------------- bad input


def single_layer(kernel: np.ndarray, bias: np.ndarray | None = None) -> keras.Model:
    inputs = keras.Input((8, 8, kernel.shape[2]))
    y = layers.Conv2D(kernel.shape[3], kernel.shape[:2], activation="relu", name="conv1")(inputs)
    model = randomise(keras.Model(inputs, layers.Conv2D(3, 3, name="next")(y)))
    model.get_layer("conv1").kernel.assign(kernel)
    if bias is not None:
        model.get_layer("conv1").bias.assign(bias)
    return model


EDGES = [
    criteria.Similarity(),
    criteria.Similarity("first_channel"),
    criteria.Nystrom(),
    criteria.Nystrom(m=1),
]
every_edge = pytest.mark.parametrize("criterion", EDGES, ids=repr)


@every_edge
@pytest.mark.parametrize("factor", [1, 0])
def test_a_single_filter_stays(criterion, factor):
    kernel = factor * random_kernel(3, 3, 3, 1)
    group, weights = layer_of(kernel)
    assert criterion.redundant(group, weights) == 0
    assert np.isfinite(criterion.scores(group, weights)).all()
    small = kfp.prune_model(single_layer(kernel), criterion, kfp.RedundancyBudget(), progress=False)
    assert small.get_layer("conv1").filters == 1


@every_edge
def test_of_filters_of_zeros_one_stays(criterion):
    group, weights = layer_of(np.zeros((3, 3, 3, 6), "float32"))
    assert criterion.redundant(group, weights) == 5
    assert criterion.scores(group, weights).tolist() == [0] * 6
    model = single_layer(np.zeros((3, 3, 3, 6)), np.linspace(-1, 1, 6))
    small = kfp.prune_model(model, criterion, kfp.RedundancyBudget(), progress=False)
    assert small.get_layer("conv1").filters == 1
    # What biases make constant, the next layer's bias makes up for.
    assert_same_outputs(model, small)


@every_edge
@pytest.mark.parametrize("zeros", [1, 3, 5])
def test_filters_of_zeros_go_first(criterion, zeros):
    kernel = random_kernel(3, 3, 3, 6)
    gone = np.random.default_rng(zeros).permutation(6)[:zeros]
    kernel[..., gone] = 0
    group, weights = layer_of(kernel)
    full = np.delete(np.arange(6), gone)
    scores = criterion.scores(group, weights)
    assert (scores[gone] == 0).all() and (scores[full] > 0).all()
    alone, others = layer_of(kernel[..., full])
    assert np.argsort(scores[full]).tolist() == np.argsort(criterion.scores(alone, others)).tolist()
    assert criterion.redundant(group, weights) == zeros + criterion.redundant(alone, others)


@every_edge
@pytest.mark.parametrize("factors", [np.ones(7), np.linspace(0.5, 2, 7)], ids=["equal", "scaled"])
def test_of_duplicates_any_number_can_go_without_a_trace(criterion, factors):
    kernel = random_kernel(3, 3, 3, 1, seed=4) * factors.astype("float32")
    group, weights = layer_of(kernel)
    assert 1 <= criterion.redundant(group, weights) <= 6
    assert np.sort(criterion.scores(group, weights))[-2] < 1e-9
    kept = [set(kept_by(criterion, kernel, count)) for count in range(1, 8)]
    assert all(a < b for a, b in pairwise(kept))
    model = single_layer(kernel, 0.1 * factors)
    for count in (1, 3):
        budget = kfp.FiltersBudget({"conv1": count / 7})
        small = kfp.prune_model(model, criterion, budget, progress=False)
        assert small.get_layer("conv1").filters == count
        assert_same_outputs(model, small)


def unchanged(model: keras.Model, error, sentence: str, *args, **options) -> None:
    """Pruning raises this sentence and leaves the weights alone."""
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(error, match=sentence):
        kfp.prune_model(model, *args, progress=False, **options)
    assert_all_equal(before, model.get_weights())


def test_more_columns_than_a_layer_has_filters():
    model = build(chain)
    sentence = r"Nystrom\(m=9\) takes m columns .* layer 'conv1' has 8 filters\. Lower m, or give tolerance="
    unchanged(model, kfp.errors.InvalidValueError, sentence, criteria.Nystrom(m=9), 0.5)
    unchanged(model, kfp.errors.InvalidValueError, sentence, criteria.Nystrom(m=9), kfp.RedundancyBudget())
    small = kfp.prune_model(model, criteria.Nystrom(m=8), kfp.RedundancyBudget(), progress=False)
    assert small.get_layer("conv1").filters < 8


def test_layers_that_stay_whole_need_no_columns(network):
    criterion = criteria.Nystrom(m=14)
    for budget in (kfp.RedundancyBudget(), kfp.FiltersBudget({"conv2": 0.5})):
        plan = kfp.plan_pruning(network, criterion, budget, exclude="conv1", progress=False)
        assert [len(g["kept"]) for g in plan.groups if g["name"] == "conv1"] == [12]
    with pytest.raises(kfp.errors.InvalidValueError, match="layer 'conv1' has 12 filters"):
        kfp.plan_pruning(network, criterion, kfp.RedundancyBudget(), progress=False)


@pytest.mark.parametrize("m", [0, -3, 2.0, True, "9"], ids=repr)
def test_numbers_of_columns_that_are_none(m):
    with pytest.raises(
        kfp.errors.InvalidValueError, match=rf"m is a number of columns, at least 1.* Received: m={m!r}\."
    ):
        criteria.Nystrom(m=m)


@pytest.mark.parametrize("tolerance", [-1e-9, 1, 1.5, np.nan, True, "1e-3"], ids=repr)
def test_tolerances_that_are_none(tolerance):
    with pytest.raises(
        kfp.errors.InvalidValueError, match=r"tolerance is a similarity, in \[0, 1\), or None\. Received: tolerance="
    ):
        criteria.Nystrom(tolerance=tolerance)


def test_columns_and_tolerance_at_once():
    with pytest.raises(
        kfp.errors.InvalidValueError, match=r"m= or tolerance=, not both\. Received: m=4, tolerance=0\.1\."
    ):
        criteria.Nystrom(m=4, tolerance=0.1)


@pytest.mark.parametrize("make", [criteria.Similarity, criteria.Nystrom])
def test_unknown_signs(make):
    sentence = r"sign is one of dominant, first_channel\. Received: sign='positive'\."
    with pytest.raises(kfp.errors.UnknownNameError, match=sentence):
        make(sign="positive")


def test_unknown_aggregates_of_the_operator_norm():
    sentence = r"aggregate is one of sumsq, signed\. Received: aggregate='mean'\."
    with pytest.raises(kfp.errors.UnknownNameError, match=sentence):
        criteria.OperatorNorm(aggregate="mean")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["similarity", "nystrom", "operator_norm", "geometric_mean"])
def test_weights_that_are_not_finite(method, value):
    model = build(chain)
    kernel = array(model.get_layer("conv1").kernel)
    kernel[0, 1, 2, 3] = value
    model.get_layer("conv1").kernel.assign(kernel)
    sentence = r"weight 'kernel' of layer 'conv1' holds 1 NaN or infinite values"
    unchanged(model, kfp.errors.UnsupportedModelError, sentence, method, 0.5)


def test_representations_are_those_of_the_constructor():
    known = {
        "Similarity": criteria.Similarity,
        "Nystrom": criteria.Nystrom,
        "OperatorNorm": criteria.OperatorNorm,
    }
    texts = [repr(c) for c in (*CRITERIA, criteria.OperatorNorm(), criteria.OperatorNorm("signed"))]
    assert all(a != b for a, b in combinations(texts, 2))
    assert [repr(eval(text, known)) for text in texts] == texts
