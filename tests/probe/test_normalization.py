"""Batch normalization takes the statistics that a network has, and inference stays what it is."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import images, predict, relative_error, values
from keras import layers
from readers import weight
from zoo import ZOO, random_inputs, randomise

import keras_filterprune as kfp
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.inputs import calibration_inputs
from keras_filterprune.probe.normalization import fold_statistics, recalibrate

SIZE = 64


def fold(model, x) -> None:
    fold_statistics(model, calibration_inputs(x, view_model(model)), progress=False)


def normalizing(**settings):
    """A network whose normalization holds other statistics than its inputs have."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, name="conv")(inputs)
    y = layers.BatchNormalization(name="bn", **settings)(y)
    return randomise(keras.Model(inputs, layers.Conv2D(2, 1)(layers.ReLU()(y))))


@pytest.mark.parametrize("name", ["conv_bn_relu_chain", "residual_projection", "depthwise", "shared_conv", "unet"])
def test_inference_stays_what_it_is(name):
    model = ZOO[name]()
    x = random_inputs(model, SIZE)
    before, weights = predict(model, x), values(model)
    fold(model, x)
    assert not all(np.array_equal(a, b) for a, b in zip(weights, values(model), strict=True))
    for a, b in zip(keras.tree.flatten(before), keras.tree.flatten(predict(model, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())


def test_the_statistics_are_those_of_what_is_normalised():
    model, x = normalizing(), images(SIZE)
    fold(model, x)
    seen = keras.ops.convert_to_numpy(keras.Model(model.input, model.get_layer("conv").output)(x)).astype(float)
    assert weight(model, "bn", "moving_mean") == pytest.approx(seen.mean(axis=(0, 1, 2)), abs=1e-5)
    assert weight(model, "bn", "moving_variance") == pytest.approx(seen.var(axis=(0, 1, 2)), rel=1e-4)
    # Training normalises by what a batch holds: over all samples at once, the same.
    trained = keras.ops.convert_to_numpy(model(x, training=True))
    fold(model, x)
    np.testing.assert_allclose(trained, predict(model, x)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"scale": False}, {"center": False}, {"dtype": "float16"}], ids=str)
def test_what_cannot_take_up_the_difference_is_left(settings):
    model = normalizing(**settings)
    before = values(model)
    fold(model, images(SIZE))
    assert all((a == b).all() for a, b in zip(before, values(model), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_statistics_are_measured_anew_in_every_precision(dtype):
    single, other, x = normalizing(), normalizing(dtype=dtype), images(SIZE)
    for model in (single, other):
        assert recalibrate(model, calibration_inputs(x, view_model(model)), progress=False) == 1
        assert weight(model, "bn", "moving_variance").dtype == (dtype if model is other else "float32")
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(weight(other, "bn", name), weight(single, "bn", name), rtol=2e-3, atol=2e-3)


def test_training_starts_where_a_refitted_network_stands():
    model = ZOO["residual_projection"]()
    x = random_inputs(model, 256)
    small = kfp.prune_model(model, "l2", 0.5, data=x, compensate=kfp.compensators.LeastSquares(), progress=False)
    assert relative_error(model, small, x) < 1
    (inference,) = predict(small, x)
    before = [w.copy() for w in small.get_weights()]
    training = keras.ops.convert_to_numpy(small(x, training=True))
    small.set_weights(before)
    assert np.abs(training - inference).max() < 1e-2 * np.abs(inference).max()
