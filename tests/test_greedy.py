"""Greedy selection on Gram matrices against its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune.criteria.greedy import backward_order, forward_order
from keras_filterprune.graph.types import Group, Member


def squared_error(columns: np.ndarray, kept: list[int], targets: np.ndarray) -> float:
    """Least squares of the targets on the kept columns, by lstsq."""
    if not kept:
        return float((targets**2).sum())
    fit = np.linalg.lstsq(columns[:, kept], targets, rcond=None)[0]
    return float(((targets - columns[:, kept] @ fit) ** 2).sum())


def pursuit(atoms: np.ndarray) -> list[int]:
    """Simultaneous orthogonal matching pursuit by its definition: refit all targets after every choice."""
    chosen: list[int] = []
    while len(chosen) < atoms.shape[1]:
        residual = atoms
        if chosen:
            residual = atoms - atoms[:, chosen] @ np.linalg.lstsq(atoms[:, chosen], atoms, rcond=None)[0]
        score = np.abs(residual.T @ atoms).sum(axis=0)
        score[chosen] = -np.inf
        chosen.append(int(np.argmax(score)))
    return chosen


@pytest.mark.parametrize(("size", "dimension"), [(6, 20), (16, 144), (12, 13)])
def test_pivoted_form_selects_what_orthogonal_matching_pursuit_selects(size, dimension):
    columns = np.random.default_rng(size).normal(size=(dimension, size))
    atoms = columns / np.linalg.norm(columns, axis=0)
    assert forward_order(atoms.T @ atoms, "omp").tolist() == pursuit(atoms)


def test_gain_takes_the_largest_drop_of_the_squared_error_at_every_step():
    columns = np.random.default_rng(1).normal(size=(30, 8)) * np.arange(1, 9)
    order = forward_order(columns.T @ columns, "gain").tolist()
    for step in range(7):
        errors = {c: squared_error(columns, [*order[:step], c], columns) for c in order[step:]}
        assert errors[order[step]] == pytest.approx(min(errors.values()))


def test_backward_elimination_costs_exactly_the_rise_of_the_squared_error():
    rng = np.random.default_rng(2)
    x, kernel = rng.normal(size=(200, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(7, 5))
    gram, targets = x.T @ x, x @ kernel
    order, increase = backward_order([(gram, gram @ kernel, np.arange(7)[:, None])])
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
        problems.append((x.T @ x, x.T @ x @ kernel, columns))
        parts.append((x, x @ kernel))
    order, increase = backward_order(problems)

    def total(units: list[int]) -> float:
        kept = [c for u in units for c in (2 * u, 2 * u + 1)]
        return sum(squared_error(x, kept, y) for x, y in parts)

    first = min(range(4), key=lambda u: total([k for k in range(4) if k != u]))
    assert order[0] == first
    assert np.cumsum(increase) == pytest.approx([total(sorted(order[k + 1 :])) for k in range(4)], rel=1e-4)


def test_duplicate_and_zero_columns_are_never_selected_before_the_others():
    columns = np.random.default_rng(4).normal(size=(10, 5))
    columns = np.column_stack([columns, columns[:, 0], np.zeros(10)])
    for rule in ("omp", "gain"):
        order = forward_order(columns.T @ columns, rule).tolist()
        assert sorted(order) == list(range(7))
        assert order[-1] == 6
        assert {0, 5} & {order[-2]}
    gram = columns.T @ columns
    order, increase = backward_order([(gram, gram, np.arange(7)[:, None])])
    assert set(order[:2]) <= {0, 5, 6}
    assert increase[:2] == pytest.approx([0, 0], abs=1e-5)


def one_member_group(filters: int) -> Group:
    member = Member("conv", "kernel", 3, "filter", np.arange(filters)[:, None])
    return Group("conv", np.arange(filters), (member,))


def test_scaling_one_filter_leaves_the_selection_of_fp_omp_unchanged():
    kernel = np.random.default_rng(5).normal(size=(3, 3, 4, 12))
    scaled = kernel.copy()
    scaled[..., 3] *= 100
    group = one_member_group(12)
    before = kfp.FPOMP().scores(group, {("conv", "kernel"): kernel})
    after = kfp.FPOMP().scores(group, {("conv", "kernel"): scaled})
    assert before.tolist() == after.tolist()


def test_lrf_removes_first_the_filter_that_the_others_replace_best():
    kernel = np.random.default_rng(6).normal(size=(3, 3, 4, 10))
    kernel[..., 7] = kernel[..., 1] - 2 * kernel[..., 4] + 0.5 * kernel[..., 8]
    scores = kfp.LRF().scores(one_member_group(10), {("conv", "kernel"): kernel})
    assert np.argmin(scores) in (1, 4, 7, 8)
    columns = kernel.reshape(-1, 10)
    errors = [squared_error(columns, [k for k in range(10) if k != j], columns) for j in range(10)]
    kernel[..., 7] += 0.01 * np.random.default_rng(7).normal(size=(3, 3, 4))
    scores = kfp.LRF().scores(one_member_group(10), {("conv", "kernel"): kernel})
    assert errors[7] == pytest.approx(0, abs=1e-9)
    assert np.argmin(scores) in (1, 4, 7, 8)
