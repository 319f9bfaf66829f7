"""Activations are known by what they compute: names from any module, and proof that numbers are not mixed."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_filterprune as kfp
from keras_filterprune.handlers.activation import is_activation, is_relu
from keras_filterprune.handlers.functions import ELEMENTWISE, activation_name, is_elementwise

SHAPES = [(None, 8), (None, 5, 8), (None, 6, 6, 8)]


class Halve:
    def __call__(self, x):
        return x / 2


def relu(x):
    """Another one than its name says."""
    return ops.maximum(x, 0.5 * x)


NAMED = {
    "relu": [ops.relu, lambda x: ops.maximum(x, 0.0), lambda x: (x + abs(x)) / 2],
    "relu6": [ops.relu6, functools.partial(ops.clip, x_min=0.0, x_max=6.0)],
    "tanh": [ops.tanh, np.tanh],
    "sigmoid": [ops.sigmoid, lambda x: 1 / (1 + ops.exp(-x))],
    "gelu": [functools.partial(ops.gelu, approximate=False)],
    "leaky_relu": [ops.leaky_relu, functools.partial(ops.leaky_relu, negative_slope=0.2)],
    "linear": [lambda x: x, lambda x: ops.cast(x, "float32")],
    "softplus": [ops.softplus],
}
OTHERS = {
    "another gelu": ops.gelu,
    "another slope": functools.partial(ops.leaky_relu, negative_slope=0.3),
    "another relu": relu,
    "square": ops.square,
    "sine": ops.sin,
    "logarithm": ops.log,
    "step": lambda x: ops.cast(x > 0, x.dtype),
    "object": Halve(),
    "method": Halve().__call__,
}
MIXING = {
    "softmax": ops.softmax,
    "mean": lambda x: x - ops.mean(x, axis=-1, keepdims=True),
    "mean of the batch": lambda x: x - ops.mean(x, axis=0, keepdims=True),
    "by channel": lambda x: x * ops.arange(x.shape[-1], dtype=x.dtype),
    "one channel": lambda x: ops.concatenate([2 * x[..., :1], x[..., 1:]], axis=-1),
    "number of channels": lambda x: x / x.shape[-1],
    "so many channels": lambda x: x * ops.ones((8,), x.dtype),
    "neighbours": lambda x: ops.roll(x, 1, axis=-1),
    "sums": lambda x: ops.cumsum(x, axis=-1),
    "norm": lambda x: ops.normalize(x, axis=-1),
    "largest": lambda x: ops.where(x >= ops.max(x, axis=-1, keepdims=True), x, 0.0),
    "extremes": lambda x: ops.where(ops.max(ops.abs(x)) > 5e3, x, 2 * x),
    "order": lambda x: ops.sort(x, axis=-1),
    "random": lambda x: x + keras.random.normal(ops.shape(x)),
    "NumPy's random": lambda x: x + np.random.normal(size=tuple(x.shape)).astype("float32"),
    "another shape": lambda x: ops.concatenate([x, x], axis=-1),
    "an error": lambda x: x.no_such_thing,
    "glu": keras.activations.glu,
}
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    for name in ("relu", "relu6", "tanh", "sigmoid", "gelu", "leaky_relu", "elu", "selu", "softplus", "softsign"):
        NAMED.setdefault(name, []).append(getattr(tf.nn, name))
    MIXING |= {
        "tf.nn.softmax": tf.nn.softmax,
        "dropout": lambda x: tf.nn.dropout(x, 0.5),
        "clipped norm": lambda x: tf.clip_by_norm(x, 1e3),
    }


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_activations_of_keras_are_known(name):
    function = getattr(keras.activations, name)
    assert getattr(keras.activations, activation_name(function)) is function
    assert all(is_elementwise(function, shape) for shape in SHAPES)
    if name == "threshold":  # Takes more than a tensor.
        return
    # By what it computes, too.
    twin = {"celu": "elu", "swish": "silu", "hard_swish": "hard_silu"}.get(name, name)
    assert activation_name(lambda x: function(x)) == twin


@pytest.mark.parametrize("name", NAMED)
def test_known_functions_have_their_names_wherever_they_come_from(name):
    for function in NAMED[name]:
        assert activation_name(function) == name
        assert all(is_elementwise(function, shape, dtype) for shape in SHAPES for dtype in ("float32", "float16"))


@pytest.mark.parametrize("kind", OTHERS)
def test_unknown_functions_are_proven_to_be_elementwise(kind):
    assert activation_name(OTHERS[kind]) is None
    assert all(is_elementwise(OTHERS[kind], shape) for shape in SHAPES)


def test_functions_are_looked_at_in_silence(recwarn):
    """Keras warns of a softmax of one number."""
    assert not is_elementwise(lambda x: ops.softmax(x, axis=-1), (None, 2))
    assert not recwarn.list


@pytest.mark.parametrize("kind", MIXING)
def test_functions_that_mix_are_found_out(kind):
    assert activation_name(MIXING[kind]) is None
    assert not any(is_elementwise(MIXING[kind], shape) for shape in SHAPES)


def network(activation):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(8, 3, activation=activation, name="a")(inputs)
    h = layers.Conv2D(8, 3, name="b")(layers.Activation(activation, name="between")(h))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(h)))


@pytest.mark.parametrize("kind", [*NAMED, *OTHERS])
def test_networks_are_pruned_through_such_activations(kind):
    function = NAMED[kind][-1] if kind in NAMED else OTHERS[kind]
    model = network(function)
    small = kfp.prune_model(model, "l2", kfp.FiltersBudget(keep=0.5), progress=False)
    assert small.get_layer("a").filters == 4
    assert small.get_layer("a").activation == small.get_layer("between").activation == function


@pytest.mark.parametrize("kind", ["softmax", "by channel", "number of channels", "random"])
def test_networks_keep_the_channels_that_are_mixed(kind):
    graph = kfp.analyze(network(MIXING[kind]))
    assert [group.name for group in graph.groups] == ["b"]
    reason = next(pin.reason for pin in graph.pinned if pin.layer == "a")
    assert "not known to be element-wise" in reason


def test_what_follows_from_an_activation_follows_from_what_it_computes():
    for relu_ in NAMED["relu"]:
        assert is_relu(layers.Activation(relu_))
        assert is_activation(layers.Conv2D(4, 3, activation=relu_))
    assert not is_relu(layers.Activation(relu))
    assert not is_activation(layers.Conv2D(4, 3, activation=NAMED["linear"][0]))
