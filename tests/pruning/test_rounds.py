"""Rounds: the budget is reached in steps, and what stays is counted in filters of the original."""

import functools
import math
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from builders import array, assert_all_equal, chain, images, total_macs, values

import keras_filterprune as kfp
from keras_filterprune import Method, criteria

QUIET = {"verify": False, "progress": False}


@pytest.mark.parametrize("rounds", [2, 3, 4])
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_rounds_go_by_equal_factors_of_the_cost(rounds, keep):
    model, seen = chain(), []
    recipe = Method(criteria.L2(), rounds=rounds)
    kfp.prune_model(model, recipe, keep, finetune=lambda small: seen.append(total_macs(small)), **QUIET)
    limits = [total_macs(model) * keep ** (number / rounds) for number in range(1, rounds + 1)]
    assert len(seen) == rounds
    assert all(0.97 * limit < macs <= limit for limit, macs in zip(limits, seen, strict=True))


@pytest.mark.parametrize("method", [Method(criteria.L2(), rounds=3), "hu_ga", "search"], ids=str)
def test_what_stays_is_counted_in_filters_of_the_original(method):
    model, data = chain((12, 10, 8)), (images(32, (6, 6, 3)), np.arange(32) % 3)
    small, report = kfp.prune_model(
        model, method, 0.4, data=data, compensate="none", finetune=lambda _: None, return_report=True, **QUIET
    )
    assert report.plan.kept
    read = np.arange(3)
    for name in ("conv0", "conv1", "conv2"):
        before, after = (array(m.get_layer(name).kernel) for m in (model, small))
        made = report.plan.kept.get(name, np.arange(before.shape[-1]))
        assert (after == before[:, :, read][..., made]).all()
        read = made


class Seen(criteria.Energy):
    """Notes how many samples it looks at."""

    counts: ClassVar[list[int]] = []

    def observe(self, graph, weights, data, progress):
        self.counts.append(sum(len(part.inputs[0]) for part in data.read(graph.view)))
        return super().observe(graph, weights, data, progress)


class Shown(kfp.compensators.BNRecalibration):
    """Notes how many samples it takes."""

    counts: ClassVar[list[int]] = []

    def apply(self, rebuilt, data, progress=True):
        self.counts.append(sum(len(part.inputs[0]) for part in data.read(rebuilt.graph.view)))
        return "nothing"


@pytest.mark.parametrize(("samples", "before"), [(200, 100), (129, 65), (100, 100)])
def test_before_the_last_cut_every_second_sample_is_looked_at(samples, before, monkeypatch):
    for part in (Seen, Shown):
        monkeypatch.setattr(part, "counts", [])
    recipe = Method(Seen(), compensator=Shown(), rounds=3)
    kfp.prune_model(chain((12, 10, 8)), recipe, 0.4, data=images(samples, (6, 6, 3)), **QUIET)
    assert Seen.counts == [before, before, samples]
    assert Shown.counts == [before, before, samples]


class Narrowed(kfp.budgets.CountBudget):
    """Every group loses so many filters."""

    def counts(self, groups, redundant):
        return np.array([max(1, group.size - 5) for group in groups])


COUNTED = {
    "share": (criteria.L2(), kfp.FiltersBudget(0.5)),
    "uneven share": (criteria.L1(), kfp.FiltersBudget(0.3)),
    "shares by layer": (criteria.L2(), kfp.FiltersBudget({"conv0": 0.5, "conv2": 0.25})),
    "everything": (criteria.L2(), kfp.FiltersBudget(1.0)),
    "redundant": (criteria.Similarity(), kfp.budgets.RedundancyBudget()),
    "own": (criteria.L2(), Narrowed()),
}


@functools.cache
def counted(kind, multiple):
    """A model, and what is left of it in one round."""
    (criterion, budget), model = COUNTED[kind], chain((16, 14, 12))
    return model, kfp.prune_model(model, Method(criterion), budget, channel_multiple=multiple, **QUIET)


# Every kind meets both multiples, every multiple all of (training, rounds).
COUNTS = [
    (kind, multiple, *[(False, 2), (True, 2), (True, 3)][(number + turn) % 3])
    for number, kind in enumerate(COUNTED)
    for turn, multiple in enumerate((1, 4))
]


@pytest.mark.parametrize(("kind", "multiple", "trained", "rounds"), COUNTS)
def test_counts_are_the_same_in_any_number_of_rounds_and_with_training_between(kind, multiple, trained, rounds):
    (criterion, budget), (model, once) = COUNTED[kind], counted(kind, multiple)
    options, calls = {"channel_multiple": multiple, **QUIET}, []
    hook = {"finetune": lambda small: calls.append(widths(small))} if trained else {}
    small = kfp.prune_model(model, Method(criterion, rounds=rounds), budget, **hook, **options)
    assert widths(small) == widths(once)
    if trained:
        assert len(calls) == rounds and calls[-1] == widths(small)
    if trained and multiple == 1:
        equal = [
            tuple(math.ceil(n * (k / n) ** (number / rounds)) for n, k in zip((16, 14, 12), widths(once), strict=True))
            for number in range(1, rounds)
        ]
        assert [tuple(found) for found in calls[:-1]] == equal


def widths(model):
    return [layer.filters for layer in model.layers if hasattr(layer, "filters")]


REPLAYED = {
    "rounds": Method(criteria.CaP(), kfp.allocators.Global(0.5), kfp.compensators.LeastSquares(), rounds=2),
    "one by one": Method(
        criteria.Genetic(generations=5),
        kfp.allocators.Sensitivity((0.5,), "error"),
        kfp.compensators.LeastSquares(),
        one_by_one=True,
    ),
    "search": Method(criteria.CaP(), kfp.allocators.Search(4, "error"), kfp.compensators.LeastSquares()),
}


@pytest.mark.parametrize("compensate", ["none", "bn", "least_squares"])
@pytest.mark.parametrize("kind", REPLAYED)
def test_without_training_a_plan_replays_whatever_its_choice_took(kind, compensate):
    model, x = chain((12, 10, 8)), images(64, (6, 6, 3))
    given = {"data": x, "compensate": compensate, **QUIET}
    small, report = kfp.prune_model(model, REPLAYED[kind], 0.5, return_report=True, **given)
    again = kfp.apply_plan(model, report.plan, **given)
    assert_all_equal(values(small), values(again))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("budget", "left"),
    [
        (kfp.FiltersBudget({"conv0": 0.5, "conv1": 0.75}), [8, 12, 12]),
        (kfp.FiltersBudget({"conv2": 0.25}), [16, 16, 3]),
        (kfp.FiltersBudget(0.5), [8, 8, 6]),
    ],
    ids=str,
)
def test_rates_by_hand_are_cut_one_by_one_in_measured_order(budget, left, trained):
    model, data, calls = chain((16, 16, 12)), (images(32, (6, 6, 3)), np.arange(32) % 3), []
    hook = {"finetune": lambda small: calls.append(widths(small))} if trained else {}
    small = kfp.prune_model(model, "hu_ga", budget, data=data, **hook, **QUIET)
    assert widths(small) == left
    if trained:
        changed = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise([[16, 16, 12], *calls])]
        assert changed == [1] * sum(n != whole for n, whole in zip(left, (16, 16, 12), strict=True))
