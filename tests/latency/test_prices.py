"""Prices of one's own in the place of a table."""

import math
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from builders import chain
from keras import layers
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.latency import PaddedMacs, SizedOperators, as_prices

QUIET = {"progress": False}


class Traffic(kfp.budgets.Prices):
    """Bytes that an operator reads and writes, in int8."""

    device, units = "any", ("B", "kB", "MB")

    def price(self, fields, channels, filters):
        read = math.prod(fields["size"])
        return read * (channels + filters / math.prod(fields["strides"])) / 1e3


@dataclass(frozen=True)
class Clock(kfp.budgets.Prices):
    """A device whose time is its multiply-accumulates in steps, and a call."""

    per_us: float
    device = "clock"
    floor = 2.0
    tiles = kfp.budgets.Tiles(8)

    def price(self, fields, channels, filters):
        return kfp.budgets.count_macs(fields, channels, self.tiles.ceil(filters)) / self.per_us


@pytest.mark.parametrize("prices", [Traffic(), Clock(2e3)], ids=repr)
@pytest.mark.parametrize("keep", [0.4, 0.8])
@pytest.mark.parametrize(
    "method",
    ["l2", kfp.Method(kfp.criteria.L2(), kfp.allocators.Global()), kfp.Method(kfp.criteria.L2(), rounds=2)],
    ids=str,
)
def test_a_budget_of_them_is_kept(prices, keep, method):
    model = chain(side=12)
    budget = kfp.LatencyBudget(keep=keep, table=prices)
    small, report = kfp.prune_model(model, method, budget, return_report=True, **QUIET)
    assert prices.predict(small) <= keep * prices.predict(model) * 1.001
    assert report.prices is prices
    assert any(note.startswith(f"Predicted for {prices.device}, and not measured") for note in report.notes)


def test_what_a_model_costs_is_the_sum_of_its_operators_and_the_call():
    model, prices = chain((8,), side=12), Clock(10.0)
    pixels = 12 * 12
    macs = [pixels * 9 * 3 * 8, 8 * 8]  # The head's 3 outputs fill a step of 8.
    assert prices.predict(model) == pytest.approx((sum(macs) / 10 + 2.0) / 1e3)


@pytest.mark.parametrize("name", ["separable", "depthwise", "grouped_conv", "decoder", "flatten_dense"])
def test_multiply_accumulates_of_operators_are_those_of_the_model(name):
    graph = kfp.analyze(ZOO[name]())
    costs = kfp.budgets.CostModel(graph)
    found = SizedOperators.of(graph, costs.sizes).by_layer(kfp.budgets.count_macs)
    assert sum(found.values()) == costs.macs(costs.sizes)


def test_reports_show_them_in_their_units(tmp_path):
    _, report = kfp.prune_model(
        chain(), "l2", kfp.LatencyBudget(keep=0.5, table=Traffic()), return_report=True, **QUIET
    )
    report.save(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "predicted MB" in text
    assert "predicted kB" in text
    assert "Predicted by Traffic('any'); nothing was measured." in text
    report.save(tmp_path / "other.md", latency=Clock(1e3))
    assert "predicted µs" in (tmp_path / "other.md").read_text()


def test_milliseconds_are_for_prices_in_milliseconds():
    model, prices = chain(), Clock(1e3)
    ms = 0.5 * prices.predict(model)
    assert prices.predict(kfp.prune_model(model, "l2", kfp.LatencyBudget(ms=ms, table=prices), **QUIET)) <= ms
    with pytest.raises(errors.InfeasibleBudgetError, match=r"Traffic\('any'\) counts B, which are not milliseconds"):
        kfp.LatencyBudget(ms=5, table=Traffic())


def test_layers_go_by_them():
    inputs = x = keras.Input((8, 8, 8))
    for _ in range(4):
        x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(x)])
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    budget = kfp.LatencyBudget(keep=0.6, table=Traffic())
    small, report = kfp.prune_layers(model, budget=budget, return_report=True, **QUIET)
    assert Traffic().predict(small) <= 0.6 * Traffic().predict(model)
    assert report.unit == "B"


def test_searches_know_them_apart():
    keys = {kfp.LatencyBudget(keep=0.5, table=p).key for p in (Traffic(), Clock(1.0), Clock(2.0), "arm64", "arm32")}
    assert len(keys) == 5


def test_a_targets_name_stands_for_its_whole_steps():
    assert repr(as_prices("table", "arm64")) == repr(PaddedMacs("arm64")) == "PaddedMacs('arm64')"
    for wrong in (None, 3, {"format": 1}, np.zeros(3)):
        with pytest.raises(errors.InvalidValueError, match=r"table is a LatencyTable .* Received: table="):
            kfp.LatencyBudget(keep=0.5, table=wrong)
