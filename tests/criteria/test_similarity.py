"""Similar filters: counts of published networks, layers that leave no choice, and bad input."""

from __future__ import annotations

import importlib.util
from itertools import combinations, pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from builders import array, assert_all_equal, assert_same, images
from filters import kept_by, layer_of, random_kernel
from keras import layers
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import criteria

# --------------------------------------------------------------------------------------------------- published networks


@pytest.fixture(scope="module")
def networks():
    path = Path(__file__).parents[2] / "examples" / "audio" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dcase21(networks):
    return randomise(networks.dcase21_net(), seed=6)


DCASE21 = {"conv1": 11 / 16, "conv2": 11 / 16, "conv3": 22 / 32}


# Layers pruned: parameters and percent of multiply-accumulates saved, as published and counted.
PUBLISHED = {
    (1,): (42_056, 29.1),
    (2,): (34_461, 29.5),
    (3,): (36_356, 2.2),
    (1, 2): (31_496, 50.1),
    (2, 3): (27_021, 31.0),
    (1, 2, 3): (24_056, 51.6),
}


@pytest.mark.parametrize("numbers", PUBLISHED, ids=str)
def test_parameters_of_dcase21_are_the_published_ones(dcase21, numbers):
    keep = {name: DCASE21[name] for name in (f"conv{n}" for n in numbers)}
    plan = kfp.plan_pruning(dcase21, "similarity", kfp.FiltersBudget(keep), progress=False)
    kept = {g["name"]: len(g["kept"]) for g in plan.groups}
    assert {name: kept[name] for name in keep} == {name: {"conv3": 22}.get(name, 11) for name in keep}
    params, saved = PUBLISHED[numbers]
    assert plan.cost["params"] == [46_246, params]
    before, after = plan.cost["macs"]
    assert round(before / 1e6, 1) == 286.6
    assert round(100 * (1 - after / before), 1) == saved


def test_rows_behind_flatten_belong_to_channels_and_not_to_blocks(dcase21):
    """Two positions, 32 channels: channel c is read by rows c and 32 + c."""
    small, report = kfp.prune_model(
        dcase21, "similarity", kfp.FiltersBudget(DCASE21), compensate="none", return_report=True, progress=False
    )
    assert small.count_params() == 24_056 == report.plan.cost["params"][1]
    assert report.verification < 1e-4
    kept = next(g["kept"] for g in report.plan.groups if g["name"] == "conv3")
    assert len(kept) == 22
    rows = [position * 32 + channel for position in range(2) for channel in kept]
    kernel, smaller = (array(m.get_layer("dense1").kernel) for m in (dcase21, small))
    assert smaller.shape == (44, 100)
    np.testing.assert_array_equal(smaller, kernel[rows])


def test_cost_of_vggish_is_the_published_one(networks):
    before = {"conv1": 64, "conv2": 128, "conv3": 256, "conv4": 256, "conv5": 512, "conv6": 512}
    after = dict(zip(before, (51, 101, 215, 204, 404, 402), strict=True))
    model = networks.vggish_net()
    assert model.count_params() == 55_361_162
    budget = kfp.FiltersBudget({name: after[name] / before[name] for name in before})
    plan = kfp.plan_pruning(model, "l2", budget, progress=False)
    assert {g["name"]: len(g["kept"]) for g in plan.groups if g["name"] in before} == after

    def counted(filters: dict[str, int]) -> tuple[int, int]:
        params, macs, channels = 0, 0, 1
        positions = dict(zip(before, (96 * 64, 48 * 32, 24 * 16, 24 * 16, 12 * 8, 12 * 8), strict=True))
        for name, width in filters.items():
            params += 9 * channels * width + width
            macs += 9 * channels * width * positions[name]
            channels = width
        inputs = 6 * 4 * channels
        for units in (4096, 128, 10):
            params, macs, inputs = params + inputs * units + units, macs + inputs * units, units
        return params, macs

    costs = list(zip(counted(before), counted(after), strict=True))
    assert [tuple(plan.cost[kind]) for kind in ("params", "macs")] == costs
    (params, fewer), (macs, less) = costs
    assert round(macs / 1e6, 1) == 847.1 and round(less / 1e6, 1) == 552.2
    assert round(100 * (1 - fewer / params), 1) == 22.5


# ------------------------------------------------------------------------------------------------------------ bad input


def single_layer(kernel: np.ndarray, bias: np.ndarray | None = None) -> keras.Model:
    inputs = keras.Input((8, 8, kernel.shape[2]))
    y = layers.Conv2D(kernel.shape[3], kernel.shape[:2], activation="relu", name="conv1")(inputs)
    model = randomise(keras.Model(inputs, layers.Conv2D(3, 3, name="next")(y)))
    model.get_layer("conv1").kernel.assign(kernel)
    if bias is not None:
        model.get_layer("conv1").bias.assign(bias)
    return model


EDGES = [
    criteria.Similarity(),
    criteria.Similarity("first_channel"),
    criteria.Nystrom(),
    criteria.Nystrom(m=1),
]
every_edge = pytest.mark.parametrize("criterion", EDGES, ids=repr)


@every_edge
@pytest.mark.parametrize("factor", [1, 0])
def test_a_single_filter_stays(criterion, factor):
    kernel = factor * random_kernel(3, 3, 3, 1)
    group, weights = layer_of(kernel)
    assert criterion.redundant(group, weights) == 0
    assert np.isfinite(criterion.scores(group, weights)).all()
    small = kfp.prune_model(single_layer(kernel), criterion, kfp.budgets.RedundancyBudget(), progress=False)
    assert small.get_layer("conv1").filters == 1


@every_edge
def test_of_filters_of_zeros_one_stays(criterion):
    group, weights = layer_of(np.zeros((3, 3, 3, 6), "float32"))
    assert criterion.redundant(group, weights) == 5
    assert criterion.scores(group, weights).tolist() == [0] * 6
    model = single_layer(np.zeros((3, 3, 3, 6)), np.linspace(-1, 1, 6))
    small = kfp.prune_model(model, criterion, kfp.budgets.RedundancyBudget(), progress=False)
    assert small.get_layer("conv1").filters == 1
    # What biases make constant, the next layer's bias makes up for.
    assert_same(model, small, images(), 1e-4)


@every_edge
@pytest.mark.parametrize("zeros", [1, 3, 5])
def test_filters_of_zeros_go_first(criterion, zeros):
    kernel = random_kernel(3, 3, 3, 6)
    gone = np.random.default_rng(zeros).permutation(6)[:zeros]
    kernel[..., gone] = 0
    group, weights = layer_of(kernel)
    full = np.delete(np.arange(6), gone)
    scores = criterion.scores(group, weights)
    assert (scores[gone] == 0).all() and (scores[full] > 0).all()
    alone, others = layer_of(kernel[..., full])
    assert np.argsort(scores[full]).tolist() == np.argsort(criterion.scores(alone, others)).tolist()
    assert criterion.redundant(group, weights) == zeros + criterion.redundant(alone, others)


@every_edge
@pytest.mark.parametrize("factors", [np.ones(7), np.linspace(0.5, 2, 7)], ids=["equal", "scaled"])
def test_of_duplicates_any_number_can_go_without_a_trace(criterion, factors):
    kernel = random_kernel(3, 3, 3, 1, seed=4) * factors.astype("float32")
    group, weights = layer_of(kernel)
    assert 1 <= criterion.redundant(group, weights) <= 6
    assert np.sort(criterion.scores(group, weights))[-2] < 1e-9
    kept = [set(kept_by(criterion, kernel, count)) for count in range(1, 8)]
    assert all(a < b for a, b in pairwise(kept))
    model = single_layer(kernel, 0.1 * factors)
    for count in (1, 3):
        budget = kfp.FiltersBudget({"conv1": count / 7})
        small = kfp.prune_model(model, criterion, budget, progress=False)
        assert small.get_layer("conv1").filters == count
        assert_same(model, small, images(), 1e-4)


def unchanged(model: keras.Model, error, sentence: str, *args, **options) -> None:
    """Pruning raises this sentence and leaves the weights alone."""
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(error, match=sentence):
        kfp.prune_model(model, *args, progress=False, **options)
    assert_all_equal(before, model.get_weights())


def test_more_columns_than_a_layer_has_filters():
    model = single_layer(random_kernel(3, 3, 3, 8))
    sentence = r"Nystrom\(m=9\) takes m columns .* layer 'conv1' has 8 filters\. Lower m, or give tolerance="
    unchanged(model, kfp.errors.InvalidValueError, sentence, criteria.Nystrom(m=9), 0.5)
    unchanged(model, kfp.errors.InvalidValueError, sentence, criteria.Nystrom(m=9), kfp.budgets.RedundancyBudget())
    small = kfp.prune_model(model, criteria.Nystrom(m=8), kfp.budgets.RedundancyBudget(), progress=False)
    assert small.get_layer("conv1").filters < 8


@pytest.mark.parametrize("m", [0, -3, 2.0, True, "9"], ids=repr)
def test_numbers_of_columns_that_are_none(m):
    with pytest.raises(
        kfp.errors.InvalidValueError, match=rf"m is a number of columns, at least 1.* Received: m={m!r}\."
    ):
        criteria.Nystrom(m=m)


@pytest.mark.parametrize("tolerance", [-1e-9, 1, 1.5, np.nan, True, "1e-3"], ids=repr)
def test_tolerances_that_are_none(tolerance):
    with pytest.raises(
        kfp.errors.InvalidValueError, match=r"tolerance is a similarity, in \[0, 1\), or None\. Received: tolerance="
    ):
        criteria.Nystrom(tolerance=tolerance)


def test_columns_and_tolerance_at_once():
    with pytest.raises(
        kfp.errors.InvalidValueError, match=r"m= or tolerance=, not both\. Received: m=4, tolerance=0\.1\."
    ):
        criteria.Nystrom(m=4, tolerance=0.1)


@pytest.mark.parametrize("make", [criteria.Similarity, criteria.Nystrom])
def test_unknown_signs(make):
    sentence = r"sign is one of dominant, first_channel\. Received: sign='positive'\."
    with pytest.raises(kfp.errors.UnknownNameError, match=sentence):
        make(sign="positive")


def test_unknown_aggregates_of_the_operator_norm():
    sentence = r"aggregate is one of sumsq, signed\. Received: aggregate='mean'\."
    with pytest.raises(kfp.errors.UnknownNameError, match=sentence):
        criteria.OperatorNorm(aggregate="mean")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["similarity", "nystrom", "operator_norm", "geometric_mean"])
def test_weights_that_are_not_finite(method, value):
    model = single_layer(random_kernel(3, 3, 3, 8))
    kernel = array(model.get_layer("conv1").kernel)
    kernel[0, 1, 2, 3] = value
    model.get_layer("conv1").kernel.assign(kernel)
    sentence = r"weight 'kernel' of layer 'conv1' holds 1 NaN or infinite values"
    unchanged(model, kfp.errors.UnsupportedModelError, sentence, method, 0.5)


def test_representations_are_those_of_the_constructor():
    known = {
        "Similarity": criteria.Similarity,
        "Nystrom": criteria.Nystrom,
        "OperatorNorm": criteria.OperatorNorm,
    }
    texts = [
        repr(c)
        for c in (*EDGES, criteria.Nystrom(tolerance=0.3), criteria.OperatorNorm(), criteria.OperatorNorm("signed"))
    ]
    assert all(a != b for a, b in combinations(texts, 2))
    assert [repr(eval(text, known)) for text in texts] == texts
