"""Criteria of the loss and of activations: gradients equal finite differences, averages are the network's."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from builders import assert_all_equal, digits, observed
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


# 75 samples: a batch that is differentiated in four parts.
COUNT = 75
CLASSES, RNG = np.arange(COUNT) % 3, np.random.default_rng(0)
NUMBERS, IMPORTANCE = RNG.normal(size=(COUNT, 3)).astype("float32"), RNG.uniform(0.5, 2, COUNT).astype("float32")
MASKS = RNG.integers(0, 3, (COUNT, 8, 8))
SPARSE = keras.losses.SparseCategoricalCrossentropy
LOGITS = SPARSE(from_logits=True)


def fourth_power(y, p):
    return keras.ops.mean((p - y) ** 4)


class OfTheWholeBatch(keras.losses.Loss):
    """No mean over samples."""

    def call(self, y, p):
        return keras.ops.var(p) * keras.ops.max(p, axis=-1)


def scores(h, name="scores", **options):
    return layers.Dense(3, name=name, **options)(layers.Flatten()(h))


def number(h):
    return layers.Dense(1, name="number")(layers.Flatten()(h))


def pixels(h, **options):
    return layers.Conv2D(3, 1, name="pixels", **options)(h)


def void(masks):
    return np.where(masks == 2, 255, masks)


# name: (outputs of features, arguments of compile(), labels, weights of samples)
LOSSES = {
    "class numbers, weights": (scores, {"loss": LOGITS}, CLASSES, IMPORTANCE),
    "by name": (lambda h: scores(h, activation="softmax"), {"loss": "sparse_categorical_crossentropy"}, CLASSES, None),
    "one-hot": (scores, {"loss": keras.losses.CategoricalCrossentropy(True)}, np.eye(3)[CLASSES], None),
    "several are right": (scores, {"loss": keras.losses.BinaryCrossentropy(True)}, (NUMBERS > 0).astype(int), None),
    "numbers": (scores, {"loss": "mse"}, NUMBERS, IMPORTANCE),
    "one number": (number, {"loss": "mae"}, NUMBERS[:, 0], None),
    "a sum": (scores, {"loss": keras.losses.MeanSquaredError("sum")}, NUMBERS, None),
    "masks": (pixels, {"loss": LOGITS}, MASKS, np.broadcast_to(IMPORTANCE[:, None, None], MASKS.shape)),
    "masks with a void": (pixels, {"loss": SPARSE(from_logits=True, ignore_class=255)}, void(MASKS), None),
    "own function": (scores, {"loss": fourth_power}, NUMBERS, None),
    "own object": (scores, {"loss": OfTheWholeBatch()}, NUMBERS, None),
    "regularized": (lambda h: scores(h, kernel_regularizer="l2"), {"loss": "mse"}, NUMBERS, None),
    "two outputs": (
        lambda h: [scores(h), number(h)],
        {"loss": [LOGITS, fourth_power], "loss_weights": [1.0, 0.1]},
        [CLASSES, NUMBERS[:, :1]],
        None,
    ),
    "one loss for two": (lambda h: [scores(h), scores(h, "more")], {"loss": "mse"}, [NUMBERS, -NUMBERS], None),
    "weights by output": (
        lambda h: [scores(h), number(h)],
        {"loss": [LOGITS, "mse"]},
        [CLASSES, NUMBERS[:, :1]],
        [IMPORTANCE, 1 / IMPORTANCE],
    ),
    "by name of output": (
        lambda h: [scores(h), number(h)],
        {"loss": {"scores": LOGITS, "number": "mse"}, "loss_weights": {"scores": 0.1, "number": 1.0}},
        {"number": NUMBERS[:, :1], "scores": CLASSES},
        None,
    ),
    "by key": (
        lambda h: {"kind": scores(h), "age": number(h)},
        {"loss": {"kind": LOGITS, "age": "mse"}, "loss_weights": {"kind": 0.1, "age": 1.0}},
        {"kind": CLASSES, "age": NUMBERS[:, :1]},
        None,
    ),
    "one output without": (
        lambda h: {"kind": scores(h), "age": number(h)},
        {"loss": {"kind": LOGITS}},
        {"kind": CLASSES, "age": NUMBERS[:, :1]},
        None,
    ),
}


def compiled(case):
    """A model that is compiled with the loss of a case, and data for it."""
    heads, arguments, labels, weights = LOSSES[case]
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 2))
    h = layers.Conv2D(4, 3, padding="same", activation="tanh", name="conv1")(inputs)
    model = keras.Model(inputs, heads(layers.Conv2D(4, 3, padding="same", activation="tanh", name="conv2")(h)))
    model.compile("sgd", **arguments)
    x = np.random.default_rng(1).normal(size=(COUNT, 8, 8, 2)).astype("float32")
    return model, (x, labels) if weights is None else (x, labels, weights)


@pytest.mark.parametrize("case", LOSSES)
def test_the_loss_is_the_one_the_model_is_compiled_with(case):
    import tensorflow as tf

    model, data = compiled(case)
    before = [value.copy() for value in model.get_weights()]
    graph, kernel = kfp.analyze(model), model.get_layer("conv2").kernel
    (found,) = weight_gradients(graph.view, data, [("conv2", "kernel")], False)
    (gates,) = gate_gradients(graph, data, False)
    x, labels, weights = (*data, None)[:3]
    labels, weights = (
        v if v is None else keras.tree.map_structure(keras.ops.convert_to_tensor, v) for v in (labels, weights)
    )
    with tf.GradientTape() as tape:
        loss = model.compute_loss(None, labels, model(x), weights)
    expected = keras.ops.convert_to_numpy(tape.gradient(loss, kernel.value))
    np.testing.assert_allclose(found["conv2", "kernel"], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    # conv2 reads conv1 and nothing else does: its gates are factors of its kernel.
    by_hand = (expected * keras.ops.convert_to_numpy(kernel)).sum(axis=(0, 1, 3))
    units = graph.by_name["conv1"].units
    np.testing.assert_allclose(gates[units], by_hand, rtol=1e-3, atol=1e-4 * np.abs(by_hand).max())
    assert_all_equal(before, model.get_weights())


@pytest.mark.parametrize(
    ("case", "labels", "sentence"),
    [
        ("class numbers, weights", CLASSES + 1, "expects class numbers from 0 to 2. Received: 1 to 3."),
        ("by name", CLASSES - 1, "expects class numbers from 0 to 2. Received: -1 to 1."),
        ("by name", CLASSES / 2, "expects class numbers, which are whole. Received: fractions (float64)"),
        ("by name", np.eye(3)[CLASSES], r"class numbers of shape (samples,), not one-hot. Received: shape (75, 3)."),
        ("masks", CLASSES, r"class numbers of shape (samples, 8, 8), not one-hot. Received: shape (75,)."),
        ("masks", np.where(MASKS == 2, 255, MASKS), "expects class numbers from 0 to 2. Received: 0 to 255."),
        ("masks with a void", MASKS + 1, "expects class numbers from 0 to 2. Received: 1 to 3."),
        ("one-hot", CLASSES, "expects labels of shape (samples, 3). Received: shape (75,)."),
        ("one-hot", NUMBERS, "expects labels from 0 to 1. Received: -"),
        ("several are right", (NUMBERS > 0) * 255, "expects labels from 0 to 1. Received: 0 to 255."),
        ("numbers", NUMBERS[:, :1], "'mse' at output 'scores' expects labels of shape (samples, 3). Received: shape"),
        ("numbers", NUMBERS[:50], "a row of labels for each of 75 samples at output 'scores'. Received: shape (50, 3)"),
        ("numbers", np.where(NUMBERS > 2, np.nan, NUMBERS), "finite labels at output 'scores'. Received: NaN or inf"),
        ("numbers", np.array(list("abc"))[CLASSES], "labels that are numbers at output 'scores'. Received: <U1."),
        ("numbers", [NUMBERS, NUMBERS], "an array of labels for each of ['scores']. Received: 2 arrays."),
        ("numbers", {"number": NUMBERS}, "labels by the names of outputs, ['scores']. Received: ['number']."),
        ("own function", NUMBERS[:, :2], "'fourth_power' refuses the labels, of shape (64, 2): "),
        ("own function", np.full((COUNT, 3), 1e30), "'fourth_power' is inf on the first samples."),
        ("two outputs", CLASSES, "labels for each of ['scores', 'number']. Received: 1 arrays."),
        ("two outputs", [NUMBERS[:, :1], CLASSES], "at output 'scores' expects class numbers, which are whole."),
        ("by name of output", {"number": NUMBERS[:, :1]}, "output 'scores' has the loss "),
        (
            "by key",
            {"kind": CLASSES, "old": CLASSES},
            "by the names of outputs, ['age', 'kind']. Received: ['kind', 'o",
        ),
    ],
)
def test_labels_that_do_not_fit_the_loss(case, labels, sentence):
    model, (x, *_) = compiled(case)
    for method in ("taylor", "taylor_gate"):
        with pytest.raises(errors.CalibrationDataError, match=re.escape(sentence)):
            kfp.prune_model(model, method, 0.5, data=(x, labels), progress=False)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (IMPORTANCE[:7], r"weights of samples are a number for each of 75\. Received: \(7,\)"),
        (np.where(CLASSES == 1, np.nan, IMPORTANCE), "weights of samples are finite"),
        (np.array(list("abc"))[CLASSES], r"Received: \(75,\) of <U1"),
    ],
)
def test_weights_that_are_none(weights, sentence):
    model, (x, labels) = compiled("own function")
    with pytest.raises(errors.CalibrationDataError, match=sentence):
        kfp.prune_model(model, "taylor", 0.5, data=(x, labels, weights), progress=False)


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


@pytest.mark.parametrize("group", [False, True])
def test_both_forms_of_the_weights_are_a_loop_over_filters_and_batches(group):
    (x, y), model = digits(BATCH + 40), network()
    graph, weights, criterion = observed(criteria.Taylor(aggregate="first", group=group), model, (x, y))
    for layer, name in (("conv1", "conv1"), ("short", "conv2")):
        kernel, expected = model.get_layer(layer).kernel.numpy().astype(float), np.zeros(len(graph.by_name[name].units))
        for rows in (slice(0, BATCH), slice(BATCH, None)):
            (found,) = weight_gradients(graph.view, (x[rows], y[rows]), [(layer, "kernel")], False)
            for j in range(kernel.shape[-1]):
                terms = (kernel[..., j] * found[layer, "kernel"][..., j]).ravel().tolist()
                expected[j] += sum(terms) ** 2 if group else sum(term**2 for term in terms)
        whole = criterion.of_layers(graph.by_name[name], [layer], weights)
        np.testing.assert_allclose(whole, expected, rtol=1e-4)


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


@pytest.mark.parametrize("name", ["se_reshape", "se_keepdims"])
def test_excitation_is_the_mean_of_the_gate_and_below_999_in_1000_redundant(name):
    model = ZOO[name]()
    x = random_inputs(model, batch=16, seed=1)
    graph, weights, seen = observed(criteria.Excitation(), model, x)
    ranked = [group for group in graph.groups if seen.refuses(group) is None]
    assert ranked and len(ranked) < len(graph.groups)
    gate = model.get_layer("se_expand").output
    expected = np.asarray(keras.Model(model.input, gate)(x)).reshape(16, -1).mean(axis=0)
    for group in ranked:
        np.testing.assert_allclose(seen.scores(group, weights), expected, rtol=1e-5)
        assert seen.redundant(group, weights) == sum(value < 0.999 * expected.mean() for value in expected)
    reasons = {seen.refuses(group) for group in graph.groups} - {None}
    assert reasons == {"passes through no gate of a whole channel, a sigmoid"}


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
