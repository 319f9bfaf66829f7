"""Least squares leave no trace of duplicates, and keep to what they may write to."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import images, keeping, relative_error
from keras import layers
from readers import EXACT, affine, cut, give, one_convolution, output, weight
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import compensators
from keras_filterprune.compensators import least_squares


def duplicated(behind) -> keras.Model:
    """conv1, whose channel 6 is channel 2 again -> relu -> what reads it."""
    inputs = keras.Input((8, 8, 3))
    model = randomise(keras.Model(inputs, behind(layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs))))
    arrays = {name: weight(model, "conv1", name).copy() for name in ("kernel", "bias")}
    for array in arrays.values():
        array[..., 6] = array[..., 2]
    give(model.get_layer("conv1"), **arrays)
    return model


TRANSPOSED = {
    "valid": lambda y: layers.Conv2DTranspose(4, 3, name="next")(y),
    "strided": lambda y: layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="next")(y),
    "no bias": lambda y: layers.Conv2DTranspose(4, 2, strides=2, use_bias=False, name="next")(y),
    "normalized": lambda y: normalized_after(layers.Conv2DTranspose(4, 4, strides=2, use_bias=False, name="next")(y)),
}


def normalized_after(y):
    return layers.BatchNormalization(name="after")(y)


@pytest.mark.parametrize("behind", TRANSPOSED)
def test_a_duplicate_before_a_transposed_convolution_leaves_no_trace(behind):
    model, x = duplicated(TRANSPOSED[behind]), images()
    small, plain = (cut(model, how, x, conv1=[0, 1, 2, 3, 4, 5, 7]) for how in (EXACT, "none"))
    fresh = images(seed=1)
    assert output(small, fresh) == pytest.approx(output(model, fresh), abs=1e-3)
    assert np.abs(output(plain, fresh) - output(model, fresh)).max() > 0.05


def test_a_layer_of_too_many_columns_is_refitted_by_channels(monkeypatch):
    """54 columns and more: the regression of the removed channels on the kept ones, the same for every tap."""
    monkeypatch.setattr(least_squares, "LARGEST", 20)
    x, fresh = images(), images(seed=1)
    model = duplicated(one_convolution)
    small, report = kfp.apply_plan(
        model,
        keeping(model, conv1=[0, 1, 2, 3, 4, 5, 7]),
        data=x,
        compensate=EXACT,
        return_report=True,
        progress=False,
    )
    assert report.compensation.startswith("1 layers refitted")
    assert output(small, fresh) == pytest.approx(output(model, fresh), abs=1e-3)
    kept = [0, 1, 3, 4]
    wide, plain = (cut(model, how, x, conv1=kept) for how in (compensators.LeastSquares(), "none"))
    # 0.38 is seen.
    assert relative_error(model, wide, fresh) < 0.6 * relative_error(model, plain, fresh)
    monkeypatch.undo()
    whole = cut(model, compensators.LeastSquares(), x, conv1=kept)
    assert relative_error(model, whole, fresh) < relative_error(model, wide, fresh)


def test_a_layer_of_too_many_channels_is_shifted(monkeypatch):
    monkeypatch.setattr(least_squares, "LARGEST", 7)
    model, x = duplicated(one_convolution), images()
    small, report = kfp.apply_plan(
        model, keeping(model, conv1=[0, 1, 3, 4]), data=x, compensate=EXACT, return_report=True, progress=False
    )
    assert report.compensation.startswith("0 layers refitted by least squares, the mean of 1 shifted on 64 samples")
    np.testing.assert_array_equal(weight(small, "next", "kernel"), weight(model, "next", "kernel")[:, :, [0, 1, 3, 4]])
    shifted = cut(model, "mean_shift", x, conv1=[0, 1, 3, 4])
    assert weight(small, "next", "bias") == pytest.approx(weight(shifted, "next", "bias"), abs=1e-6)


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "linear"])
@pytest.mark.parametrize("case", ["shared", "read by another layer"])
def test_a_normalization_that_is_not_one_layers_alone_is_not_written_to(case, compensate):
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
    bn = layers.BatchNormalization(name="bn")
    a = layers.Conv2D(4, 3, use_bias=False, name="a")(y)
    if case == "shared":
        joined = layers.Add()([bn(a), bn(layers.Conv2D(4, 3, use_bias=False, name="b")(y))])
    else:
        joined = layers.Concatenate()([bn(a), layers.ReLU()(a)])
    model = randomise(keras.Model(inputs, layers.Conv2D(3, 1, name="last")(joined)))
    small = cut(model, compensate, images(), conv1=[0, 2, 4, 6])
    np.testing.assert_allclose(affine(small, "bn"), affine(model, "bn"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "linear", "bn"])
def test_a_bias_that_the_moving_mean_takes_off_again_changes_nothing(compensate):
    """Both models compute the same, so they do when pruned; a ReLU follows, and what it cuts off is not fitted."""
    found, x, fresh = [], images(), images(seed=1)
    for shift in (0.0, 3.0):
        inputs = keras.Input((8, 8, 3))
        y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
        y = layers.ReLU()(layers.BatchNormalization(name="bn2")(layers.Conv2D(6, 3, name="conv2")(y)))
        model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(y))))
        for variable in (model.get_layer("conv2").bias, model.get_layer("bn2").moving_mean):
            variable.assign_add(np.full(6, shift))
        found += [output(m, fresh) for m in (model, cut(model, compensate, x, conv1=[0, 1, 3, 6]))]
    assert found[0] == pytest.approx(found[2], abs=1e-4)
    assert found[1] == pytest.approx(found[3], abs=1e-3)


def test_targets_of_the_original_and_inputs_of_the_pruned_network_beat_both_of_the_original():
    """Layer by layer on what the layers before really give, errors are corrected that would add up."""
    inputs = keras.Input((10,))
    y = inputs
    for number in (1, 2, 3):
        y = layers.Dense(16, activation="relu", name=f"fc{number}")(y)
    model = randomise(keras.Model(inputs, layers.Dense(4, name="fc4")(y)))
    rng = np.random.default_rng(0)
    x, fresh = (rng.normal(size=(2000, 10)).astype("float32") for _ in range(2))
    kept = {f"fc{number}": list(range(9)) for number in (1, 2, 3)}
    asymmetric = cut(model, compensators.LeastSquares(variance=False, ridge=1e-9), x, **kept)
    symmetric = cut(model, "none", **kept)
    for number in (2, 3, 4):
        read = output(model, x, f"fc{number - 1}")
        target = read @ weight(model, f"fc{number}", "kernel") + weight(model, f"fc{number}", "bias")
        left = np.column_stack([read[:, :9], np.ones(len(read))])
        found = np.linalg.lstsq(left, target[:, : 9 if number < 4 else 4], rcond=None)[0]
        give(symmetric.get_layer(f"fc{number}"), kernel=found[:-1], bias=found[-1])
    plain = relative_error(model, cut(model, "none", **kept), fresh)
    assert relative_error(model, symmetric, fresh) < plain
    # 0.84 is seen.
    assert relative_error(model, asymmetric, fresh) < 0.93 * relative_error(model, symmetric, fresh)
