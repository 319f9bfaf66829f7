"""A layer that is registered like one of Keras counts as that one everywhere."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from alike import FAMILIES, NETS, Maker, around, build, samples, subclasses, teach
from builders import array
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune.budgets import LatencyBudget, RedundancyBudget
from keras_filterprune.compensators import by_name
from keras_filterprune.compensators.adapted_models import wrappable
from keras_filterprune.export.image_constants import stored_by_column
from keras_filterprune.handlers import registry
from keras_filterprune.latency.operators import list_operators
from keras_filterprune.layer_pruning.units import find_units
from keras_filterprune.probe.gaussian import gaussian_inputs
from keras_filterprune.tfmot.description import describe

pytestmark = pytest.mark.usefixtures("short_recovery")
every_net = pytest.mark.parametrize("net", NETS)
# Recipes whose parts, criterion, allocator and rounds, stand in rows of their own.
PUT_TOGETHER = ("hu_ga", "fp_omp_search", "lrf_layerwise")
# Every other method with what it needs.
RUNS = [(name, needs) for name, needs, _ in kfp.list_methods() if name not in PUT_TOGETHER]
COMPENSATORS = ("least_squares", "bn", "mean_shift", "linear", "merge", "adapter", "reconstruct")


@pytest.fixture(scope="module")
def like():
    """Subclasses of Keras' layers, registered like them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_LIKE", dict(registry._LIKE))
        classes = subclasses("Like")
        teach(classes)
        yield classes


@pytest.fixture(scope="module")
def nets(like):
    """{net: (of Keras' own layers, of subclasses registered like them)}."""
    return {net: (build(net), build(net, like)) for net in NETS}


def pruned(model: keras.Model, **settings):
    return kfp.prune_model(model, return_report=True, progress=False, **settings)


def assert_equal(one: keras.Model, two: keras.Model, x: np.ndarray) -> None:
    """The same layers, weights and outputs, to the last bit."""
    assert [layer.name for layer in one.layers] == [layer.name for layer in two.layers]
    for a, b in zip(one.weights, two.weights, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(array(a.value), array(b.value), err_msg=a.path)
    np.testing.assert_array_equal(array(one(x)), array(two(x)))


def assert_pruned_alike(pair, net: str, **settings) -> None:
    (small, report), (twin, other) = (pruned(model, verify=False, **settings) for model in pair)
    assert small.count_params() < pair[0].count_params()
    assert report.plan.kept.keys() == other.plan.kept.keys()
    for layer, kept in report.plan.kept.items():
        np.testing.assert_array_equal(kept, other.plan.kept[layer], err_msg=layer)
    assert str(report.plan.pinned) == str(other.plan.pinned).replace("(Like", "(")
    assert str(report.compensation) == str(other.compensation)
    assert_equal(small, twin, samples(net)[0])


# --------------------------------------------------------------------------------------------------------- registered


@pytest.mark.parametrize(("method", "data"), RUNS)
def test_every_method_keeps_the_same_filters(nets, like, method, data):
    x, y = samples("image")
    given = {"nothing": None, "inputs": x, "labels": (x, y)}[data]
    pair = nets["image"]
    if method == "balanced":
        # It measures the loss that a model is compiled with.
        pair = build("image"), build("image", like)
        for model in pair:
            model.compile(loss="sparse_categorical_crossentropy")
    assert_pruned_alike(pair, "image", method=method, budget=0.75, data=given)


@pytest.mark.parametrize("net", ["sequence", "volume"])
@pytest.mark.parametrize("method", ["cap", "taylor_gate"])
def test_methods_on_data_keep_the_same_filters_of_every_family(nets, net, method):
    assert_pruned_alike(nets[net], net, method=method, budget=0.85, data=samples(net))


def test_every_compensator_is_tried():
    assert set(COMPENSATORS) == set(by_name._NAMES)


# What recurs is slow to learn with and to fit adapters in, and takes part in neither.
@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("net", "compensate"),
    [(net, compensate) for net in NETS for compensate in COMPENSATORS if compensate not in ("adapter", "reconstruct")]
    + [("image", "adapter"), ("volume", "adapter"), ("volume", "reconstruct")],
)
def test_every_compensator_writes_the_same_weights(nets, net, compensate):
    budget = 0.9 if compensate == "adapter" else 0.75
    if compensate == "reconstruct":
        compensate = kfp.compensators.Reconstruct(steps=2)
    assert_pruned_alike(nets[net], net, method="l2", budget=budget, data=samples(net)[0], compensate=compensate)


@pytest.mark.parametrize("compensate", ["linear", "merge", "adapter"])
def test_compensation_without_data_writes_the_same_weights(nets, compensate):
    assert_pruned_alike(nets["image"], "image", method="lrf", budget=0.9, compensate=compensate)


def test_adapters_stand_around_the_same_convolutions(nets):
    for own, mine in nets.values():
        paths = wrappable(kfp.analyze(own))
        assert len(paths) >= 1
        assert wrappable(kfp.analyze(mine)) == paths


@pytest.mark.parametrize("budget", [LatencyBudget(keep=0.8, table="arm64"), RedundancyBudget()], ids=repr)
def test_other_budgets_keep_the_same_filters(nets, budget):
    own, mine = (pruned(model, method="similarity", budget=budget) for model in nets["image"])
    assert own[1].plan.layers == mine[1].plan.layers
    assert_equal(own[0], mine[0], samples("image")[0])


@pytest.mark.parametrize(
    "allocator", [kfp.allocators.Tolerance(0.5, measure="error"), kfp.allocators.Sensitivity((0.5,), "error")], ids=str
)
def test_allocators_that_try_cuts_out_find_the_same(nets, allocator):
    method = kfp.Method(kfp.criteria.L2(), allocator=allocator)
    assert_pruned_alike(nets["image"], "image", method=method, budget=0.95, data=samples("image"))


@every_net
def test_operators_are_the_same(nets, net):
    (own, *_, unknown), (mine, *_, strange) = (list_operators(kfp.analyze(model)) for model in nets[net])
    assert own == mine
    assert unknown.keys() == strange.keys()
    assert (not unknown) == (net == "image")


@every_net
def test_distributions_from_weights_are_the_same(nets, net):
    found = []
    for model in nets[net]:
        graph = kfp.analyze(model)
        found.append(gaussian_inputs(graph, {call.path for call in graph.view.calls if call.inputs}))
    own, mine = found
    assert own.keys() == mine.keys()
    for path in own:
        np.testing.assert_array_equal(own[path].covariance, mine[path].covariance, err_msg=path)
        np.testing.assert_array_equal(own[path].mean, mine[path].mean, err_msg=path)


def test_the_same_layers_can_be_removed(nets):
    (units, reasons), (others, whys) = (find_units(kfp.analyze(model)) for model in nets["image"])
    assert [unit.layers for unit in units] == [unit.layers for unit in others]
    # The block from one ReLU to the next, with its batch normalizations, and its sum.
    assert len(units[0].layers) == 7
    assert reasons == whys
    one, two = (kfp.prune_layers(model, n_layers=1, progress=False) for model in nets["image"])
    assert_equal(one, two, samples("image")[0])


# ----------------------------------------------------------------------------------------------------------- training


@every_net
@pytest.mark.parametrize("include", [None, "*dense*"])
def test_bridgeout_perturbs_the_same_kernels(nets, net, include):
    if include and net == "sequence":
        pytest.skip("its TimeDistributed layer has no kernel of its own")
    results = []
    for model in nets[net]:
        keras.utils.set_random_seed(5)
        wrapped = kfp.apply_bridgeout(model, target_fraction=0.5, include=include, seed=4)
        plain = kfp.strip_wrappers(wrapped)
        results.append((wrapped, plain, array(wrapped(samples(net)[0], training=True))))
    (one, plain, y), (two, other, z) = results
    assert any(isinstance(layer, kfp.layers.BatchBridgeout) for layer in one.layers)
    np.testing.assert_array_equal(y, z)
    x = samples(net)[0]
    assert_equal(one, two, x)
    assert_equal(plain, other, x)
    np.testing.assert_array_equal(array(other(x)), array(nets[net][0](x)))


@every_net
def test_masks_gates_and_penalties_lie_on_the_same_layers(nets, net):
    for apply in (
        kfp.apply_filter_pruning,
        lambda model: kfp.apply_filter_gates(model, "bn_scale" if net != "volume" else "l2"),
        lambda model: kfp.apply_penalty(model, kfp.regularizers.GroupLasso(1e-3)),
        lambda model: kfp.apply_penalty(kfp.apply_bridgeout(model, seed=1), kfp.regularizers.BridgePenalty(1.0)),
    ):
        one, two = (apply(model) for model in nets[net])
        assert_equal(one, two, samples(net)[0])
        assert len(one.losses) == len(two.losses)
        np.testing.assert_array_equal([array(a) for a in one.losses], [array(b) for b in two.losses])


def test_what_filters_are_scaled_by_is_penalised(nets):
    penalty = kfp.regularizers.BridgePenalty(1.0)
    one, two = (kfp.apply_penalty(model, penalty, weights="scale") for model in nets["image"])
    assert [array(a) for a in one.losses] == [array(b) for b in two.losses] != []


# ------------------------------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize("family", FAMILIES)
def test_tf_keras_is_told_of_the_same_layers(like, family):
    own, mine = ([vars(call.op) for call in describe(around(family, classes)).view.calls] for classes in (None, like))
    for a, b in zip(own, mine, strict=True):
        assert a | {"weights": 0} == b | {"weights": 0}


def test_values_of_images_are_stored_by_column(nets):
    for model in nets["image"]:
        layer = next(layer for layer in model.layers if "normalization_1" in layer.name)
        before = layer.mean
        with stored_by_column(model):
            assert layer.mean.shape == (8, 3)
        assert layer.mean is before


def test_advice_on_a_file_names_the_same_problems(like, tmp_path):
    problems = []
    for make in (Maker(), Maker(like)):
        inputs = keras.Input((8, 8, 3), name="input")
        x = make.BatchNormalization()(make.MaxPooling2D()(make.Conv2D(4, 3)(inputs)))
        model = randomise(keras.Model(inputs, make.Dense(2)(make.GlobalAveragePooling2D()(x))), seed=3)
        result = kfp.export_tflite(model, tmp_path / f"{len(problems)}.tflite")
        problems.append([str(warning) for warning in result.warnings])
    assert problems[0] == problems[1] != []
