"""Models that are applied to every step of time."""

import keras
import pytest
from keras import layers, ops
from opened import assert_close, assert_pruned_is_masked, batch, outputs, randomised

import keras_filterprune as kfp

SIDE, STEPS = 6, 3
# {name: (the model, sizes of groups that there are)}
MODELS = {}


def frames(*sizes):
    def register(build):
        MODELS[build.__name__] = build, sizes
        return build

    return register


def video(*steps):
    inputs = x = keras.Input((STEPS, SIDE, SIDE, 2), name="video")
    for step in steps:
        x = step(x)
    return keras.Model(inputs, layers.Dense(3, name="scores")(x), name="model")


@frames(7, 6, 5)
def plain_layers():
    frame = keras.Sequential(
        [
            layers.Conv2D(7, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(6, "relu"),
        ],
        name="frame",
    )
    return video(layers.TimeDistributed(frame), layers.LSTM(5, name="rnn"))


@frames(7, 4)
def branches_that_join():
    inputs = keras.Input((SIDE, SIDE, 2))
    x = layers.Conv2D(7, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(7, 3, padding="same")(x)
    y = layers.Concatenate()([layers.Add()([x, y]), layers.Conv2D(4, 1, activation="tanh")(y)])
    frame = keras.Model(inputs, layers.GlobalAveragePooling2D()(y), name="frame")
    return video(layers.TimeDistributed(frame), layers.GRU(5))


@frames(7, 4)
def models_in_models():
    inner = keras.Sequential([layers.Conv2D(7, 3, activation="relu"), layers.ReLU()], name="inner")
    frame = keras.Sequential([inner, layers.Conv2D(4, 1, name="conv"), layers.Flatten()], name="frame")
    return video(layers.TimeDistributed(frame), layers.Flatten())


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_pruned_step_by_step(name):
    build, sizes = MODELS[name]
    model = randomised(build())
    graph = kfp.analyze(model)
    found = [group.size for group in graph.groups]
    for size in sizes:
        found.remove(size)
    x = batch(graph.model)
    assert_close(outputs(model, x), outputs(graph.model, x))
    assert_pruned_is_masked(model, graph=graph)


def of_operations():
    inputs = keras.Input((SIDE, SIDE, 2))
    x = layers.Conv2D(7, 3, activation="relu")(inputs)
    return keras.Model(inputs, ops.mean(x, axis=(1, 2)), name="frame")


def of_two_tensors():
    inputs = keras.Input((SIDE, 2))
    x = layers.Dense(6)(inputs)
    return keras.Model(inputs, layers.Flatten()(layers.Dot(-1)([x, x])), name="frame")


def applied(frame):
    inner = frame()
    inputs = keras.Input((STEPS, *inner.inputs[0].shape[1:]))
    x = layers.LSTM(5)(layers.TimeDistributed(inner, name="frames")(inputs))
    return keras.Model(inputs, layers.Dense(2)(x))


def of_images_as_well():
    frame = keras.Sequential([layers.Conv2D(7, 3, activation="relu"), layers.Flatten()], name="frame")
    inputs = [keras.Input((STEPS, SIDE, SIDE, 2)), keras.Input((SIDE, SIDE, 2))]
    x = [layers.Flatten()(layers.TimeDistributed(frame, name="frames")(inputs[0])), frame(inputs[1])]
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(x)), name="model")


# {what cannot be had layer by layer: (the model, a word of the reason)}
CLOSED = {
    "operations": (lambda: applied(of_operations), "to every step: 'mean"),
    "layers of two tensors": (lambda: applied(of_two_tensors), "to every step: 'dot"),
    "layers that images go through as well": (of_images_as_well, "a training step differs"),
}


@pytest.mark.parametrize("what", CLOSED)
def test_what_cannot_be_had_layer_by_layer_stays_closed_and_says_so(what):
    build, word = CLOSED[what]
    graph = kfp.analyze(build())
    (call,) = (call for call in graph.view.calls if call.path == "frames")
    assert word in call.closed
    assert word in graph.summary()
