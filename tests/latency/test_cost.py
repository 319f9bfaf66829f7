"""What a model costs by a table, or by padded multiply-accumulates in its place."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import chain
from keras import layers
from latency_tables import DATA, FLOOR, MODELS, ONE, QUIET, content, counts, random_keep, staircase, table_of
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria
from keras_filterprune.cost import Tiles
from keras_filterprune.cost.tiles import TARGETS
from keras_filterprune.latency import PaddedMacs, operators_to_measure
from keras_filterprune.latency.budget import LatencyCost
from keras_filterprune.latency.operators import list_operators

# ------------------------------------------------------------------------------------------------------------- the cost


@pytest.mark.parametrize("name", ["residual_projection", "inception", "separable"])
def test_the_cost_is_the_sum_of_prices(name):
    model = ZOO[name]()
    graph, table = kfp.analyze(model), table_of(ZOO[name](), tiles=Tiles(1))
    cost = LatencyCost(graph, table)
    operators, widths, _ = list_operators(graph)
    keep = random_keep(graph, np.random.default_rng(1))
    at = widths.at(keep)
    prices = [round(1e3 * table.price(o.fields, at[o.channels], at[o.filters])) for o in operators]
    assert cost(keep) == sum(prices) + round(1e3 * FLOOR)
    assert sum(cost.by_layer(keep).values()) == sum(prices)
    assert list(cost.by_layer(keep)) == list(dict.fromkeys(o.layer for o in operators))
    assert table.predict(model) == pytest.approx(cost(cost.sizes) / 1e6, rel=1e-3)


@pytest.mark.parametrize("prices", [staircase, PaddedMacs], ids=["table", "target"])
def test_the_gradient_is_what_half_of_a_group_saves(prices):
    model = chain()
    prices = PaddedMacs("arm64") if prices is PaddedMacs else table_of(model, tiles=Tiles(16))
    cost, keep = LatencyCost(kfp.analyze(model), prices), np.array([1, 33, 48])
    found = cost.gradient(keep)
    for group, half in ((1, 16), (2, 24)):
        fewer = keep.copy()
        fewer[group] = half
        assert found[group] == pytest.approx((cost(keep) - cost(fewer)) / (keep[group] - half))
        assert found[group] > 0
    assert found[0] == 0


def slow_parts(model: keras.Model) -> kfp.LatencyTable:
    """A device that takes longer for 24 filters than for 32, and for 56 than for 64, whatever comes in."""
    entries = operators_to_measure(kfp.analyze(model))
    times = [1 + e["channels"] / 1e3 + {24: 50, 56: 70}.get(e["filters"], e["filters"]) for e in entries]
    return kfp.LatencyTable(content([e | {"us": FLOOR + us} for e, us in zip(entries, times, strict=True)]))


def test_widths_that_cost_more_than_wider_ones_are_not_worthwhile():
    model = chain((64, 64))
    cost = LatencyCost(kfp.analyze(model), slow_parts(model))
    assert cost.worthwhile(0, [8, 16, 24, 32, 40, 48, 56, 64]) == [8, 16, 32, 40, 48, 64]
    assert cost.worthwhile(0, [20, 24, 30, 64]) == [30, 64]


@pytest.mark.parametrize("keep", [0.35, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("method", ["l2", kfp.Method(criteria.L2(), allocators.Uniform()), "search"], ids=str)
def test_no_plan_has_such_widths(method, keep):
    model = chain((64, 64, 64, 64))
    if method == "search":
        method = kfp.Method(criteria.L2(), allocators.Search(beta=8, measure="error"))
    budget = kfp.LatencyBudget(keep=keep, table=slow_parts(model))
    plan = kfp.plan_pruning(model, method, budget, data=DATA, **QUIET)
    assert not {24, 56} & set(counts(plan))
    cost = LatencyCost(kfp.analyze(model), budget.table)
    assert 0.8 * keep * cost(cost.sizes) < cost(np.array(counts(plan))) <= keep * cost(cost.sizes)


@pytest.mark.parametrize("name", ["residual_identity", "dense_concat", "separable", "se_keepdims"])
def test_fewer_units_never_cost_more(name):
    model = ZOO[name]()
    graph, rng = kfp.analyze(model), np.random.default_rng(0)
    cost = LatencyCost(graph, table_of(model))
    for _ in range(20):
        keep = random_keep(graph, rng)
        fewer = np.maximum([g.least for g in graph.groups], keep - rng.integers(0, 4, len(keep)))
        assert cost(fewer) <= cost(keep)


# -------------------------------------------------------------------------------------- targets in the place of a table


@pytest.mark.parametrize("name", [*MODELS, "unet", "decoder", "depthwise_chain"])
def test_padded_macs_in_steps_of_one_are_macs(name, monkeypatch):
    monkeypatch.setitem(TARGETS, "one", ONE)
    graph = kfp.analyze(ZOO[name]())
    padded, macs, rng = (
        LatencyCost(graph, PaddedMacs("one")),
        kfp.budgets.CostModel(graph).macs,
        np.random.default_rng(0),
    )
    for _ in range(5):
        keep = random_keep(graph, rng)
        assert padded(keep) == macs(keep)


@pytest.mark.parametrize("target", TARGETS)
def test_padded_macs_are_macs_where_widths_fit_and_stairs_elsewhere(target):
    inputs = keras.Input((6, 6, 32))
    y = layers.Conv2D(96, 3, padding="same")(layers.Conv2D(64, 3, padding="same")(inputs))
    graph = kfp.analyze(keras.Model(inputs, layers.Conv2D(32, 3)(y)))
    padded, macs, step = LatencyCost(graph, PaddedMacs(target)), kfp.budgets.CostModel(graph).macs, TARGETS[target].step
    for keep in ([64, 96], [32, 64]):
        assert padded(np.array(keep)) == macs(np.array(keep))
    # Input channels are rounded up in smaller steps than output channels, or not at all.
    assert macs(np.array([64, 65])) < padded(np.array([64, 65])) <= padded(np.array([64, 64 + step]))
    assert padded(np.array([64, 65])) > padded(np.array([64, 64]))


def test_padded_macs_round_input_channels_up_to_their_own_step():
    prices = PaddedMacs("arm64-dotprod-int8")
    assert prices.price((("kind", "FULLY_CONNECTED"),), 5, 17) == 8 * 32 / 1e3
    assert prices.price((("kind", "DEPTHWISE_CONV_2D"), ("kernel", (3, 3))), 17, 17) == 9 * 32 / 1e3
    assert prices.price((("kind", "ADD"),), 17, 17) == 0
