"""The redundancy budget removes what the criterion calls redundant; other budgets are met by similarity as well."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, images
from filters import random_kernel
from keras import layers
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria
from keras_filterprune.probe import Weights


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Three convolutions, one of them coupled, and a dense layer."""
    inputs = keras.Input((8, 8, 3))
    y = layers.ReLU()(layers.BatchNormalization(name="bn1")(layers.Conv2D(12, 3, name="conv1")(inputs)))
    y = layers.BatchNormalization(name="bn2")(layers.Conv2D(20, 3, padding="same", name="conv2")(y))
    y = shortcut = layers.ReLU()(y)
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
        network, criterion, kfp.budgets.RedundancyBudget(), return_report=True, progress=False, verify=False
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
        plans = [
            kfp.plan_pruning(network, m, kfp.budgets.RedundancyBudget(), progress=False) for m in (name, criterion)
        ]
        assert plans[0].groups == plans[1].groups
    assert plans[0].budget == "RedundancyBudget()"


def test_layers_that_are_not_included_stay_whole(network):
    budget = kfp.budgets.RedundancyBudget()
    alone = kfp.plan_pruning(network, "similarity", budget, include="conv2", progress=False)
    everything = kfp.plan_pruning(network, "similarity", budget, progress=False)
    sizes = {g["name"]: (len(g["kept"]), g["size"]) for g in alone.groups}
    assert sizes["conv1"] == (12, 12) and sizes["dense1"] == (16, 16)
    assert sizes["conv2"][0] < 20
    assert [g["kept"] for g in alone.groups if g["name"] == "conv2"] == [
        g["kept"] for g in everything.groups if g["name"] == "conv2"
    ]


def test_the_redundancy_budget_keeps_to_multiples_and_floors(network):
    budget = kfp.budgets.RedundancyBudget()
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
            kfp.prune_model(network, method, kfp.budgets.RedundancyBudget(), progress=False)
        assert str(caught.value).endswith("Use method='similarity', 'nystrom' or 'dead', or give a fraction.")


def test_an_allocator_that_measures_does_not_go_with_the_redundancy_budget(network):
    method = kfp.Method(criteria.Similarity(), allocators.Search())
    with pytest.raises(
        kfp.errors.InfeasibleBudgetError, match=r"and RedundancyBudget\(\) does too\. Give a MacsBudget or a"
    ):
        kfp.plan_pruning(
            network, method, kfp.budgets.RedundancyBudget(), data=(images(), np.zeros(64, int)), progress=False
        )


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


def test_layers_that_stay_whole_need_no_columns(network):
    criterion = criteria.Nystrom(m=14)
    for budget in (kfp.budgets.RedundancyBudget(), kfp.FiltersBudget({"conv2": 0.5})):
        plan = kfp.plan_pruning(network, criterion, budget, exclude="conv1", progress=False)
        assert [len(g["kept"]) for g in plan.groups if g["name"] == "conv1"] == [12]
    with pytest.raises(kfp.errors.InvalidValueError, match="layer 'conv1' has 12 filters"):
        kfp.plan_pruning(network, criterion, kfp.budgets.RedundancyBudget(), progress=False)
