"""Models in channels_first: computed channels last they give the same, and are pruned like others."""

import keras
import numpy as np
import pytest
from builders import predict
from keras import layers, ops
from oracle import difference
from zoo import random_inputs, randomise

import keras_filterprune as kfp

pytestmark = pytest.mark.portable
FIRST = {"data_format": "channels_first"}
SITUATIONS = {}


def situation(build):
    SITUATIONS[build.__name__] = build
    return build


# Sides are never as long as there are channels: on TensorFlow, Keras would add biases along the wrong axis.
def block(x, filters, strides=1):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False, **FIRST)(x)
    return layers.ReLU()(layers.BatchNormalization(axis=1)(x))


@situation
def flattened():
    steps = [layers.Conv2D(7, 3, activation="relu", **FIRST), layers.MaxPooling2D(2, **FIRST), layers.Flatten()]
    return keras.Sequential([keras.Input((3, 8, 8)), *steps, layers.Dense(5, activation="relu"), layers.Dense(3)])


@situation
def flattened_by_itself():
    inputs = keras.Input((3, 8, 6))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten(**FIRST)(block(block(inputs, 5), 4, 2))))


@situation
def joined():
    inputs = keras.Input((3, 8, 8))
    x = block(inputs, 6)
    x = layers.Add()([x, block(x, 6)])
    x = layers.Concatenate(axis=1)([x, layers.DepthwiseConv2D(3, padding="same", **FIRST)(x)])
    x = layers.Softmax(axis=2)(layers.UpSampling2D(2, **FIRST)(layers.AveragePooling2D(2, **FIRST)(x)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D(**FIRST)(x)))


@situation
def gated():
    """Both forms of squeeze-and-excitation: over a kept axis, and over numbers that are reshaped."""
    inputs = keras.Input((3, 8, 8))
    x = block(inputs, 6)
    x = x * layers.Conv2D(6, 1, activation="sigmoid", **FIRST)(layers.GlobalAveragePooling2D(keepdims=True, **FIRST)(x))
    gate = layers.Dense(6, activation="sigmoid")(ops.mean(x, axis=(2, 3)))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x * layers.Reshape((6, 1, 1))(gate))))


@situation
def images_out():
    inputs = {"image": keras.Input((2, 6, 6), name="image")}
    x = layers.Conv2DTranspose(4, 2, 2, **FIRST)(layers.ZeroPadding2D(1, **FIRST)(block(inputs["image"], 5)))
    return keras.Model(inputs, {"mask": x, "scores": layers.Dense(3)(layers.GlobalAveragePooling2D(**FIRST)(x))})


@situation
def nested():
    inner = keras.Input((2, 8, 8))
    x = layers.GroupNormalization(2, axis=1)(layers.Conv2D(8, 3, **FIRST)(inner))
    stage = keras.Model(inner, layers.SeparableConv2D(5, 3, **FIRST)(x), name="stage")
    inputs = keras.Input((2, 8, 8))
    x = layers.PReLU()(layers.UnitNormalization(axis=1)(stage(inputs)))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x + layers.Conv2D(5, 1, **FIRST)(x))))


@situation
def one_dimension():
    inputs = keras.Input((3, 12))
    x = layers.SpatialDropout1D(0.1)(layers.Conv1D(6, 3, activation="relu", **FIRST)(inputs))
    x = layers.Conv1D(5, 3, **FIRST)(layers.MaxPooling1D(2, **FIRST)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling1D(**FIRST)(x)))


class Block(layers.Layer):
    def __init__(self, filters):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(filters, 3, padding="same", **FIRST), layers.BatchNormalization(axis=1)

    def call(self, x):
        return ops.relu(self.norm(self.conv(x)))


@situation
def composite():
    inputs = keras.Input((3, 6, 6))
    x = Block(5)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x + Block(5)(x))))


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_it_gives_stays_and_it_is_pruned(name):
    model = randomise(SITUATIONS[name](), 0)
    model.compile("sgd", "mse")
    x = random_inputs(model, batch=3, seed=0)
    opened = kfp.open_model(model)
    assert not any(getattr(layer, "data_format", "") == "channels_first" for layer in opened.layers)
    assert opened.compiled
    assert difference(predict(model, x), predict(opened, x)) <= 1e-5
    small, report = kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), return_report=True, progress=False)
    assert report.verification <= 1e-5
    assert any("It computed in channels_first" in note for note in report.notes)
    assert small.count_params() < 0.75 * model.count_params()
    assert [y.shape for y in predict(small, x)] == [y.shape for y in predict(model, x)]


def test_of_layers_with_time_before_channels_is_said_what_to_do():
    inputs = keras.Input((2, 3, 6, 6))
    model = keras.Model(inputs, layers.Flatten()(layers.ConvLSTM2D(4, 3, name="video", **FIRST)(inputs)))
    with pytest.raises(
        kfp.errors.UnsupportedModelError, match=r"layer 'video' has its channels behind the axis of time"
    ):
        kfp.analyze(model)


def test_trained_flags_and_masks_of_weights_stay():
    model = SITUATIONS["joined"]()
    model.layers[1].trainable = False
    opened = kfp.open_model(model)
    assert [layer.trainable for layer in opened.layers if layer.name == model.layers[1].name] == [False]
    assert len(opened.trainable_weights) == len(model.trainable_weights)
    np.testing.assert_array_equal(opened.get_weights()[0], model.get_weights()[0])
