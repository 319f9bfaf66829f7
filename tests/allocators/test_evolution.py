"""Evolution of widths: within the budget, no worse than uniform, alike for equal seeds and in other processes."""

from __future__ import annotations

import itertools
import math

import keras
import numpy as np
import pytest
from builders import chain, images
from keras import layers

import keras_filterprune as kfp
from keras_filterprune import allocators, compensators, criteria, errors
from keras_filterprune.allocators import Allocation

SETTINGS = {"population": 12, "generations": 4}


def problem(limit: float, score, sizes=(16, 16), floors: int = 1) -> Allocation:
    """1x1 convolutions in a row; `score` is a function of kept counts."""
    x = inputs = keras.Input((4, 4, 1))
    for size in sizes:
        x = layers.ReLU()(layers.Conv2D(size, 1, use_bias=False)(x))
    costs = kfp.budgets.CostModel(kfp.analyze(keras.Model(inputs, layers.Conv2D(1, 1, use_bias=False)(x))))
    return Allocation(
        costs.sizes,
        np.full(len(sizes), floors),
        [range(1, size + 1) for size in sizes],
        costs.macs,
        int(limit * costs.macs(costs.sizes)),
        scores=lambda group: np.zeros(0),
        evaluate=score,
        evaluate_all=lambda keeps: map(score, keeps),
    )


def score_of(kept: np.ndarray) -> float:
    """More is better, and most so in the first group."""
    return -float((np.array([9, 1, 2, 1, 4, 1])[: len(kept)] / kept).sum())


def test_the_best_widths_are_found_and_the_budget_is_spent():
    task = problem(0.5, score_of)
    found = allocators.Evolution(population=30, generations=10).allocate(task)
    assert 0.9 * task.limit <= task.cost(found) <= task.limit
    pairs = [np.array(pair) for pair in itertools.product(range(1, 17), repeat=2)]
    assert score_of(found) == max(score_of(pair) for pair in pairs if task.feasible(pair))
    assert score_of(found) > score_of(allocators.Uniform().allocate(task))


def test_no_worse_than_uniform_even_without_generations():
    def score(kept):
        return -abs(int(kept[0]) - int(kept[1]))

    found = allocators.Evolution(population=10, generations=0).allocate(problem(0.5, score))
    assert abs(found[0] - found[1]) <= 1


def test_generations_get_better_and_nothing_is_tried_twice():
    tried = []

    def score(kept):
        tried.append(tuple(kept))
        return score_of(kept)

    best = [score_of(allocators.Evolution(12, g).allocate(problem(0.3, score, (32,) * 6))) for g in (0, 3, 15)]
    assert best[0] < best[1] < best[2]
    tried.clear()
    allocators.Evolution(12, 15).allocate(problem(0.3, score))
    assert len(tried) == len(set(tried)) < 12 * 16


def test_floors_hold():
    found = allocators.Evolution(**SETTINGS).allocate(problem(0.4, lambda kept: -float(kept[0]), floors=5))
    assert found.min() >= 5


def test_the_reward_weighs_accuracy_against_cost():
    whole = 0.9

    def score(kept):
        # Nothing is lost down to half of the filters, much below.
        return whole - max(0.0, 8 - kept.min()) * 0.1

    task = problem(0.9, score)
    found = allocators.Evolution(30, 15, "reward").allocate(task)
    share = task.cost(found) / task.cost(task.sizes)
    assert found.min() >= 8 and share < 0.45
    reward = (whole / 1e-3) ** 2 * -math.log(share)
    best = max(
        (whole / max(whole - score(np.array([a, b])), 1e-3)) ** 2
        * -math.log(task.cost(np.array([a, b])) / task.cost(task.sizes))
        for a in range(8, 15)
        for b in range(8, 15)
    )
    assert reward > 0.7 * best


def test_seeds_settle_everything():
    task = problem(0.3, score_of, (32,) * 6)
    found = [allocators.Evolution(**SETTINGS, seed=s).allocate(task).tolist() for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_a_model_is_pruned_and_two_processes_agree_with_one(two_processes):
    model, x = chain((8, 8, 8), 8), images()
    y = keras.ops.convert_to_numpy(model(x)).argmax(axis=1)
    plans = []
    for executor in (None, two_processes):
        method = kfp.Method(criteria.L2(), allocators.Evolution(10, 1, executor=executor), compensators.LeastSquares())
        plans.append(kfp.plan_pruning(model, method, 0.5, data=(x, y), progress=False))
    kept = [{g["name"]: len(g["kept"]) for g in plan.groups} for plan in plans]
    assert kept[0] == kept[1]
    before, after = plans[0].cost["macs"]
    assert 0.9 * 0.5 <= after / before <= 0.5
    method = kfp.Method(criteria.L2(), allocators.Evolution(10, 0, measure="error"), compensators.LeastSquares())
    kfp.prune_model(model, method, 0.5, data=x, progress=False)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"population": 9}, errors.InvalidValueError),
        ({"generations": -1}, errors.InvalidValueError),
        ({"executor": 2}, errors.InvalidValueError),
        ({"seed": True}, errors.InvalidValueError),
        ({"fitness": "best"}, errors.UnknownNameError),
        ({"fitness": "reward", "measure": "error"}, errors.InvalidValueError),
        ({"measure": "losses"}, errors.UnknownNameError),
    ],
)
def test_settings_out_of_range(settings, error):
    with pytest.raises(error, match="Received"):
        allocators.Evolution(**settings)


def test_a_budget_of_filters_decides_what_evolution_decides():
    with pytest.raises(errors.InfeasibleBudgetError, match="decides how many filters every group keeps"):
        kfp.prune_model(
            chain((8, 8, 8), 8),
            kfp.Method(criteria.L2(), allocators.Evolution()),
            kfp.FiltersBudget(0.5),
            data=images(),
        )
