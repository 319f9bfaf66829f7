"""Kernels of convolutions that a layer computes of its weights at each call."""

import keras
import numpy as np
import pytest
from composites import WIDTH, around, layer, sequence, weighted
from keras import layers, ops
from opened import assert_close, batch, outputs, randomised

import keras_filterprune as kfp

FILTERS, LATER = 7, 4


def standardised(channels, filters):
    def call(self, x):
        mean, deviation = (f(self.kernel, axis=(0, 1, 2), keepdims=True) for f in (ops.mean, ops.std))
        return ops.relu(ops.conv(x, (self.kernel - mean) / (deviation + 1e-5), padding="same") + self.bias)

    return weighted(call, kernel=(3, 3, channels, filters), bias=(filters,))


def normalised(channels, filters):
    def call(self, x):
        kernel = self.v * (self.g / (1e-6 + ops.sqrt(ops.sum(ops.square(self.v), axis=(0, 1, 2)))))
        return ops.tanh(ops.conv(x, kernel, padding="same", dilation_rate=2))

    return weighted(call, v=(3, 3, channels, filters), g=(filters,))


def transposed(channels, filters):
    def call(self, x):
        kernel = self.kernel / (1e-6 + ops.max(ops.abs(self.kernel), axis=(0, 1), keepdims=True))
        return ops.relu(ops.conv_transpose(x, kernel, padding="same"))

    return weighted(call, kernel=(3, 3, filters, channels))


def of_one_dimension(channels, filters):
    def call(self, x):
        return ops.relu(ops.conv(x, ops.sin(self.kernel) * np.hamming(3)[:, None, None].astype("float32")))

    return weighted(call, kernel=(3, channels, filters))


def of_a_layer(channels, filters):
    class Standardised(layers.Conv2D):
        def call(self, x):
            kernel = self.kernel - ops.mean(self.kernel, axis=(0, 1, 2), keepdims=True)
            return self.activation(ops.conv(x, kernel, padding=self.padding) + self.bias)

    return lambda name: Standardised(filters, 3, padding="same", activation="relu", name=name)


KINDS = {make.__name__: make for make in (standardised, normalised, transposed, of_one_dimension, of_a_layer)}
every = pytest.mark.parametrize("kind", KINDS)


def built(kind):
    first, second = KINDS[kind](WIDTH, FILTERS), KINDS[kind](FILTERS, LATER)
    steps = first(name="first"), second(name="second")
    return randomised(sequence(*steps) if kind == "of_one_dimension" else around(*steps))


def numbers(variable):
    return np.array(keras.ops.convert_to_numpy(variable.value))


@every
def test_they_become_kernels_with_filters(kind):
    model = built(kind)
    graph = kfp.analyze(model)
    x = batch(graph.model)
    assert_close(outputs(model, x), outputs(graph.model, x))
    assert {WIDTH, FILTERS, LATER} <= {group.size for group in graph.groups}
    assert not [call.path for call in graph.view.calls if call.closed]
    assert any("at each call" in note for note in graph.view.notes)


@every
def test_what_is_pruned_equals_the_original_with_weights_of_zero(kind):
    """A filter of zeros makes zeros, whatever is computed of it; that of what reads it is computed of all channels."""
    model = built(kind)
    graph = kfp.analyze(model)
    plan = kfp.plan_pruning(graph.model, "l2", kfp.FiltersBudget(keep=0.5), progress=False)
    small = kfp.apply_plan(graph.model, plan, compensate="none", progress=False)
    for entry in plan.groups:
        group = graph.by_name[entry["name"]]
        gone = np.delete(np.arange(group.size), entry["kept"])
        for variable in model.get_layer(group.producers[0].split("_")[0]).weights:
            value = numbers(variable)
            # The axis of the filters: sizes are told apart.
            value[tuple(gone if n == group.size else slice(None) for n in value.shape)] = 0
            variable.assign(value)
    x = batch(graph.model)
    assert_close(outputs(model, x), outputs(small, x))
    assert small.count_params() < graph.model.count_params()


def twice_read(self, x):
    kernel = self.kernel - ops.mean(self.kernel)
    return ops.relu(ops.conv(x, kernel, padding="same") + ops.sum(self.kernel))


def of_the_input(self, x):
    return ops.relu(ops.conv(x, self.kernel * ops.mean(x), padding="same"))


def ruled():
    class Ruled(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight((3, 3, WIDTH, FILTERS), "glorot_uniform", regularizer="l2", name="kernel")

        def call(self, x):
            return ops.relu(ops.conv(x, self.kernel - ops.mean(self.kernel), padding="same"))

    return Ruled()


SHAPE = (3, 3, WIDTH, FILTERS)
LEFT = {
    "what something else reads": lambda: weighted(twice_read, kernel=SHAPE)(),
    "what depends on the input": lambda: weighted(of_the_input, kernel=SHAPE)(),
    "what a regularizer changes": ruled,
    "of a layer that is called as well": lambda: layer(
        lambda self, x: ops.conv(self.conv(x), 2.0 * self.conv.kernel, padding="same"),
        conv=layers.Conv2D(WIDTH, 3, padding="same", name="conv"),
    ),
}


@pytest.mark.parametrize("what", LEFT)
def test_others_stay_what_they_are(what):
    model = randomised(around(LEFT[what]()))
    graph = kfp.analyze(model)
    x = batch(graph.model)
    assert_close(outputs(model, x), outputs(graph.model, x))
    assert len(graph.model.trainable_weights) == len(model.trainable_weights)
    assert any(call.closed for call in graph.view.calls) == (what == "of a layer that is called as well")
    assert not any("at each call" in note for note in graph.view.notes)


def test_frozen_weights_make_a_frozen_kernel():
    model = built("standardised")
    model.get_layer("first").trainable = False
    opened = kfp.open_model(model)
    assert [opened.get_layer(f"{name}_kernel").kernel.trainable for name in ("first", "second")] == [False, True]
