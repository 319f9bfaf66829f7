"""The mean shift brings every channel back to the original's mean."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import assert_all_equal, images, values
from keras import layers
from readers import cut, flattened, give, normalized, one_convolution, output, weight
from zoo import randomise


def branching(reader) -> keras.Model:
    """conv1 -> relu -> conv2 -> relu -> a layer that does not mix all channels -> output."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
    y = layers.ReLU()(layers.BatchNormalization(name="bn2")(layers.Conv2D(8, 3, use_bias=False, name="conv2")(y)))
    return randomise(keras.Model(inputs, layers.Conv2D(3, 1, name="last")(reader(y))))


READERS = {
    "depthwise": lambda: layers.DepthwiseConv2D(3, name="reader"),
    "depthwise x2": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="reader"),
    "grouped": lambda: layers.Conv2D(8, 3, groups=2, name="reader"),
    "separable": lambda: layers.SeparableConv2D(5, 3, name="reader"),
    "transposed": lambda: layers.Conv2DTranspose(5, 3, strides=2, name="reader"),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_channel_of_a_layer_is_shifted_to_the_originals_mean(reader):
    model, x = branching(READERS[reader]()), images()
    small = cut(model, "mean_shift", x, conv1=[0, 2, 5, 6])
    for layer in ("bn2", "reader", "last"):
        wanted, received = (output(m, x, layer).mean(axis=(0, 1, 2)) for m in (model, small))
        assert received == pytest.approx(wanted, abs=1e-4)
    for layer in ("conv2", "reader", "last"):
        for new in small.get_layer(layer).weights:
            if "kernel" in new.name:
                old = weight(model, layer, new.name)
                old = old[:, :, [0, 2, 5, 6]] if layer == "conv2" else old
                np.testing.assert_array_equal(keras.ops.convert_to_numpy(new.value), old)


@pytest.mark.parametrize("reader", ["depthwise", "depthwise x2", "grouped", "transposed"])
def test_least_squares_shifts_the_mean_of_layers_that_it_cannot_refit(reader):
    model, x = branching(READERS[reader]()), images()
    small = cut(model, "least_squares", x, conv1=[0, 2, 5, 6])
    wanted, received = (output(m, x, "reader").mean(axis=(0, 1, 2)) for m in (model, small))
    assert received == pytest.approx(wanted, abs=1e-4)
    if reader != "transposed":
        np.testing.assert_array_equal(weight(small, "reader", "kernel"), weight(model, "reader", "kernel"))


@pytest.mark.parametrize("behind", [one_convolution, normalized, flattened], ids=lambda f: f.__name__)
def test_mean_shift_makes_up_for_a_constant_channel(behind):
    inputs = keras.Input((8, 8, 3))
    model = randomise(keras.Model(inputs, behind(layers.Conv2D(6, 3, activation="relu", name="conv1")(inputs))))
    kernel, bias = weight(model, "conv1", "kernel").copy(), weight(model, "conv1", "bias").copy()
    kernel[..., 2], bias[2] = 0, 1.5
    give(model.get_layer("conv1"), kernel=kernel, bias=bias)
    x, fresh, kept = images(), images(seed=1), [0, 1, 3, 4, 5]
    assert output(cut(model, "mean_shift", x, conv1=kept), fresh) == pytest.approx(output(model, fresh), abs=1e-4)
    assert np.abs(output(cut(model, "none", conv1=kept), fresh) - output(model, fresh)).max() > 0.1


def test_a_layer_with_room_for_no_constant_keeps_its_weights():
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, activation="relu", name="conv1")(inputs)
    y = layers.Conv2D(5, 3, use_bias=False, activation="relu", name="next")(y)
    model = randomise(keras.Model(inputs, layers.BatchNormalization(name="bn")(y)))
    small, plain = cut(model, "mean_shift", images(), conv1=[0, 1, 2]), cut(model, "none", conv1=[0, 1, 2])
    assert_all_equal(values(small), values(plain))
