"""Trials: the error of the masked network is that of the rebuilt one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import assert_all_equal, images, keeping, predict, relative_error, values
from keras import layers
from trials import CHAIN, chain, labelled, trial_of, without_readers
from zoo import ZOO, random_inputs, randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, compensators, criteria


def cut(model: keras.Model, kept: dict[str, np.ndarray], compensate="none", x=None) -> keras.Model:
    return kfp.apply_plan(model, keeping(model, **kept), data=x, compensate=compensate, progress=False)


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "nested_functional",
        "siamese",
        "shared_conv",
        "depthwise",
        "group_norm",
        "conv1d_lstm",
        "time_distributed",
        "mlp_mixer",
        "lambda_layer",
        "hidden_softmax",
        "ops_slices",
    ],
)
def test_the_whole_network_has_no_error_and_is_not_written_to(name):
    model = ZOO[name]()
    before, graph = values(model), kfp.analyze(model)
    trial = trial_of(graph, random_inputs(model, 8), "error")
    assert trial({}) == pytest.approx(0, abs=1e-9)
    assert trial({group.name: np.arange(max(1, group.size // 2)) for group in graph.groups}) < -1e-4
    assert_all_equal(before, values(model))


def test_what_nobody_reads_is_not_missed():
    """The score is the dense one, and that of the model that is really rebuilt."""
    model = without_readers(chain(), conv1=[1, 5], conv2=[0])
    x, y = labelled(model, images())
    y = np.where(np.arange(len(y)) % 4 == 0, (y + 1) % 3, y)
    kept = {"conv1": np.array([0, 2, 3, 4, 6, 7]), "conv2": np.arange(1, 8)}
    accuracy, error = (trial_of(kfp.analyze(model), (x, y), measure) for measure in ("accuracy", "error"))
    assert accuracy({}) == accuracy(kept) == 0.75
    assert (predict(cut(model, kept), x)[0].argmax(axis=1) == y).mean() == 0.75
    # The ridge of least squares.
    assert error(kept) == pytest.approx(0, abs=1e-5)


def test_a_duplicate_is_made_up_for():
    model = chain()
    for variable in model.get_layer("conv1").weights:
        array = keras.ops.convert_to_numpy(variable.value).copy()
        array[..., 6] = array[..., 2]
        variable.assign(array)
    trial = trial_of(kfp.analyze(model), images(), "error")
    assert trial({"conv1": [0, 1, 2, 3, 4, 5, 7]}) > -1e-3
    assert trial({"conv1": [0, 1, 3, 4, 5, 7]}) < -1e-2


def test_the_error_of_layers_that_are_only_masked_is_that_of_the_rebuilt_model():
    """Transposed convolutions are not refitted."""
    model = ZOO["decoder"]()
    x, graph = random_inputs(model, 64), kfp.analyze(model)
    kept = {group.name: np.arange(group.size // 2) for group in graph.groups}
    score = trial_of(graph, x, "error")(kept)
    assert score == pytest.approx(-relative_error(model, cut(model, kept), x), rel=1e-5)


def test_the_error_after_least_squares_is_that_of_the_rebuilt_model():
    """Dense layers see every row, so that trial and compensator solve the same problem."""
    y = inputs = keras.Input((6,))
    for name in ("fc1", "fc2"):
        y = layers.Dense(8, activation="relu", name=name)(y)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(y)))
    x = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
    kept = {"fc2": np.array([1, 3, 4])}
    score = trial_of(kfp.analyze(model), x, "error")(kept)
    small = cut(model, kept, compensators.LeastSquares(), x)
    assert score == pytest.approx(-relative_error(model, small, x), rel=1e-2)
    assert score < -1e-2


@pytest.mark.parametrize("kind", [layers.SimpleRNN, layers.LSTM, layers.GRU], ids=lambda k: k.__name__)
def test_a_constant_channel_is_made_up_for_in_recurrent_layers(kind):
    inputs = keras.Input((8, 3))
    y = layers.Conv1D(6, 3, padding="same", name="conv1")(inputs)
    model = randomise(keras.Model(inputs, kind(5, name="rnn")(y)))
    conv = model.get_layer("conv1")
    kernel, bias = (keras.ops.convert_to_numpy(w.value).copy() for w in (conv.kernel, conv.bias))
    kernel[..., 2], bias[2] = 0, 2
    conv.kernel.assign(kernel)
    conv.bias.assign(bias)
    trial = trial_of(kfp.analyze(model), random_inputs(model, 128), "error")
    assert trial({"conv1": [0, 1, 3, 4, 5]}) > -1e-3


def test_a_normalization_over_another_axis_takes_no_constant():
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(inputs)
    y = layers.BatchNormalization(axis=1)(layers.Conv2D(5, 3, padding="same", use_bias=False, name="conv2")(y))
    model = randomise(keras.Model(inputs, layers.Conv2D(3, 3, name="last")(y)))
    assert -10 < trial_of(kfp.analyze(model), images(), "error")({"conv1": [0, 2, 4]}) < 0


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_accuracy_of_a_single_output(activation, shape):
    """A logit is positive, or a probability more than one half."""
    model = chain(1, activation)
    x = images()
    y = (predict(model, x)[0][:, 0] > (0.5 if activation else 0)).astype(int)
    assert 0.2 < y.mean() < 0.8
    y[:16] = 1 - y[:16]
    trial = trial_of(kfp.analyze(model), (x, y.reshape(shape)), "accuracy")
    assert trial({}) == 0.75
    kept = {name: [0, 1, 2] for name in CHAIN}
    assert 0 <= trial(kept) <= 1


def test_one_hot_labels_are_class_numbers():
    model = chain()
    x, y = labelled(model, images())
    y[:8] = (y[:8] + 1) % 3
    kept, graph = {"conv1": [0, 1, 2], "conv3": [1, 4, 5, 7]}, kfp.analyze(model)
    forms = (y, y[:, None], np.eye(3)[y], np.eye(3, dtype=bool)[y], y.astype("float32"))
    found = [trial_of(graph, (x, form), "accuracy") for form in forms]
    assert {trial({}) for trial in found} == {0.875}
    assert len({trial(kept) for trial in found}) == 1
    budget, search = 0.5, kfp.Method(criteria.L2(), allocators.Search(beta=2))
    plans = [
        kfp.plan_pruning(model, search, budget, data=(x, form), progress=False).groups for form in (forms[0], forms[2])
    ]
    assert plans[0] == plans[1]
