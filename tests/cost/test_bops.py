"""Bit operations as a budget, and the table of filters against bits."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
from builders import assert_all_equal
from contracts import assert_contract
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.allocators import Allocation
from keras_filterprune.cost import Tiles
from keras_filterprune.probe import Weights
from keras_filterprune.studies.bops import round_weights

MIXED = {"stem": 8, "head": 8, "*": 4}


def chain(widths=(24, 20, 16)):
    """Convolutions "stem", "conv1", ..., then a dense layer "head"."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((12, 12, 3))
    for number, width in enumerate(widths):
        x = keras.layers.Conv2D(width, 3, activation="relu", name=f"conv{number}" if number else "stem")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(5, name="head")(x), name="chain")


def kept(plan):
    return {layer: entry["kept"] for layer, entry in plan.layers.items()}


def spent(model, budget):
    costs = kfp.budgets.CostModel(kfp.analyze(model))
    return budget.cost(costs)(costs.sizes)


def test_bit_operations_are_macs_times_the_bits_of_both_factors():
    model = chain()
    costs = kfp.budgets.CostModel(kfp.analyze(model))
    macs = costs.macs.by_layer(costs.sizes)
    mixed = kfp.budgets.BopsBudget(keep=1.0, weight_bits=MIXED, activation_bits={"stem": 16, "*": 6})
    expected = 8 * 16 * macs["stem"] + 4 * 6 * (macs["conv1"] + macs["conv2"]) + 8 * 6 * macs["head"]
    assert spent(model, mixed) == mixed.limit(expected) == expected
    assert spent(model, kfp.budgets.BopsBudget(keep=1.0, weight_bits=3, activation_bits=5)) == 15 * sum(macs.values())


@pytest.mark.parametrize("name", ["residual_projection", "depthwise", "grouped_conv", "shared_conv"])
@pytest.mark.parametrize("bits", [2, 8, 32])
def test_with_equal_bits_it_is_a_macs_budget(name, bits):
    model = ZOO[name]()
    for keep in (0.35, 0.7):
        bops = kfp.plan_pruning(model, "l2", kfp.budgets.BopsBudget(keep=keep, weight_bits=bits, activation_bits=bits))
        macs = kfp.plan_pruning(model, "l2", kfp.MacsBudget(keep=keep))
        assert kept(bops) == kept(macs)


@pytest.mark.parametrize("allocator", [allocators.Uniform(), allocators.Global()], ids=["uniform", "global"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_it_is_never_exceeded_and_met_within_one_unit(allocator, multiple):
    graph = kfp.analyze(chain())
    costs, weights = kfp.budgets.CostModel(graph), Weights(graph.view)
    for keep in (0.2, 0.45, 0.8):
        budget = kfp.budgets.BopsBudget(keep=keep, weight_bits=MIXED, activation_bits={"stem": 8, "*": 4})
        problem = Allocation(
            sizes=costs.sizes,
            floors=np.ones_like(costs.sizes),
            rungs=[Tiles(multiple).rungs(size) for size in costs.sizes.tolist()],
            cost=budget.cost(costs),
            limit=budget.limit(budget.cost(costs)(costs.sizes)),
            scores=lambda number: criteria.L2().scores(graph.groups[number], weights),
        )
        if problem.feasible(problem.legal(problem.floors)):
            assert_contract(problem, allocator.allocate(problem))


def test_the_pruned_model_spends_what_it_may():
    model = chain()
    for budget in (
        kfp.budgets.BopsBudget(keep=0.4, weight_bits=MIXED),
        kfp.budgets.BopsBudget(count=9_000_000, weight_bits={"conv?": 2, "*": 8}),
    ):
        limit = budget.limit(spent(model, budget))
        small = kfp.prune_model(model, "l2", budget)
        assert 0.97 * limit < spent(small, budget) <= limit


def test_fewer_bits_leave_more_filters():
    model = chain()
    budget = kfp.budgets.BopsBudget(keep=0.3)
    limit = budget.limit(spent(model, budget))
    found = []
    for bits in (8, 6, 4):
        small = kfp.prune_model(model, "l2", kfp.budgets.BopsBudget(count=limit, weight_bits=bits))
        found.append(
            kfp.budgets.CostModel(kfp.analyze(small)).macs(np.array([g.size for g in kfp.analyze(small).groups]))
        )
    assert found[0] < found[1] < found[2]
    assert found[2] == pytest.approx(2 * found[0], rel=0.03)


def test_it_steers_whole_layers_and_searches_too(tmp_path):
    x = inputs = keras.Input((8, 8, 6))
    for name in ("a", "b", "c"):
        x = keras.layers.Add()([x, keras.layers.Conv2D(6, 3, padding="same", name=name)(x)])
    deep = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(x)))
    budget = kfp.budgets.BopsBudget(keep=0.75, weight_bits={"b": 2, "*": 8})
    shallow = kfp.prune_layers(deep, budget=budget, method="l1")
    assert spent(shallow, kfp.budgets.BopsBudget(keep=1.0)) < spent(deep, kfp.budgets.BopsBudget(keep=1.0))
    samples = np.random.default_rng(0).normal(size=(16, 12, 12, 3))
    model = chain((6, 6))
    search = kfp.Method(criteria.L2(), allocators.Search(beta=2, measure="error", checkpoint=tmp_path / "search.json"))
    for bits in (8, 8, 4):
        budget = kfp.budgets.BopsBudget(0.5, weight_bits={"head": 8, "*": bits})
        with nullcontext() if bits == 8 else pytest.raises(errors.FileError, match="belongs to another search"):
            kfp.plan_pruning(model, search, budget, data=samples, progress=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, r"BopsBudget expects either keep= or count=\. Received: BopsBudget\(keep=None"),
        ({"keep": 0.5, "count": 9}, "expects either keep= or count="),
        ({"keep": 1.5}, "keep is the fraction that is kept"),
        ({"count": 0}, r"count is a number of bit operations, at least 1\. Received: count=0\."),
        ({"keep": 0.5, "weight_bits": 1}, r"weight_bits is a number of bits from 2 to 32.* Received: weight_bits=1\."),
        ({"keep": 0.5, "activation_bits": {"a": 64}}, r"activation_bits is a number of bits from 2 to 32"),
        ({"keep": 0.5, "weight_bits": 4.0}, "weight_bits is a number of bits"),
    ],
)
def test_numbers_out_of_range(arguments, sentence):
    error = errors.InvalidValueError if "bits" in sentence else errors.InfeasibleBudgetError
    with pytest.raises(error, match=sentence):
        kfp.budgets.BopsBudget(**arguments)


@pytest.mark.parametrize(
    ("bits", "sentence"),
    [
        ({"conf1": 4, "*": 8}, r"weight_bits names 'conf1', which matches no layer.* Did you mean 'con"),
        ({"stem": 8}, r"weight_bits says nothing about layers conv1, conv2, head\. Name them, or end with '\*'"),
    ],
)
def test_patterns_and_layers_that_do_not_meet(bits, sentence):
    with pytest.raises(errors.UnknownNameError, match=sentence):
        kfp.prune_model(chain(), "l2", kfp.budgets.BopsBudget(keep=0.5, weight_bits=bits))


def test_a_budget_out_of_reach_and_adapters_are_refused():
    with pytest.raises(errors.InfeasibleBudgetError, match=r"at most 100 bit operations; the smallest reachable is"):
        kfp.prune_model(chain(), "l2", kfp.budgets.BopsBudget(count=100))
    with pytest.raises(errors.InfeasibleBudgetError, match="adapters are new layers"):
        kfp.prune_model(chain(), "l2", kfp.budgets.BopsBudget(keep=0.5, weight_bits=MIXED), compensate="adapter")


# ------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("axis", [0, -1])
def test_rounded_weights_are_few_values_per_filter_and_near(axis):
    array = np.random.default_rng(0).normal(size=(6, 5, 50)).astype("float32")
    array[2] = 0
    for bits in (2, 4, 8):
        rounded = np.moveaxis(round_weights(array, bits, axis), axis, 0)
        for found, original in zip(rounded, np.moveaxis(array, axis, 0), strict=True):
            scale = np.abs(original).max() / (2 ** (bits - 1) - 1)
            assert len(np.unique(np.round(found / (scale or 1)))) <= 2**bits - 1
            np.testing.assert_allclose(found, original, atol=0.5001 * scale)
    np.testing.assert_array_equal(round_weights(array, 32, axis), array)


def test_the_table_joins_keep_and_bits():
    model = chain()
    before = [w.copy() for w in model.get_weights()]
    x = np.random.default_rng(0).normal(size=(64, 12, 12, 3)).astype("float32")
    y = model.predict(x, verbose=0).argmax(-1)
    found = kfp.studies.compare_bits(model, keep=(1.0, 0.5), bits=(32, (MIXED, 8), 2), test=(x, y), progress=False)
    assert [(row.keep, row.weight_bits) for row in found.rows] == [(k, b) for k in (1.0, 0.5) for b in (32, MIXED, 2)]
    assert found.samples == 64
    whole, mixed, coarse = found.rows[:3]
    assert whole.accuracy == 1.0 > coarse.accuracy
    assert whole.bytes == 4 * model.count_params()
    kernels = {layer.name: layer.kernel.shape.num_elements() for layer in model.layers if layer.weights}
    bits = 8 * (kernels["stem"] + kernels["head"]) + 4 * (kernels["conv1"] + kernels["conv2"])
    assert mixed.bytes == (bits + 32 * (model.count_params() - sum(kernels.values())) + 7) // 8
    assert mixed.bops == spent(model, kfp.budgets.BopsBudget(keep=1.0, weight_bits=MIXED))
    assert coarse.bops == 4 * whole.macs
    assert found.rows[4].macs <= 0.5 * whole.macs
    assert found.to_dict()["rows"][1]["weight_bits"] == MIXED
    assert len(found.table().rows) == 6
    assert_all_equal(before, model.get_weights())


def test_the_table_trains_every_width_once_and_checks_first():
    trained = []
    found = kfp.studies.compare_bits(chain(), keep=(1.0, 0.5), bits=(8, 4), finetune=trained.append, progress=False)
    assert len(trained) == 2
    assert [row.accuracy for row in found.rows] == [None] * 4
    for bits, error, sentence in (
        ((), errors.InvalidValueError, "at least one value each"),
        (((8, 8, 8),), errors.InvalidValueError, "a pair for weights and activations"),
        (({"no": 4},), errors.UnknownNameError, "matches no layer"),
    ):
        with pytest.raises(error, match=sentence):
            kfp.studies.compare_bits(chain(), bits=bits, finetune=trained.append)
    with pytest.raises(errors.CalibrationDataError, match="accuracy needs labelled samples"):
        kfp.studies.compare_bits(chain(), test=np.zeros((4, 12, 12, 3)), finetune=trained.append)
    assert len(trained) == 2
