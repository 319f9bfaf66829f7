"""Recurrent units and layers of other kinds: what is left equals the dense model with the other channels' weights zero.

Every situation is to lose half of all its filters, and shares no code with the product's own proof.
"""

import functools
from typing import NamedTuple

import keras
import numpy as np
import pytest
from builders import predict
from keras import layers, ops
from oracle import difference, mask
from zoo import random_inputs, randomise

import keras_filterprune as kfp

pytestmark = pytest.mark.portable
TIME, SIDE, WIDTH = 5, 6, 6


class Situation(NamedTuple):
    """A model, whether its removal is exact, and layers whose filters stay besides those of the outputs."""

    build: callable
    exact: bool
    pinned: set


SITUATIONS = {}


def situation(exact=True, pinned=()):
    def register(build):
        SITUATIONS[build.__name__] = Situation(build, exact, set(pinned))
        return build

    return register


def sequence(*steps, batch=None):
    """A model of a sequence: a dense layer, the steps, class scores."""
    inputs = keras.Input(batch_shape=(batch, TIME, 3), name="signal")
    x = layers.Dense(WIDTH, name="before")(inputs)
    for step in steps:
        x = step(x)
    return scored(inputs, x)


def image(*steps):
    """A model of an image: a convolution, the steps, a convolution and class scores."""
    inputs = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(WIDTH, 3, padding="same", activation="relu", name="before")(inputs)
    for step in steps:
        x = step(x)
    return scored(inputs, layers.Conv2D(5, 1, name="after")(x))


def scored(inputs, x):
    x = x if len(x.shape) == 2 else layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(3, name="scores")(x), name="model")


# ---------------------------------------------------------------------------------------------------------- recurrent


@situation()
def lstm():
    return sequence(layers.LSTM(7, name="rnn"))


@situation()
def lstm_stack():
    return sequence(layers.LSTM(7, return_sequences=True, name="a"), layers.LSTM(5, use_bias=False, name="b"))


@situation()
def gru():
    return sequence(layers.GRU(7, return_sequences=True, name="rnn"))


@situation()
def gru_of_old():
    return sequence(layers.GRU(7, reset_after=False, go_backwards=True, name="rnn"))


@situation()
def simple():
    return sequence(layers.SimpleRNN(7, activation="relu", unroll=True, name="rnn"))


@situation()
def residual_and_dropout():
    def block(x):
        y = layers.LSTM(WIDTH, return_sequences=True, dropout=0.2, recurrent_dropout=0.2, name="rnn")(x)
        return layers.Add()([x, y])

    return sequence(block, layers.TimeDistributed(layers.Dense(4), name="each"))


@situation()
def called_twice():
    shared = layers.GRU(WIDTH, return_sequences=True, name="rnn")
    return sequence(shared, layers.Dense(WIDTH, name="between"), shared)


@situation()
def masked_steps():
    inputs = keras.Input((TIME,), dtype="int32", name="tokens")
    x = layers.Embedding(9, WIDTH, mask_zero=True, name="before")(inputs)
    return scored(inputs, layers.LSTM(5, name="b")(layers.GRU(7, return_sequences=True, name="a")(x)))


@situation()
def stateful():
    return sequence(layers.LSTM(7, stateful=True, return_sequences=True, name="rnn"), batch=3)


@situation()
def convolution_before():
    inputs = keras.Input((SIDE, SIDE, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.Reshape((SIDE, SIDE * 4))(layers.MaxPooling2D((1, 1))(x))
    return scored(inputs, layers.Bidirectional(layers.LSTM(5, name="rnn"), name="both")(x))


@situation()
def encoder_and_decoder():
    inputs = [keras.Input((TIME, 3)), keras.Input((4, 3))]
    _, *states = layers.LSTM(7, return_state=True, name="encoder")(layers.Dense(WIDTH, name="before")(inputs[0]))
    x, h, _ = layers.LSTM(7, return_sequences=True, return_state=True, name="decoder")(inputs[1], initial_state=states)
    return scored(inputs, layers.Concatenate()([layers.Flatten()(x), h]))


@situation()
def state_of_a_dense_layer():
    inputs = [keras.Input((TIME, 3)), keras.Input((4,))]
    state = layers.Dense(7, activation="tanh", name="start")(inputs[1])
    return scored(inputs, layers.GRU(7, name="rnn")(inputs[0], initial_state=state))


@situation(pinned=["rnn"])
def state_of_an_input():
    inputs = [keras.Input((TIME, 3)), keras.Input((7,))]
    x = layers.GRU(7, name="rnn")(layers.Dense(WIDTH, name="before")(inputs[0]), initial_state=inputs[1])
    return scored(inputs, x)


@pytest.mark.parametrize("mode", ["sum", "mul", "ave", "concat"])
def test_both_directions_in_every_mode(mode):
    check(lambda: sequence(layers.Bidirectional(layers.GRU(7, return_sequences=True), merge_mode=mode, name="rnn")))


@situation()
def both_directions_apart():
    def step(x):
        one, other, *states = layers.Bidirectional(
            layers.LSTM(5, return_state=True, return_sequences=True), merge_mode=None, name="rnn"
        )(x)
        return layers.Concatenate()([*map(layers.Flatten(), (one, layers.Dense(4, name="c")(other))), *states])

    return sequence(step)


@situation()
def both_directions_of_two_kinds():
    backward = layers.GRU(5, go_backwards=True, reset_after=False, return_sequences=True)
    return sequence(layers.Bidirectional(layers.LSTM(5, return_sequences=True), backward_layer=backward, name="rnn"))


@situation()
def a_cell():
    return sequence(layers.RNN(layers.LSTMCell(7), return_sequences=True, name="rnn"))


@situation()
def cells_on_each_other():
    cells = [layers.LSTMCell(7), layers.GRUCell(5), layers.SimpleRNNCell(4)]

    def step(x):
        y, *states = layers.RNN(cells, return_state=True, name="rnn")(x)
        return layers.Concatenate()([y, *keras.tree.flatten(states)])

    return sequence(step)


@situation()
def cells_in_both_directions():
    return sequence(layers.Bidirectional(layers.RNN([layers.GRUCell(5), layers.GRUCell(4)]), name="rnn"))


@situation()
def cells_called_by_themselves():
    """Step by step, one with two states and one with one, that begin with what dense layers make."""
    inputs = keras.Input((4,), name="signal")
    x, start = layers.Dense(WIDTH, name="before")(inputs), layers.Dense(7, activation="tanh", name="start")(inputs)
    long, short = layers.LSTMCell(7, name="long"), layers.GRUCell(5, reset_after=False, name="short")
    states, h = [start, layers.Dense(7, name="carry")(inputs)], layers.Dense(5, name="other")(inputs)
    for _ in range(3):
        x, states = long(x, states)
        x = layers.Dense(WIDTH, activation="relu")(x)
        h, _ = short(x, h)
    return scored(inputs, layers.Concatenate()([x, h]))


class Own(layers.SimpleRNNCell):
    """A cell of which nothing is known."""


@situation(pinned=["before", "rnn"])
def a_cell_of_ones_own():
    return sequence(layers.RNN(Own(7), return_sequences=True, name="rnn"), layers.Dense(4, name="after"))


@situation(pinned=["rnn"])
def gates_that_mix():
    return sequence(layers.LSTM(7, recurrent_activation="softmax", name="rnn"))


@situation()
def video():
    inputs = keras.Input((3, SIDE, SIDE, 2), name="video")
    x = layers.ConvLSTM2D(5, 3, padding="same", return_sequences=True, name="a")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ConvLSTM2D(4, (3, 2), strides=2, use_bias=False, name="b")(x)
    return scored(inputs, layers.Conv2D(3, 1, name="c")(x))


@situation()
def convolutional_line():
    inputs = keras.Input((3, SIDE, 2))
    x, h, c = layers.ConvLSTM1D(5, 3, dilation_rate=2, return_state=True, name="a")(inputs)
    return scored(inputs, layers.Add()([x, h, c]))


@situation()
def convolutional_volume():
    inputs = keras.Input((2, 4, 4, 4, 1))
    return scored(inputs, layers.ConvLSTM3D(4, 2, activation="relu", name="a")(inputs))


# ------------------------------------------------------------------------------------------------- sums of products


def towers(*widths, shape=(4,)):
    inputs = [keras.Input(shape), keras.Input(shape)]
    sides = [
        layers.Dense(n, activation="relu", name=f"side{i}")(x)
        for i, (n, x) in enumerate(zip(widths, inputs, strict=True))
    ]
    return inputs, sides


@situation()
def dot():
    inputs, sides = towers(7, 7)
    return scored(inputs, layers.Concatenate()([layers.Dot(-1, name="dot")(sides), sides[0]]))


@situation(exact=False)
def cosine():
    inputs, sides = towers(7, 7)
    return scored(inputs, layers.Dot(1, normalize=True, name="dot")(sides))


@situation(pinned=["side1"])
def dot_along_time():
    inputs, (x, y) = towers(7, 1, shape=(TIME, 3))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(layers.Dot(1, name="dot")([x, y]))))


@situation()
def dot_of_rows():
    inputs, sides = towers(7, 7, shape=(TIME, 3))
    return scored(inputs, layers.Dot((2, 2), name="dot")(sides))


def attended(attention, *widths):
    """Queries and keys of the first widths, values of the last one; without keys, values are keys."""
    inputs = keras.Input((TIME, 3))
    query, *keys, value = (layers.Dense(n, name=f"{n}_{i}")(inputs) for i, n in enumerate(widths))
    return scored(
        inputs, layers.Concatenate()([attention([query, value, *keys]), layers.Dense(2, name="beside")(value)])
    )


ATTENTIONS = {
    "looked_up": (layers.Attention(), 7, 7, 5),
    "looked_up_in_values": (layers.Attention(use_scale=True), 7, 7),
    "looked_up_in_the_past": (lambda x: layers.Attention()(x, use_causal_mask=True), 7, 7, 5),
    "joined": (layers.Attention(score_mode="concat"), 7, 7, 5),
    "added": (layers.AdditiveAttention(), 7, 7, 5),
    "added_in_values": (layers.AdditiveAttention(use_scale=False), 7, 7),
}
for _name, _arguments in ATTENTIONS.items():
    SITUATIONS[_name] = Situation(functools.partial(attended, *_arguments), True, set())


@situation(pinned=["7_0"])
def looked_up_by_inputs():
    inputs = [keras.Input((TIME, 3)), keras.Input((TIME, 7))]
    query, value = layers.Dense(7, name="7_0")(inputs[0]), layers.Dense(5, name="values")(inputs[0])
    return scored(inputs, layers.Attention()([query, value, inputs[1]]))


# ---------------------------------------------------------------------------------------------- moved over channels


@situation()
def flipped():
    return image(lambda x: ops.flip(x, axis=-1) + ops.flip(ops.flip(ops.flip(x, axis=1), axis=3), axis=2))


@situation()
def flipped_everywhere():
    return image(lambda x: ops.concatenate([ops.flip(x, axis=3), x, ops.flip(x, axis=2)], axis=-1))


@situation()
def rolled():
    return image(
        lambda x: ops.concatenate([ops.roll(x, shift, axis=-1) for shift in range(-1, 5)], axis=-1),
        lambda x: ops.roll(x, (1, -1, 3), axis=(1, 3, 2)),
    )


@situation()
def rolled_far():
    return image(lambda x: ops.concatenate([ops.roll(x, -9, axis=3), ops.roll(x, 1, axis=1)], axis=-1))


@situation()
def patches():
    return image(lambda x: ops.image.extract_patches(x, 2), lambda x: ops.image.extract_patches(x, (1, 3), strides=1))


if hasattr(ops, "depth_to_space"):

    @situation()
    def pixels():
        return image(
            lambda x: ops.depth_to_space(layers.Conv2D(12, 1, name="wide")(x), 2), lambda x: ops.space_to_depth(x, 3)
        )


@situation()
def space_to_depth():
    def step(x):
        x = ops.reshape(x, (-1, SIDE // 2, 2, SIDE // 2, 2, WIDTH))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, SIDE // 2, SIDE // 2, 4 * WIDTH))

    return image(step)


@situation()
def depth_to_space():
    def step(x):
        x = layers.Reshape((SIDE, SIDE, 2, 2, 3))(layers.Conv2D(12, 3, padding="same", name="wide")(x))
        return layers.Reshape((2 * SIDE, 2 * SIDE, 3))(layers.Permute((1, 3, 2, 4, 5))(x))

    return image(step)


# ------------------------------------------------------------------------------------------------- over space, over all


@situation()
def instances():
    def step(x):
        mean, variance = ops.moments(x, (1, 2), keepdims=True)
        return (x - mean) * ops.rsqrt(variance + 1e-3)

    return image(step)


@situation()
def length_over_space():
    return image(lambda x: x / (ops.norm(x, axis=(1, 2), keepdims=True) + 1), lambda x: ops.normalize(x, axis=1))


@situation()
def spectrum_over_time():
    def step(x):
        x = ops.transpose(x, (0, 2, 1))
        real, imaginary = ops.rfft(x)
        real, imaginary = ops.fft((real, imaginary))
        return ops.transpose(ops.square(real) + ops.square(imaginary), (0, 2, 1))

    return sequence(step, layers.Dense(4, activation="relu", name="after"))


@situation(pinned=["before"])
def spectrum_over_channels():
    def step(x):
        return ops.fft2((x, ops.zeros_like(x)))[0]

    return sequence(step, layers.Dense(4, activation="relu", name="after"))


@situation()
def sum_over_channels():
    return image(lambda x: x * ops.sigmoid(ops.sum(x, axis=-1, keepdims=True) - 1))


@situation(exact=False)
def response():
    """Global response normalization."""

    def step(x):
        size = ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True))
        return x + x * size / (ops.mean(size, axis=-1, keepdims=True) + 1e-6)

    return image(step)


@situation(exact=False)
def where_to_look():
    """The spatial half of CBAM."""

    def step(x):
        found = [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)]
        return x * layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="look")(ops.concatenate(found, -1))

    return image(step)


@situation(exact=False)
def layer_normalization_by_hand():
    def step(x):
        centred = x - ops.mean(x, axis=-1, keepdims=True)
        return centred * ops.rsqrt(ops.var(x, axis=-1, keepdims=True) + 1e-3)

    return image(step, lambda x: ops.normalize(x, axis=-1, order=1))


# ------------------------------------------------------------------------------------------------- every number alike


class Survival(layers.Layer):
    """Stochastic depth that scales in inference."""

    def __init__(self, rate=0.25, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seeds = rate, keras.random.SeedGenerator(0)

    def call(self, inputs, training=None):
        shortcut, x = inputs
        if training:
            x = x * ops.cast(keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.seeds) > self.rate, x.dtype)
            return shortcut + x
        return shortcut + x * (1 - self.rate)


class Drop(layers.Layer):
    """Stochastic depth of a branch."""

    def __init__(self, rate=0.25, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seeds = rate, keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        if not training:
            return x * (1 - self.rate)
        return x * ops.cast(keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.seeds) > self.rate, x.dtype)


@situation()
def stochastic_depth():
    def step(x):
        y = layers.Conv2D(WIDTH, 3, padding="same", name="branch")(x)
        return layers.Add()([x, Drop(name="drop")(Survival(name="survival")([x, y]))])

    return image(step)


@situation()
def scaled_by_a_lambda():
    return image(layers.Lambda(lambda x: 0.1 * x), layers.Lambda(ops.abs, output_shape=(SIDE, SIDE, WIDTH)))


class Shuffled(Drop):
    """Mixes channels, in training and in inference."""

    def call(self, x, training=False):
        return x + ops.flip(x, axis=-1)


@situation(pinned=["before"])
def mixing():
    return image(Shuffled(name="mix"))


# ------------------------------------------------------------------------------------------------------ what is left


def check(build, exact=True, pinned=frozenset()):
    model = randomise(build(), 0)
    graph = kfp.analyze(model)
    assert {pin.layer for pin in graph.pinned} == {"scores", *pinned}
    assert any(group.approximate for group in graph.groups) is not exact
    budget = kfp.FiltersBudget(0.5)
    settings = {"compensate": "none", "return_report": True, "progress": False}
    small, report = kfp.prune_model(model, "random", budget, seed=0, **settings)
    assert report.verification <= 1e-5
    kept = {group["name"]: np.array(group["kept"]) for group in report.plan.groups}
    assert all(len(units) < max(2, graph.by_name[name].size) for name, units in kept.items())
    if exact:
        dense = randomise(build(), 0)
        zeros = kfp.analyze(dense)
        x = random_inputs(dense, batch=3, seed=0)
        assert difference(predict(mask(zeros.model, zeros, kept), x), predict(small, x)) <= 1e-5


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_is_left_is_the_dense_model_without_the_others(name):
    if name == "patches" and keras.__version__ < "3.15":
        pytest.skip("Keras cannot take such patches of symbolic tensors before 3.15")
    check(*SITUATIONS[name])
