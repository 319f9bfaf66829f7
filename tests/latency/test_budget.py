"""Budgets on latency are kept and spent at measured widths; what they cannot mean is refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from builders import chain
from latency_tables import DATA, EIGHT, OTHER, QUIET, blocks, counts, staircase, table_of

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.cost import Tiles
from keras_filterprune.latency.budget import LatencyCost
from tflite_bench.machine import machine_info

METHODS = {
    "l2": "l2",
    "global": kfp.Method(criteria.L2(), allocators.Global()),
    "two rounds": kfp.Method(criteria.L2(), allocators.Global(0.7), rounds=2),
    "pursuit": "pursuit",
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("keep", [0.35, 0.7])
def test_a_budget_is_kept_and_spent_up_to_a_measured_width(method, keep):
    model = chain()
    table = table_of(model, tiles=Tiles(16))
    pruned, report = kfp.prune_model(
        model, method, kfp.LatencyBudget(keep=keep, table=table), data=DATA, return_report=True, **QUIET
    )
    cost, found = LatencyCost(kfp.analyze(model), table), np.array(counts(report.plan))
    limit = keep * cost(cost.sizes)
    # Prices are rounded to nanoseconds.
    assert 1e6 * table.predict(pruned) <= limit + 10
    assert all(n % 8 == 0 for n in found)
    in_rounds = method in ("pursuit", METHODS["two rounds"])
    # What went in an earlier round does not come back.
    for group in () if in_rounds else range(len(found)):
        more = found.copy()
        more[group] = min(more[group] + 8, cost.sizes[group])
        assert cost(more) > limit or (more == found).all() or cost(found) >= 0.99 * limit
    assert f"{table!r} rises at widths that are multiples of 16." in report.notes


ALLOCATORS = {
    "sensitivity": allocators.Sensitivity((0.5,), measure="error"),
    "tolerance": allocators.Tolerance(measure="error"),
    "search": allocators.Search(beta=5, measure="error"),
    "evolution": allocators.Evolution(population=10, generations=1, measure="error"),
}


@pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
def test_every_allocator_keeps_the_budget_at_measured_widths(allocator):
    model = chain((32, 48))
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model, tiles=Tiles(16)))
    plan = kfp.plan_pruning(model, kfp.Method(criteria.L2(), allocator), budget, data=DATA, **QUIET)
    cost = LatencyCost(kfp.analyze(model), budget.table)
    assert cost(np.array(counts(plan))) <= 0.5 * cost(cost.sizes)
    assert all(n % 8 == 0 for n in counts(plan))


def test_training_between_rounds_keeps_the_budget():
    model, trained = chain((32, 48)), []
    budget = kfp.LatencyBudget(keep=0.4, table=table_of(model))
    pruned = kfp.prune_model(model, METHODS["two rounds"], budget, data=DATA, finetune=trained.append, **QUIET)
    assert len(trained) == 2
    assert budget.table.predict(pruned) <= 0.4 * budget.table.predict(model) + 1e-5


@pytest.mark.parametrize("method", ["l2", METHODS["two rounds"]])
def test_a_plan_keeps_the_budget_too(method):
    model = chain()
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model))
    plan = kfp.plan_pruning(model, method, budget, **QUIET)
    pruned = kfp.apply_plan(model, plan, compensate="none", **QUIET)
    assert budget.table.predict(pruned) <= 0.5 * budget.table.predict(model) + 1e-6
    assert plan.budget == repr(budget)


def test_milliseconds_and_fractions_agree():
    model = chain()
    table = table_of(model)
    milliseconds = 0.5 * LatencyCost(kfp.analyze(model), table)(np.array([64, 96, 48])) / 1e6
    plans = [
        kfp.plan_pruning(model, "l2", budget, **QUIET)
        for budget in (kfp.LatencyBudget(keep=0.5, table=table), kfp.LatencyBudget(ms=milliseconds, table=table))
    ]
    assert counts(plans[0]) == counts(plans[1]) != [64, 96, 48]


@pytest.mark.parametrize("given", [{"ms": 1e9}, {"ms": 1e308}, {"keep": 1}, {"keep": 1.0}])
def test_a_budget_of_the_whole_model_leaves_it_whole_and_measures_nothing(given):
    model = chain((16, 16))
    budget = kfp.LatencyBudget(**given, table=table_of(model, device=machine_info()["cpu"]))
    pruned, report = kfp.prune_model(model, "l2", budget, return_report=True, **QUIET)
    assert pruned.count_params() == model.count_params()
    assert not any("easured" in note for note in report.notes)


@pytest.mark.parametrize(("keep", "step"), [(0.6, 8), (0.01, 1)])
def test_widths_are_measured_ones_and_finer_only_where_those_are_too_much(keep, step):
    model = chain((64, 96, 64))
    table = table_of(model, tiles=Tiles(32))
    plan = kfp.plan_pruning(model, "l2", kfp.LatencyBudget(keep=keep, table="arm64" if step == 1 else table), **QUIET)
    assert math.gcd(*counts(plan)) % step == 0
    # Between the ends of steps too: the next layer's inputs become fewer.
    assert any(n % 32 for n in counts(plan))
    assert step == 8 or any(n % 8 for n in counts(plan))


def test_channel_multiple_wins_over_measured_widths():
    model = chain()
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model, tiles=Tiles(32)))
    plan = kfp.plan_pruning(model, "l2", budget, channel_multiple=12, **QUIET)
    assert all(n % 12 == 0 or n == size for n, size in zip(counts(plan), (64, 96, 48), strict=True))
    assert any(n % 32 for n in counts(plan))
    with pytest.raises(errors.InfeasibleBudgetError, match="the smallest reachable is"):
        kfp.plan_pruning(model, "l2", replace(budget, keep=0.01), channel_multiple=12, **QUIET)


def test_a_float_counts_multiply_accumulates_as_ever():
    model = chain()
    plans = [kfp.plan_pruning(model, "l2", budget, **QUIET) for budget in (0.5, kfp.MacsBudget(0.5))]
    assert counts(plans[0]) == counts(plans[1])
    assert any(n % 8 for n in counts(plans[0]))
    assert plans[0].budget == "MacsBudget(keep=0.5)"
    filters = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(0.4), **QUIET)
    assert counts(filters) == [26, 38, 19]


def test_layers_of_other_names_stay_whole_under_a_latency_budget():
    model = chain()
    budget = kfp.LatencyBudget(keep=0.6, table=table_of(model))
    plan = kfp.plan_pruning(model, "l2", budget, include="conv1", **QUIET)
    assert [n for n, size in zip(counts(plan), (64, 96, 48), strict=True) if n < size] == [counts(plan)[1]]


def test_another_table_is_another_search(tmp_path):
    """A search that was broken off is taken up again only for the same table and tiles."""
    from keras_filterprune.methods import as_method
    from keras_filterprune.outcome import Run
    from keras_filterprune.pruning.options import Options
    from keras_filterprune.pruning.planner import Planner
    from keras_filterprune.pruning.task import Task

    model = chain((32, 32))

    def key(table, **options) -> str:
        budget = kfp.LatencyBudget(keep=options.pop("keep", 0.5), table=table)
        recipe, costs = as_method("l2", 0, False), kfp.budgets.CostModel(kfp.analyze(model))
        checked = Options(None, None, 1, options.get("channel_multiple", 1))
        return Planner(Task(model, costs, recipe, budget, checked, Run(progress=False))).problem().key

    table = table_of(model)
    assert key(table) == key(kfp.LatencyTable(json.loads(json.dumps(table._content)))) == key(table, keep=0.6)
    keys = [key(table), key(table_of(model, noise=0.01)), key("arm64"), key("arm32"), key(table, channel_multiple=4)]
    assert len({*keys, key(table, keep=0.031)}) == 6


@pytest.mark.parametrize("preactivation", [False, True])
def test_prune_layers_keeps_a_latency_budget(preactivation):
    model = blocks(preactivation)
    table = table_of(model)
    budget = kfp.LatencyBudget(keep=0.75, table=table)
    small, report = kfp.prune_layers(model, budget=budget, return_report=True, **QUIET)
    assert 1 <= len(report.removed) < 3
    assert table.predict(small) <= 0.75 * table.predict(model) + 1e-6
    assert report.notes == [f"Predicted for {OTHER}, and not measured: this is {machine_info()['cpu']}."]
    with pytest.raises(errors.InfeasibleBudgetError, match="without all 3 units"):
        kfp.prune_layers(model, budget=replace(budget, keep=0.01), **QUIET)


@pytest.mark.parametrize("given", [0, 1.5, True, -0.5, math.nan, math.inf, "0.5", [0.5]])
def test_a_fraction_that_is_none_is_refused(given):
    with pytest.raises(
        errors.InfeasibleBudgetError, match=r"keep is the fraction that is kept, in \(0, 1\]. Received: keep="
    ):
        kfp.LatencyBudget(keep=given, table="arm64")


@pytest.mark.parametrize("given", [0, True, -3, math.nan, math.inf, "5"])
def test_milliseconds_that_are_none_are_refused(given):
    with pytest.raises(
        errors.InfeasibleBudgetError, match=r"ms is a number of milliseconds, above 0, or None. Received: ms="
    ):
        kfp.LatencyBudget(ms=given, table=staircase(EIGHT))


@pytest.mark.parametrize("given", [{}, {"ms": 1, "keep": 0.5}])
def test_either_milliseconds_or_a_fraction(given):
    with pytest.raises(errors.InfeasibleBudgetError, match="expects either ms= or keep="):
        kfp.LatencyBudget(**given, table="arm64")


@pytest.mark.parametrize("table", [None, 3, {"format": 1}])
def test_a_budget_takes_a_table(table):
    with pytest.raises(errors.InvalidValueError, match=r"table is a LatencyTable .* Received: table="):
        kfp.LatencyBudget(keep=0.5, table=table)


def test_a_target_has_to_be_known_and_has_no_milliseconds():
    with pytest.raises(errors.UnknownNameError, match=re.escape("Did you mean 'arm64'?")):
        kfp.LatencyBudget(keep=0.5, table="arm46")
    with pytest.raises(
        errors.InfeasibleBudgetError, match="counts padded MACs, which are not milliseconds: give keep="
    ):
        kfp.LatencyBudget(ms=5, table="arm64")
    assert kfp.LatencyBudget(keep=np.float32(0.5), table="arm64").unit == "padded MACs"
    assert kfp.LatencyBudget(keep=0.5, table=staircase(EIGHT)).unit == "ns"


def test_a_budget_below_the_reachable_minimum_says_what_is_left():
    model = chain()
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model))
    sentence = (
        r"asks for at most [\d,]+ ns; the smallest reachable is [\d,]+ \(.* What is left is mostly in layers 'conv0'"
    )
    with pytest.raises(errors.InfeasibleBudgetError, match=sentence):
        kfp.prune_model(model, "l2", replace(budget, keep=0.001), **QUIET)
    with pytest.raises(errors.InfeasibleBudgetError, match="padded MACs"):
        kfp.prune_model(model, "l2", kfp.LatencyBudget(keep=0.001, table="arm64"), **QUIET)


def test_the_table_of_another_model_is_refused_before_anything_is_cut():
    with pytest.raises(errors.InfeasibleBudgetError, match=r"has no time for an operator with .*kind=CONV_2D"):
        kfp.prune_model(chain(), "l2", kfp.LatencyBudget(keep=0.5, table=table_of(chain(side=5))), **QUIET)
