"""Tolerance prunes as far as the drop allows, and no further than the budget asks for."""

from __future__ import annotations

import numpy as np
import pytest
from builders import images, kept_counts
from trials import chain, kept_of, labelled, trial_of, without_readers

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors


def tolerated(model, data, budget=1.0, criterion=None, **settings) -> kfp.PruningPlan:
    method = kfp.Method(criterion or criteria.Energy(), allocators.Tolerance(**settings))
    return kfp.plan_pruning(model, method, budget, data=data, progress=False)


@pytest.mark.parametrize("drop", [0.0, 1e-5])
@pytest.mark.parametrize("floor", ["linear", "per_layer"])
def test_dead_channels_go_for_nothing_and_all_others_stay(floor, drop):
    model = without_readers(chain(), conv1=[1, 5], conv2=[0], conv3=[2, 3, 7])
    plan = tolerated(model, images(), drop=drop, floor=floor, measure="error")
    assert {name: units.tolist() for name, units in kept_of(plan).items()} == {
        "conv1": [0, 2, 3, 4, 6, 7],
        "conv2": [1, 2, 3, 4, 5, 6, 7],
        "conv3": [0, 1, 4, 5, 6],
    }


def test_no_drop_of_accuracy_keeps_the_accuracy():
    model = without_readers(chain(), conv1=[1, 5], conv3=[2])
    data = labelled(model, images())
    plan = tolerated(model, data, drop=0.0)
    assert trial_of(kfp.analyze(model), data, "accuracy")(kept_of(plan)) == 1.0
    assert not {1, 5} & set(plan.kept["conv1"])
    assert 2 not in plan.kept["conv3"]


@pytest.mark.parametrize("measure", ["accuracy", "error"])
@pytest.mark.parametrize("floor", ["linear", "per_layer"])
def test_a_tolerance_is_never_exceeded_and_a_larger_one_prunes_more(floor, measure):
    model = chain()
    data = labelled(model, images())
    trial = trial_of(kfp.analyze(model), data, measure)
    costs = []
    for drop in (0.01, 0.05, 0.2, 0.5):
        plan = tolerated(model, data, drop=drop, floor=floor, measure=measure)
        assert trial(kept_of(plan)) >= trial({}) - drop - 1e-6
        costs.append(plan.cost["macs"][1])
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.6 * plan.cost["macs"][0]


def test_a_tolerance_per_layer_gives_every_group_its_share():
    """What the first group does not use is left over; the linear floor hands it on to the next."""
    model = without_readers(chain(), conv1=[0, 1, 2, 3])
    drop, x = 0.6, images()
    graph = kfp.analyze(model)
    trial = trial_of(graph, x, "error")
    for floor in ("linear", "per_layer"):
        kept, score = {}, trial({})
        for done, (name, units) in enumerate(
            kept_of(tolerated(model, x, drop=drop, floor=floor, measure="error")).items(), 1
        ):
            kept[name] = units
            least = -drop * done / 3 if floor == "linear" else score - drop / 3
            assert trial(kept) >= least - 1e-6
            if len(units) > 1:
                # One unit fewer would be one too many.
                fewer = criteria.Energy().observe(graph, {}, x, False).select(graph.by_name[name], len(units) - 1, {})
                assert trial(kept | {name: fewer}) < least
            score = trial(kept)


@pytest.mark.parametrize("measure", ["accuracy", "error"])
@pytest.mark.parametrize("kind", [kfp.MacsBudget, kfp.ParamsBudget])
@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_without_a_drop_the_budget_is_met_and_spent(keep, kind, measure):
    model = chain()
    plan = tolerated(model, labelled(model, images()), kind(keep=keep), measure=measure)
    cost = {kfp.MacsBudget: "macs", kfp.ParamsBudget: "params"}[kind]
    limit = keep * plan.cost[cost][0]
    assert plan.cost[cost][1] <= limit
    model_cost, counts = getattr(kfp.budgets.CostModel(kfp.analyze(model)), cost), list(kept_counts(plan).values())
    steps = [np.array(counts) + np.eye(3, dtype=int)[n] for n in range(3) if counts[n] < 8]
    assert plan.cost[cost][1] >= 0.99 * limit or all(model_cost(step) > limit for step in steps)


def test_a_budget_gives_back_what_the_drop_would_allow_to_take():
    model = chain()
    alone, together = (tolerated(model, images(), budget, drop=0.5, measure="error") for budget in (1.0, 0.8))
    assert alone.cost["macs"][1] < together.cost["macs"][1] <= 0.8 * together.cost["macs"][0]
    assert all(kept_counts(together)[name] >= count for name, count in kept_counts(alone).items())


def test_a_drop_that_the_budget_does_not_fit_is_named_with_numbers():
    model = chain()
    plan = tolerated(model, images(), drop=0.01, measure="error")
    full, reached = plan.cost["macs"]
    with pytest.raises(errors.InfeasibleBudgetError) as caught:
        tolerated(model, images(), 0.3, drop=0.01, measure="error")
    assert str(caught.value) == (
        f"Tolerance(drop=0.01, floor='linear', measure='error') leaves a cost of {reached:,}; the budget allows "
        f"{int(0.3 * full):,}. Allow a larger drop or a larger budget."
    )


@pytest.mark.parametrize("allocator", [allocators.Tolerance(), allocators.Search()], ids=repr)
def test_a_budget_of_filters_decides_what_these_allocators_decide(allocator):
    model = chain()
    sentence = r"decides how many filters every group keeps, and FiltersBudget\(keep=0\.5\) does too\."
    with pytest.raises(errors.InfeasibleBudgetError, match=sentence):
        kfp.prune_model(
            model, kfp.Method(criteria.L2(), allocator), kfp.FiltersBudget(0.5), data=labelled(model, images())
        )


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda: allocators.Tolerance(drop=-0.1),
            errors.InvalidValueError,
            r"drop is the loss allowed.*drop=-0\.1\.",
        ),
        (
            lambda: allocators.Tolerance(drop=float("nan")),
            errors.InvalidValueError,
            r"Received: drop=nan\.",
        ),
        (lambda: allocators.Tolerance(drop=True), errors.InvalidValueError, r"Received: drop=True\."),
        (
            lambda: allocators.Tolerance(floor="flat"),
            errors.UnknownNameError,
            r"floor is one of linear, per_layer\.",
        ),
        (
            lambda: allocators.Tolerance(measure="lost"),
            errors.UnknownNameError,
            r"measure is one of auto, accuracy, error, loss, a metric or loss of Keras",
        ),
        (lambda: allocators.Search(measure="lost"), errors.UnknownNameError, r"Received: measure='lost'\."),
        (
            lambda: allocators.Search(beta=0),
            errors.InvalidValueError,
            r"a number of units, at least 1\. Received: beta=0\.",
        ),
        (lambda: allocators.Search(beta=2.0), errors.InvalidValueError, r"Received: beta=2\.0\."),
        (
            lambda: allocators.Search(alpha=-1),
            errors.InvalidValueError,
            r"at least 0\. Received: alpha=-1\.",
        ),
    ],
)
def test_settings_out_of_range(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()
