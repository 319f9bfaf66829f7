"""Greedy selection on Gram matrices against its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest

from keras_filterprune.criteria import greedy
from keras_filterprune.criteria.greedy import backward_order, forward_order, forward_units, replaceable_order
from keras_filterprune.probe.regression import coefficients

RULES = ("omp", "gain")


def squared_error(columns: np.ndarray, kept: list[int], targets: np.ndarray) -> float:
    """Least squares of the targets on the kept columns, by lstsq."""
    if not len(kept):
        return float((targets**2).sum())
    fit = np.linalg.lstsq(columns[:, kept], targets, rcond=None)[0]
    return float(((targets - columns[:, kept] @ fit) ** 2).sum())


def unit(columns: np.ndarray) -> np.ndarray:
    return columns / np.linalg.norm(columns, axis=0)


def pursuit(atoms: np.ndarray, count: int) -> list[int]:
    """Simultaneous orthogonal matching pursuit by its definition: refit all targets after every choice."""
    chosen: list[int] = []
    while len(chosen) < count:
        residual = atoms
        if chosen:
            residual = atoms - atoms[:, chosen] @ np.linalg.lstsq(atoms[:, chosen], atoms, rcond=None)[0]
        score = np.abs(residual.T @ atoms).sum(axis=0)
        score[chosen] = -np.inf
        chosen.append(int(np.argmax(score)))
    return chosen


def planted(rng: np.random.Generator, dimension: int, size: int) -> np.ndarray:
    """`size` columns, and as many random combinations of them, in random order."""
    base = rng.normal(size=(dimension, size))
    return np.hstack([base, base @ rng.normal(size=(size, size))])[:, rng.permutation(2 * size)]


def gram_of(columns: np.ndarray) -> np.ndarray:
    return columns.T @ columns


# ------------------------------------------------------------------------------------------------ forward selection


@pytest.mark.parametrize(("size", "dimension"), [(6, 20), (16, 144), (12, 13), (32, 27), (64, 576), (1, 9)])
def test_pivoted_form_selects_what_orthogonal_matching_pursuit_selects(size, dimension):
    rng = np.random.default_rng(size)
    columns = rng.normal(size=(dimension, size)) * rng.uniform(0.1, 10, size)
    rank = min(size, dimension)
    order = forward_order(gram_of(columns), "omp").tolist()
    assert order[:rank] == pursuit(unit(columns), rank)
    assert sorted(order) == list(range(size))


@pytest.mark.parametrize("seed", range(3))
def test_gain_takes_the_largest_drop_of_the_squared_error_at_every_step(seed):
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(10, 8)) * rng.uniform(0.5, 2, 8)
    order = forward_order(gram_of(columns), "gain").tolist()
    for step in range(7):
        errors = {c: squared_error(columns, [*order[:step], c], columns) for c in order[step:]}
        assert errors[order[step]] == pytest.approx(min(errors.values()))


@pytest.mark.parametrize("rule", RULES)
def test_a_stack_selects_what_each_of_its_items_selects_alone(rule):
    rng = np.random.default_rng(2)
    items = [rng.normal(size=(30, 12)) for _ in range(5)]
    # Ranks that end at different steps, and one that never starts.
    items += [rng.normal(size=(4, 12)), planted(rng, 20, 6), np.zeros((3, 12)), np.ones((3, 12))]
    items[0][:, [2, 5]] = 0
    items[1] *= 1e-9
    grams = np.stack([gram_of(item) for item in items])
    alone = [forward_order(gram, rule) for gram in grams]
    together = forward_order(grams, rule)
    assert together.dtype == np.int64
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(forward_order(grams.reshape(3, 3, 12, 12), rule), together.reshape(3, 3, 12))


@pytest.mark.parametrize("rule", RULES)
def test_the_error_falls_with_every_selected_column(rule):
    columns = np.random.default_rng(3).normal(size=(20, 12)) * np.linspace(1, 5, 12)
    columns = unit(columns) if rule == "omp" else columns
    order = forward_order(gram_of(columns), rule)
    errors = [squared_error(columns, order[:k].tolist(), columns) for k in range(13)]
    assert (np.diff(errors) < 0).all()
    assert errors[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_as_many_columns_as_the_rank_reproduce_all(rule, seed):
    columns = planted(np.random.default_rng(seed), 40, 8)
    gram = gram_of(columns)
    for kept in (
        forward_order(gram, rule)[:8],
        backward_order([(gram, np.eye(len(gram)), np.arange(16)[:, None])])[0][8:],
    ):
        found = coefficients(gram, kept)
        np.testing.assert_allclose(columns[:, kept] @ found.T, columns, atol=1e-7 * np.abs(columns).max())


@pytest.mark.parametrize("rule", RULES)
def test_once_the_rank_is_reached_the_rest_follow_by_norm_and_zeros_come_last(rule):
    """A 1x1 convolution with more filters than inputs, one of them zero."""
    rng = np.random.default_rng(4)
    columns = unit(rng.normal(size=(5, 12))) * rng.permutation(np.arange(1, 13))
    columns[:, 3] = 0
    order = forward_order(gram_of(columns), rule)
    norms = np.linalg.norm(columns, axis=0)
    assert np.linalg.matrix_rank(columns[:, order[:5]]) == 5
    assert order[5:].tolist() == sorted(order[5:], key=lambda j: -norms[j])
    assert order[-1] == 3


@pytest.mark.parametrize("rule", RULES)
def test_of_equal_columns_the_first_are_selected(rule):
    columns = np.repeat(np.random.default_rng(5).normal(size=(7, 3)), 4, axis=1)
    order = forward_order(gram_of(columns), rule)
    assert sorted(order[:3]) == [0, 4, 8]
    assert order[3:].tolist() == sorted(order[3:], key=lambda j: (-(columns[:, j] ** 2).sum(), j))
    # Equal but for the rounding of their products.
    noise = np.random.default_rng(0).uniform(-1e-14, 1e-14, (6, 6))
    assert forward_order(1 + noise + noise.T, rule).tolist() == [0, 1, 2, 3, 4, 5]
    assert forward_order(np.zeros((6, 6)), rule).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("rule", RULES)
def test_small_columns_are_selected_before_large_dependent_ones(rule):
    rng = np.random.default_rng(5)
    large = 1e6 * rng.normal(size=(9, 2)) @ [[1, -2, 0.3], [0.1, 3, 0.7]]
    small = rng.normal(size=(9, 3)) * [1e-2, 1e-3, 1e-4]
    order = forward_order(gram_of(np.hstack([large, small])), rule)
    assert order[-1] in (0, 1, 2)


def test_scaling_a_column_leaves_orthogonal_matching_pursuit_unchanged():
    columns = np.random.default_rng(6).normal(size=(30, 12))
    before = forward_order(gram_of(columns), "omp")
    columns[:, 3] *= 100
    assert forward_order(gram_of(columns), "omp").tolist() == before.tolist()


def test_duplicate_and_zero_columns_are_never_selected_before_the_others():
    columns = np.random.default_rng(7).normal(size=(10, 5))
    columns = np.column_stack([columns, columns[:, 0], np.zeros(10)])
    gram = gram_of(columns)
    for rule in RULES:
        order = forward_order(gram, rule).tolist()
        assert sorted(order) == list(range(7))
        assert order[5:] == [5, 6]
    order, increase = backward_order([(gram, np.eye(len(gram)), np.arange(7)[:, None])])
    assert set(order[:2]) <= {0, 5, 6}
    assert increase[:2] == pytest.approx([0, 0], abs=1e-5)


# ----------------------------------------------------------------------------------------------------- coefficients


@pytest.mark.parametrize(("size", "dimension", "count"), [(8, 30, 3), (16, 144, 8), (12, 13, 11), (9, 9, 1)])
def test_coefficients_are_those_of_least_squares(size, dimension, count):
    rng = np.random.default_rng(size)
    columns = rng.normal(size=(dimension, size)) * rng.uniform(0.1, 10, size)
    kept = rng.choice(size, count, replace=False)
    found = coefficients(gram_of(columns), kept)
    expected = np.linalg.lstsq(columns[:, kept], columns, rcond=None)[0].T
    assert found.shape == (size, count)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert found[kept].tolist() == np.eye(count).tolist()


@pytest.mark.parametrize("size", [6, 20])
def test_the_schur_complement_holds_the_squared_error_of_every_column(size):
    """||e_j||^2 = |f_j|^2 P_jj with P of unit columns, and what a convolution loses on patches X is ||X e_j||^2."""
    rng = np.random.default_rng(size)
    columns = rng.normal(size=(27, size)) * rng.uniform(0.1, 10, size)
    gram = gram_of(columns)
    kept = forward_order(gram, "omp")[: size // 2]
    found = coefficients(gram, kept)
    norms = np.sqrt(np.diag(gram))
    unit_gram = gram / np.outer(norms, norms)
    inverse = np.linalg.inv(unit_gram[np.ix_(kept, kept)])
    schur = unit_gram - unit_gram[:, kept] @ inverse @ unit_gram[kept]
    errors = ((columns - columns[:, kept] @ found.T) ** 2).sum(axis=0)
    np.testing.assert_allclose(norms**2 * np.diag(schur), errors, atol=1e-9 * errors.max())
    exact = [squared_error(columns, kept.tolist(), columns[:, [j]]) for j in range(size)]
    np.testing.assert_allclose(errors, exact, atol=1e-9 * errors.max())
    patches = rng.normal(size=(50, 27))
    outputs = patches @ columns
    lost = outputs - outputs[:, kept] @ found.T
    np.testing.assert_allclose(lost, patches @ (columns - columns[:, kept] @ found.T), atol=1e-9)


def test_scaling_a_column_rescales_its_coefficients_and_nothing_else():
    columns = np.random.default_rng(8).normal(size=(30, 12))
    kept = forward_order(gram_of(columns), "omp")[:6]
    removed = np.setdiff1d(np.arange(12), kept)
    before = coefficients(gram_of(columns), kept)
    fitted = columns[:, kept] @ before.T
    scale = np.ones(12)
    scale[[kept[2], removed[1]]] = 100
    after = coefficients(gram_of(columns * scale), kept)
    np.testing.assert_allclose((columns * scale)[:, kept] @ after.T, fitted * scale, atol=1e-8)
    np.testing.assert_allclose(after, before * scale[:, None] / scale[kept], atol=1e-8)


def test_coefficients_follow_the_order_of_the_kept_columns():
    """Sorting the support after solving for its coefficients is how a compensation goes wrong unseen."""
    columns = np.random.default_rng(9).normal(size=(30, 12))
    gram = gram_of(columns)
    kept = forward_order(gram, "omp")[:6]
    assert kept.tolist() != sorted(kept)
    straight, sideways = coefficients(gram, kept), coefficients(gram, np.sort(kept))
    np.testing.assert_allclose(columns[:, kept] @ straight.T, columns[:, np.sort(kept)] @ sideways.T, atol=1e-9)
    np.testing.assert_allclose(straight[:, np.argsort(kept)], sideways, atol=1e-9)
    assert np.abs(straight - sideways).max() > 0.1


def test_coefficients_of_dependent_and_zero_columns_are_finite_and_exact():
    rng = np.random.default_rng(10)
    columns = rng.normal(size=(10, 5))
    columns = np.column_stack([columns, columns[:, 0], np.zeros(10), columns[:, 0] - 3 * columns[:, 1]])
    kept = np.array([6, 5, 0, 1, 2])
    found = coefficients(gram_of(columns), kept)
    np.testing.assert_allclose(columns[:, kept] @ found[[0, 5, 7]].T, columns[:, [0, 5, 7]], atol=1e-9)
    errors = ((columns - columns[:, kept] @ found.T) ** 2).sum(axis=0)
    exact = [squared_error(columns, [0, 1, 2], columns[:, [j]]) for j in range(8)]
    np.testing.assert_allclose(errors, exact, atol=1e-9)
    assert found[:5, 0].tolist() == [0, 0, 0, 0, 0], "a zero column stands for another"
    assert np.abs(found).max() < 10
    assert coefficients(np.zeros((4, 4)), np.array([2, 1]))[0].tolist() == [0, 0]


@pytest.mark.parametrize("dimension", [3, 4608])
def test_coefficients_survive_layers_of_equal_columns(dimension):
    columns = np.repeat(np.random.default_rng(11).normal(size=(dimension, 2)), 300, axis=1)
    kept = np.arange(100, 500)
    found = coefficients(gram_of(columns), kept)
    np.testing.assert_allclose(columns[:, kept] @ found.T, columns, atol=1e-6)


# --------------------------------------------------------------------------------------------- backward elimination


def test_backward_elimination_costs_exactly_the_rise_of_the_squared_error():
    rng = np.random.default_rng(2)
    x, kernel = rng.normal(size=(200, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(7, 5))
    gram, targets = x.T @ x, x @ kernel
    order, increase = backward_order([(gram, kernel, np.arange(7)[:, None])])
    kept, error = list(range(7)), 0.0
    for unit, rise in zip(order, increase, strict=True):
        cheapest = min(kept, key=lambda u: squared_error(x, [k for k in kept if k != u], targets))
        assert unit == cheapest
        kept.remove(unit)
        after = squared_error(x, kept, targets)
        assert rise == pytest.approx(after - error, rel=1e-4)
        error = after


def test_backward_elimination_drops_blocks_of_columns_and_sums_over_consumers():
    rng = np.random.default_rng(3)
    problems, parts = [], []
    for outputs in (3, 4):
        x, kernel = rng.normal(size=(300, 8)), rng.normal(size=(8, outputs))
        columns = np.arange(8).reshape(4, 2)
        problems.append((x.T @ x, kernel, columns))
        parts.append((x, x @ kernel))
    order, increase = backward_order(problems)

    def total(units: list[int]) -> float:
        kept = [c for u in units for c in (2 * u, 2 * u + 1)]
        return sum(squared_error(x, kept, y) for x, y in parts)

    first = min(range(4), key=lambda u: total([k for k in range(4) if k != u]))
    assert order[0] == first
    assert np.cumsum(increase) == pytest.approx([total(sorted(order[k + 1 :])) for k in range(4)], rel=1e-4)


@pytest.mark.parametrize("own", [1, 3], ids=["a column each", "three columns each"])
def test_more_units_than_a_block_holds_are_eliminated_as_by_least_squares(own, monkeypatch):
    monkeypatch.setattr(greedy, "_ROWS", 16)
    rng, units = np.random.default_rng(own), 150
    columns = rng.normal(size=(4 * units * own, units * own))
    kernel, numbers = rng.normal(size=(units * own, 7)), rng.permutation(units * own).reshape(units, own)
    order, increase = backward_order([(gram_of(columns), kernel, numbers)])
    for count in (60, 70, 100, 135):
        missed = squared_error(columns, numbers[order[count:]].ravel(), columns @ kernel)
        np.testing.assert_allclose(increase[:count].sum(), missed, rtol=1e-5)


# ----------------------------------------------------------------------------------------------- replaceable filters


@pytest.mark.parametrize("consumers", [1, 2])
@pytest.mark.parametrize(("units", "columns"), [(9, 1), (6, 3)])
def test_forward_selection_takes_the_unit_that_explains_most_at_every_step(units, columns, consumers):
    """By least squares on every unit that could be next, the errors of all consumers added."""
    rng = np.random.default_rng(units)
    samples = [
        rng.normal(size=(80, units * columns)) @ rng.normal(size=(units * columns,) * 2) for _ in range(consumers)
    ]
    kernels = [rng.normal(size=(units * columns, 4)) for _ in range(consumers)]
    own = rng.permutation(units * columns).reshape(units, columns)

    def error(chosen: list[int]) -> float:
        pairs = [(x[:, own[chosen].ravel()], x @ w) for x, w in zip(samples, kernels, strict=True)]
        return sum(np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum() for x, y in pairs)

    order, gain = forward_units([(gram_of(x), w, own) for x, w in zip(samples, kernels, strict=True)])
    chosen: list[int] = []
    for unit, explained in zip(order.tolist(), gain, strict=True):
        errors = {other: error([*chosen, other]) for other in range(units) if other not in chosen}
        assert unit == min(errors, key=errors.__getitem__)
        before = error(chosen) if chosen else sum(np.square(x @ w).sum() for x, w in zip(samples, kernels, strict=True))
        assert explained == pytest.approx(before - errors[unit], rel=1e-4, abs=1e-6 * gain[0])
        chosen.append(unit)


def test_forward_selection_leaves_dead_and_double_units_for_the_end():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8))
    x[:, 3], x[:, 6] = 0, x[:, 1]
    order, gain = forward_units([(gram_of(x), rng.normal(size=(8, 5)), np.arange(8)[:, None])])
    assert sorted(order) == list(range(8))
    assert {3} | ({1, 6} & set(order[-2:])) == set(order[-2:])
    assert gain[-2:] == pytest.approx([0, 0], abs=1e-5 * gain[0])


def replace_by_definition(columns: np.ndarray, downstream: np.ndarray) -> tuple[list[int], list[float]]:
    """LRF as published: fit every remaining filter by the others, remove the cheapest, compensate, repeat."""
    kept, read = list(range(columns.shape[1])), downstream.copy()
    order, errors = [], []
    while kept:
        best = None
        for j in kept:
            others = [k for k in kept if k != j]
            fit = np.linalg.lstsq(columns[:, others], columns[:, j], rcond=None)[0]
            error = np.linalg.norm(columns[:, j] - columns[:, others] @ fit) * np.linalg.norm(read[j])
            if best is None or error < best[0]:
                best = error, j, others, fit
        error, j, others, fit = best
        read[others] += np.outer(fit, read[j])
        kept.remove(j)
        order.append(j)
        errors.append(error)
    return order, errors


def recomputed(columns: np.ndarray, downstream: np.ndarray, order: np.ndarray) -> list[float]:
    """Squared error of the output columns @ downstream after each removal, from scratch."""
    return [squared_error(columns, order[k + 1 :].tolist(), columns @ downstream) for k in range(len(order))]


@pytest.mark.parametrize(("size", "dimension", "outputs"), [(8, 20, 3), (10, 40, 10), (7, 9, 50), (1, 4, 2)])
def test_replaceable_order_is_that_of_the_definition(size, dimension, outputs):
    rng = np.random.default_rng(outputs)
    columns = rng.normal(size=(dimension, size)) * rng.uniform(0.3, 3, size)
    downstream = rng.normal(size=(size, outputs)) * rng.uniform(0.1, 10, (size, 1))
    order, errors = replaceable_order(gram_of(columns), downstream)
    expected, costs = replace_by_definition(columns, downstream)
    assert order.tolist() == expected
    assert errors == pytest.approx(costs, rel=1e-5)
    # What one removal loses is orthogonal to all that remains: the squares add up.
    np.testing.assert_allclose(np.cumsum(errors**2), recomputed(columns, downstream, order), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_before_untrained_convolutions_replaceable_order_is_backward_elimination(seed):
    columns = np.random.default_rng(seed).normal(size=(40, 15))
    gram = gram_of(columns)
    order, errors = replaceable_order(gram, np.eye(15))
    expected, increase = backward_order([(gram, np.eye(len(gram)), np.arange(15)[:, None])])
    assert order.tolist() == expected.tolist()
    np.testing.assert_allclose(errors**2, increase, rtol=1e-5)


def test_an_exactly_replaceable_filter_goes_first_and_changes_nothing():
    rng = np.random.default_rng(12)
    columns, downstream = rng.normal(size=(30, 10)), rng.normal(size=(10, 6))
    columns[:, 7] = 0.6 * columns[:, 1] - 0.7 * columns[:, 4] + 0.5 * columns[:, 8]
    order, errors = replaceable_order(gram_of(columns), downstream)
    assert order[0] in (1, 4, 7, 8)
    assert errors[0] == pytest.approx(0, abs=1e-6)
    assert errors[1] > 1
    kept = np.sort(order[1:])
    compensated = coefficients(gram_of(columns), kept).T @ downstream
    np.testing.assert_allclose(columns[:, kept] @ compensated, columns @ downstream, atol=1e-8)


def test_a_filter_that_hardly_anything_reads_goes_first_however_poorly_it_is_replaced():
    rng = np.random.default_rng(13)
    columns, downstream = rng.normal(size=(30, 10)), rng.normal(size=(10, 6))
    columns[:, 5] = 0
    columns[20:, 5] = 50
    columns[20:, np.arange(10) != 5] = 0
    assert replaceable_order(gram_of(columns), downstream)[0][0] != 5
    downstream[5] *= 1e-6
    order, errors = replaceable_order(gram_of(columns), downstream)
    assert order[0] == 5
    lost = np.linalg.norm(columns[:, 5]) * np.linalg.norm(downstream[5])
    assert errors[0] == pytest.approx(lost, rel=1e-5)


@pytest.mark.parametrize("dimension", [4, 9])
def test_more_filters_than_dimensions_are_replaced_at_no_cost_down_to_the_rank(dimension):
    """1x1 convolutions with duplicate and zero filters."""
    rng = np.random.default_rng(dimension)
    columns, downstream = rng.normal(size=(dimension, 16)), rng.normal(size=(16, 5))
    columns[:, 3] = columns[:, 11]
    columns[:, 8] = 0
    order, errors = replaceable_order(gram_of(columns), downstream)
    assert sorted(order) == list(range(16))
    assert np.abs(errors[: 16 - dimension]).max() < 1e-5
    assert np.linalg.matrix_rank(columns[:, order[16 - dimension :]]) == dimension
    expected = recomputed(columns, downstream, order)
    np.testing.assert_allclose(np.cumsum(errors**2), expected, rtol=1e-4, atol=1e-9)


def test_replaceable_order_of_a_layer_of_zeros_costs_nothing():
    order, errors = replaceable_order(np.zeros((4, 4)), np.ones((4, 2)))
    assert sorted(order) == [0, 1, 2, 3]
    assert errors == pytest.approx(np.zeros(4))
    gram = gram_of(np.random.default_rng(0).normal(size=(9, 4)))
    assert replaceable_order(gram, np.zeros((4, 2)))[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize("size", [0.0, 1e-160, 1e-30])
def test_layers_that_read_next_to_nothing_leave_the_range_of_numbers_nowhere(size, m):
    rng = np.random.default_rng(0)
    a = size**0.5 * rng.normal(size=(4 * m, 8 * m))
    columns = np.arange(8 * m).reshape(8, m)
    problem = a.T @ a, 100 * rng.normal(size=(8 * m, 5)), columns
    for order in (backward_order, forward_units):
        units, values = order([problem])
        assert sorted(units) == list(range(8))
        assert np.isfinite(values).all()
