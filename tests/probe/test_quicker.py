"""Single operations compute what the layers do."""

import time

import keras
import numpy as np
import pytest

from keras_filterprune import register_handler
from keras_filterprune.handlers.convolution import Conv
from keras_filterprune.probe.quicker import computed

GROUPED = {
    "one channel for each group": lambda: keras.layers.Conv2D(8, 3, groups=8, padding="same"),
    "two filters for each": lambda: keras.layers.Conv2D(16, (3, 2), groups=8, strides=2, activation="relu"),
    "of one dimension": lambda: keras.layers.Conv1D(8, 3, groups=8, padding="causal", dilation_rate=2),
    "without a bias": lambda: keras.layers.Conv1D(8, 4, groups=8, padding="same", strides=2, use_bias=False),
    "steps that differ": lambda: keras.layers.Conv2D(8, 3, groups=8, strides=(2, 1)),
    "two channels for each group": lambda: keras.layers.Conv2D(8, 3, groups=4, dilation_rate=2),
    "of three dimensions": lambda: keras.layers.Conv3D(8, 2, groups=8),
    "channels first": lambda: keras.layers.Conv2D(16, 3, groups=8, data_format="channels_first"),
    "half precision": lambda: keras.layers.Conv2D(16, 3, groups=8, dtype="mixed_float16", activation="tanh"),
}


def called(layer: keras.layers.Layer, shape: tuple[int, ...]) -> keras.KerasTensor:
    """Inputs of a layer that has weights then, biases as well."""
    x = keras.random.normal(shape, seed=1)
    layer.build(shape)
    for number, variable in enumerate(layer.weights):
        variable.assign(keras.random.normal(variable.shape, seed=number))
    return x


@pytest.mark.portable
@pytest.mark.parametrize("make", GROUPED.values(), ids=GROUPED)
def test_a_grouped_convolution_computes_what_the_layer_does(make):
    layer = make()
    if layer.data_format == "channels_first" and keras.config.backend() == "tensorflow":
        pytest.skip("TensorFlow computes no convolution of channels first on CPUs")
    x = called(layer, (2, *[8] * layer.rank, 8))
    wanted, found = layer(x), computed(layer, (x,), {"training": False})
    assert keras.backend.standardize_dtype(found.dtype) == keras.backend.standardize_dtype(wanted.dtype)
    wanted, found = (keras.ops.convert_to_numpy(y).astype("float32") for y in (wanted, found))
    tolerance = 2e-2 if layer.compute_dtype == "float16" else 1e-5
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.portable
def test_a_layer_of_somebody_else_computes_itself(registry):
    """Whatever its handler says."""

    class Doubled(keras.layers.Conv2D):
        def call(self, inputs):
            return 2 * super().call(inputs)

    register_handler(Doubled)(type("Handler", (Conv,), {}))
    layer = Doubled(8, 3, groups=8)
    x = called(layer, (2, 8, 8, 8))
    found, wanted = (keras.ops.convert_to_numpy(y) for y in (computed(layer, (x,), {}), layer(x)))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="Keras compiles them on TensorFlow alone")
def test_a_channel_for_each_group_is_compiled_by_nobody():
    layer = keras.layers.Conv2D(96, 7, padding="same", groups=96)
    x = called(layer, (8, 28, 28, 96))

    def seconds(compute) -> float:
        start = time.process_time()
        for _ in range(3):
            compute()
        return time.process_time() - start

    assert seconds(lambda: computed(layer, (x,), {})) < seconds(lambda: layer(x)) / 4
