"""Single operations compute what the layers do, and are asked themselves only where nothing is quicker."""

import time

import keras
import numpy as np
import pytest

from keras_filterprune import register_handler
from keras_filterprune.handlers.convolution import Conv
from keras_filterprune.probe.masks import mask_of
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


def broken(*args, **kwargs):
    raise AssertionError("the layer was asked itself")


class Alike(keras.layers.BatchNormalization):
    pass


@pytest.fixture(autouse=True)
def alike(registry):
    register_handler(Alike, like=keras.layers.BatchNormalization)


L = keras.layers
# {what: (layer, shape of its input, whether TensorFlow has something quicker)}
QUICKER = {
    "batch normalization": (lambda: L.BatchNormalization(), (2, 5, 6, 4), True),
    "of its own epsilon": (lambda: L.BatchNormalization(axis=3, epsilon=0.5), (2, 5, 6, 4), True),
    "without a scale": (lambda: L.BatchNormalization(scale=False), (2, 5, 6, 4), True),
    "without an offset": (lambda: L.BatchNormalization(center=False), (2, 5, 6, 4), True),
    "of rows": (lambda: L.BatchNormalization(axis=1), (2, 5, 6, 4), False),
    "of vectors": (lambda: L.BatchNormalization(), (3, 4), False),
    "in half precision": (lambda: L.BatchNormalization(dtype="mixed_float16"), (2, 5, 6, 4), False),
    "mean": (lambda: L.GlobalAveragePooling2D(), (2, 5, 6, 4), True),
    "mean, all axes": (lambda: L.GlobalAveragePooling2D(keepdims=True), (2, 5, 6, 4), True),
    "mean of channels first": (lambda: L.GlobalAveragePooling2D(data_format="channels_first"), (2, 4, 5, 6), False),
    "swish": (lambda: L.Activation("swish"), (2, 5, 4), True),
    "silu": (lambda: L.Activation(keras.activations.silu), (2, 5, 6, 4), True),
    "registered like another": (lambda: Alike(), (2, 5, 6, 4), True),
    "another activation": (lambda: L.Activation("gelu"), (2, 5, 4), False),
    "swish in half precision": (lambda: L.Activation("swish", dtype="float16"), (2, 5, 4), False),
}


@pytest.mark.portable
@pytest.mark.parametrize(("make", "shape", "quicker"), QUICKER.values(), ids=QUICKER)
def test_what_is_quicker_gives_the_same(make, shape, quicker):
    layer = make()
    x = called(layer, shape)
    for variable in layer.weights:
        variable.assign(keras.ops.abs(variable) + 0.1)
    wanted = layer(x, training=False) if layer.weights else layer(x)
    if quicker and keras.config.backend() == "tensorflow":
        layer.call = broken
    found = computed(layer, (x,), {"training": False} if layer.weights else {})
    assert found.shape == wanted.shape
    assert keras.backend.standardize_dtype(found.dtype) == keras.backend.standardize_dtype(wanted.dtype)
    wanted, found = (keras.ops.convert_to_numpy(y).astype("float32") for y in (wanted, found))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="nothing is quicker elsewhere")
@pytest.mark.parametrize(("make", "shape", "quicker"), QUICKER.values(), ids=QUICKER)
def test_gradients_go_through_what_is_quicker(make, shape, quicker):
    import tensorflow as tf

    layer = make()
    x = called(layer, shape)
    found = []
    for compute in (lambda: layer(x), lambda: computed(layer, (x,), {})):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.sin(tf.cast(compute(), "float32")))
        found.append(tape.gradient(total, x).numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.portable
@pytest.mark.parametrize("layer", [L.Activation("swish"), L.BatchNormalization()], ids=["swish", "normalization"])
def test_masks_go_with_what_is_computed(layer):
    x = L.Masking()(keras.ops.concatenate([keras.ops.ones((2, 3, 4)), keras.ops.zeros((2, 2, 4))], axis=1))
    y = computed(layer, (x,), {})
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(mask_of(y)), [[True] * 3 + [False] * 2] * 2)


@pytest.mark.portable
@pytest.mark.parametrize("base", [L.BatchNormalization, L.GlobalAveragePooling2D])
def test_what_is_registered_like_a_layer_and_computes_more_computes_itself(base, registry):
    class Doubled(base):
        def call(self, inputs):
            return 2 * super().call(inputs)

    register_handler(Doubled, like=base)
    layer = Doubled()
    x = called(layer, (2, 5, 6, 4))
    for variable in layer.weights:
        variable.assign(keras.ops.abs(variable))
    found, wanted = (keras.ops.convert_to_numpy(y) for y in (computed(layer, (x,), {}), layer(x)))
    np.testing.assert_array_equal(found, wanted)
