"""Criteria of the loss and of activations: gradients equal finite differences, averages are the network's."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import digits, observed
from keras import layers
from other_backends import on_other_backends, run_on
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import criteria, errors
from keras_filterprune.probe import Weights
from keras_filterprune.probe.gradients import BATCH, gate_gradients, weight_gradients


def network(activation: str | None = None, classes: int = 10) -> keras.Model:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 1))
    h = layers.ReLU()(layers.BatchNormalization(name="bn1")(layers.Conv2D(5, 3, name="conv1")(inputs)))
    short = layers.Conv2D(6, 1, name="short")(h)
    h = layers.Activation("tanh")(layers.Conv2D(6, 3, padding="same", name="conv2")(h))
    h = layers.Flatten()(layers.MaxPooling2D()(layers.Add()([short, h])))
    model = keras.Model(inputs, layers.Dense(classes, activation=activation, name="head")(h))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + rng.normal(0, 0.1, weight.shape) ** 2)
    return model


def loss(model: keras.Model, x: np.ndarray, y: np.ndarray, logits: bool = True) -> float:
    scores = np.asarray(model(x), np.float64)
    if scores.shape[1] == 1:
        p = 1 / (1 + np.exp(-scores[:, 0])) if logits else scores[:, 0]
        return float(-np.mean(np.where(y == 1, np.log(p), np.log(1 - p))))
    if logits:
        scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return float(-np.mean(np.log(scores[np.arange(len(y)), y])))


@pytest.mark.parametrize(("activation", "classes"), [(None, 10), ("softmax", 10), (None, 1), ("sigmoid", 1)])
def test_weight_gradients_are_those_of_the_loss(activation, classes):
    (x, y), model = digits(64), network(activation, classes)
    y = y if classes > 1 else y % 2
    graph = kfp.analyze(model)
    (found,) = weight_gradients(graph.view, (x, y), [("conv1", "kernel"), ("head", "kernel")], False)
    rng = np.random.default_rng(0)
    for (layer, name), gradient in found.items():
        variable = getattr(model.get_layer(layer), name)
        value, direction, step = variable.numpy(), rng.normal(size=variable.shape), 1e-3
        losses = []
        for sign in (1, -1):
            variable.assign(value + sign * step * direction)
            losses.append(loss(model, x, y, activation is None))
        variable.assign(value)
        assert (gradient * direction).sum() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=3e-2, abs=5e-4)


def test_a_gate_is_a_factor_on_all_a_unit_feeds():
    """The gradient is that of the loss when the channels of a unit are scaled, at every layer that reads them."""
    (x, y), model = digits(64), network()
    graph = kfp.analyze(model)
    (found,) = gate_gradients(graph, (x, y), False)
    assert {group.name for group in graph.groups} == {"conv1", "conv2"}
    for group in graph.groups:
        for number in range(group.size):
            losses = []
            for factor in (1.01, 0.99):
                other = keras.models.clone_model(model)
                other.set_weights(model.get_weights())
                for member in group.members:
                    if member.role == "input":
                        kernel = other.get_layer(member.layer).kernel
                        value = np.moveaxis(kernel.numpy(), member.axis, 0)
                        value[member.positions[number]] *= factor
                        kernel.assign(np.moveaxis(value, 0, member.axis))
                losses.append(loss(other, x, y))
            expected = (losses[0] - losses[1]) / 0.02
            assert found[group.units[number]] == pytest.approx(expected, rel=5e-2, abs=5e-4)


def test_taylor_adds_squares_of_batches():
    (x, y), model = digits(BATCH + 40), network()
    graph, weights, criterion = observed(criteria.Taylor(), model, (x, y))
    batches = [(x[:BATCH], y[:BATCH]), (x[BATCH:], y[BATCH:])]
    parts = [next(weight_gradients(graph.view, b, [("conv1", "kernel")], False)) for b in batches]
    kernel = model.get_layer("conv1").kernel.numpy().astype(float)
    expected = sum((kernel * part["conv1", "kernel"]) ** 2 for part in parts).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(criterion.scores(graph.by_name["conv1"], weights), expected / expected.mean(), rtol=1e-4)
    gates = observed(criteria.TaylorGate(), model, (x, y))[2]
    expected = sum(next(gate_gradients(graph, b, False)) ** 2 for b in batches)
    group = graph.by_name["conv2"]
    np.testing.assert_allclose(gates.scores(group, weights), expected[group.units], rtol=1e-4)


def test_a_dead_filter_scores_zero_and_goes_first():
    (x, y), model = digits(64), network()
    for layer, cut in (("conv1", "bn1"), ("short", None), ("conv2", None)):
        kernel, bias = model.get_layer(layer).kernel, model.get_layer(layer).bias
        kernel.assign(kernel.numpy() * (np.arange(kernel.shape[-1]) != 3))
        bias.assign(bias.numpy() * (np.arange(bias.shape[0]) != 3))
        if cut:
            bn = model.get_layer(cut)
            for weight in (bn.beta, bn.moving_mean):
                weight.assign(weight.numpy() * (np.arange(5) != 3))
    for criterion in (criteria.Taylor(), criteria.TaylorGate(), criteria.APoZ()):
        graph, weights, seen = observed(criterion, model, (x, y))
        assert seen.scores(graph.by_name["conv1"], weights)[3] == 0
        assert 3 not in seen.select(graph.by_name["conv1"], 4, weights)


def test_activity_is_measured_behind_activations():
    (x, _), model = digits(64), network()
    relu = np.asarray(keras.Model(model.input, _relu(model))(x))
    for criterion, expected in ((criteria.APoZ(), (relu != 0)), (criteria.MeanActivation(), relu)):
        graph, weights, seen = observed(criterion, model, x)
        np.testing.assert_allclose(
            seen.scores(graph.by_name["conv1"], weights), expected.mean(axis=(0, 1, 2)), rtol=1e-4
        )
        tanh = np.asarray(keras.Model(model.input, _output_of(model, layers.Activation))(x))
        if isinstance(criterion, criteria.MeanActivation):
            np.testing.assert_allclose(
                seen.scores(graph.by_name["conv2"], weights), tanh.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-6
            )


def _output_of(model, kind):
    return next(layer.output for layer in model.layers if type(layer) is kind)


def _relu(model):
    return _output_of(model, layers.ReLU)


@pytest.mark.parametrize(
    "name",
    [
        "ops_arithmetic",
        "flatten_dense",
        "depthwise",
        "se_reshape",
        "conv1d_bidirectional",
        "shared_conv",
        "mixed_precision",
        "time_distributed",
    ],
)
def test_networks_of_all_kinds_are_scored(name):
    model = ZOO[name]()
    x = random_inputs(model, batch=8)
    y = np.arange(8) % model.output_shape[-1]
    for criterion in (
        criteria.Taylor(),
        criteria.TaylorGate(),
        criteria.APoZ(),
        criteria.MeanActivation(),
    ):
        graph, weights, seen = observed(criterion, model, (x, y))
        for group in graph.groups:
            if seen.refuses(group) is None:
                assert np.isfinite(seen.scores(group, weights)).all()


def test_activity_refuses_what_passes_through_no_activation():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(2)]
    )
    for method in ("apoz", "mean_activation"):
        plan = kfp.plan_pruning(model, method, kfp.FiltersBudget(0.5), data=digits(64)[0], progress=False)
        assert [pin["reason"] for pin in plan.pinned if pin["layer"] == "conv"] == ["passes through no activation"]


def test_labels_are_needed():
    (x, y), model = digits(64), network()
    for method in ("taylor", "taylor_gate"):
        with pytest.raises(errors.CalibrationDataError, match="a gradient of the loss needs labelled samples"):
            kfp.prune_model(model, method, 0.5, data=x, progress=False)
        with pytest.raises(errors.CalibrationDataError, match="pass data="):
            kfp.prune_model(model, method, 0.5, progress=False)
        unet = keras.Model(model.input, model.get_layer("conv2").output)
        with pytest.raises(errors.CalibrationDataError, match="one output of class scores"):
            kfp.prune_model(unet, method, 0.5, data=(x, y), progress=False)
    for criterion in (criteria.Taylor(), criteria.TaylorGate(), criteria.APoZ()):
        graph = kfp.analyze(model)
        with pytest.raises(errors.CalibrationDataError, match="needs"):
            criterion.scores(graph.groups[0], Weights(graph.view))


# ---------------------------------------------------------------------------------------------- other backends

ELSEWHERE = """
import numpy as np, keras_filterprune as kfp
from keras_filterprune.probe import Weights
from keras_filterprune.probe.gradients import gate_gradients, weight_gradients
model = keras.saving.load_model(MODEL)
data = np.load(DATA)
graph = kfp.analyze(model)
samples = data["x"], data["y"]
(found,) = weight_gradients(graph.view, samples, [("conv1", "kernel")], False)
assert np.allclose(found["conv1", "kernel"], data["weights"], rtol=1e-2, atol=1e-5)
(found,) = gate_gradients(graph, samples, False)
assert np.allclose(found, data["gates"], rtol=1e-2, atol=1e-5)
assert kfp.prune_model(model, "taylor", 0.5, data=samples, progress=False).count_params() < model.count_params()
"""


@on_other_backends
def test_other_backends_differentiate_alike(backend, tmp_path):
    (x, y), model = digits(64), network()
    graph = kfp.analyze(model)
    (weights,) = weight_gradients(graph.view, (x, y), [("conv1", "kernel")], False)
    (gates,) = gate_gradients(graph, (x, y), False)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y, weights=weights["conv1", "kernel"], gates=gates)
    code = ELSEWHERE.replace("MODEL", repr(str(tmp_path / "model.keras")))
    run_on(backend, code.replace("DATA", repr(str(tmp_path / "data.npz"))))
