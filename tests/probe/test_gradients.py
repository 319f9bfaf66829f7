"""How much outputs move with a channel: Jacobians of linear networks, noise on others."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import images, predict
from keras import layers
from readers import give, output, weight
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import criteria
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.gradients import output_sensitivity
from keras_filterprune.probe.inputs import calibration_inputs


def sensitivities(model: keras.Model, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    return output_sensitivity(view_model(model), calibration_inputs(x, view_model(model)), names, False)


def test_the_sensitivity_of_a_linear_network_is_the_norm_of_its_jacobian():
    inputs = keras.Input((5,))
    y = inputs
    for number, units in enumerate((7, 6, 4), 1):
        y = layers.Dense(units, name=f"fc{number}")(y)
    model = randomise(keras.Model(inputs, y))
    x = np.random.default_rng(0).normal(size=(512, 5)).astype("float32")
    found = sensitivities(model, x, ["fc1", "fc2", "fc3"])
    tail = np.eye(4)
    variance = predict(model, x)[0].var()
    for name in ("fc3", "fc2", "fc1"):
        # The mean over 512 draws of a squared normal: 6 %, three times over.
        assert found[name] == pytest.approx(np.square(tail).sum(axis=1) / variance, rel=0.2)
        tail = weight(model, name, "kernel") @ tail


def test_small_noise_moves_the_outputs_as_far_as_predicted():
    """Noise of variance s^2 in channel c raises the squared error, in units of the outputs' variance, by s^2 S_c."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, padding="same", name="conv1")(inputs)
    y = layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="conv2")(layers.ReLU()(y))
    model = randomise(keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(y))))
    x, rng = images(512), np.random.default_rng(1)
    found = sensitivities(model, x, ["conv1", "conv2"])
    wanted = output(model, x)
    for name, rest in (("conv1", keras.Model(model.layers[2].input, model.output)), ("conv2", None)):
        hidden = output(model, x, name)
        rest = rest or keras.Model(model.get_layer("conv2").output, model.output)
        for channel in range(hidden.shape[-1]):
            noisy = hidden.copy()
            noisy[..., channel] += 1e-2 * rng.normal(size=hidden.shape[:-1])
            moved = np.square(predict(rest, noisy.astype("float32"))[0] - wanted).sum(axis=1).mean()
            # Both are means over 512 random draws; 0.15 is seen.
            assert moved / wanted.var() == pytest.approx(1e-4 * found[name][channel], rel=0.3)


def test_a_channel_whose_readers_do_not_reach_the_outputs_goes_first():
    """Both branches read conv1 alike, but one of them is multiplied by nothing in the end."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
    a, b = (layers.Conv2D(5, 3, activation="relu", name=name)(y) for name in ("a", "b"))
    a, b = layers.Conv2D(4, 1, name="a2")(a), layers.Conv2D(4, 1, name="b2")(b)
    model = randomise(keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Add()([a, b]))))
    heard, unheard = [0, 3, 4, 6], [1, 2, 5, 7]
    for name, silent in (("a", unheard), ("b", heard)):
        kernel = weight(model, name, "kernel").copy()
        kernel[:, :, silent] = 0
        kernel[:, :, heard] *= 0.3
        give(model.get_layer(name), kernel=kernel)
    give(model.get_layer("b2"), kernel=0 * weight(model, "b2", "kernel"))
    budget = kfp.FiltersBudget({"conv1": 0.5})
    pursuit, cap = (
        kfp.plan_pruning(model, criterion, budget, data=images(), progress=False).kept["conv1"].tolist()
        for criterion in (criteria.OutputPursuit(), criteria.CaP())
    )
    assert pursuit == heard
    assert cap != heard


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_small_outputs_in_half_precision_are_no_infinite_gradients(size):
    """1e5 standard deviations to a unit are more than float16 holds."""

    def built(policy):
        inputs = keras.Input((5,))
        y = layers.Dense(7, name="fc1", dtype=policy)(inputs)
        return keras.Model(inputs, layers.Dense(4, name="fc2", dtype=policy)(layers.ReLU(dtype=policy)(y)))

    model, half = randomise(built("float32")), built("mixed_float16")
    give(model.get_layer("fc2"), kernel=size * weight(model, "fc2", "kernel"), bias=np.zeros(4))
    half.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(256, 5)).astype("float32")
    found, wanted = (sensitivities(m, x, ["fc1"])["fc1"] for m in (half, model))
    assert found == pytest.approx(wanted, rel=0.1)
