"""Layers that give their input in inference are known by what they do, and nothing of theirs is moved by that."""

import keras
import pytest
from builders import array
from keras import layers

from keras_filterprune.handlers.passing import passes_in_inference


class Counting(layers.Layer):
    """Has counted its calls before anything else."""

    def __init__(self, made, **kwargs):
        super().__init__(**kwargs)
        self.made, self.calls = made, keras.Variable(0.0, trainable=False)

    def call(self, x, training=None):
        self.calls.assign_add(1.0)
        return self.made(x, training)


@pytest.mark.parametrize(
    ("made", "passes"),
    [
        (lambda x, training: x * 2 if training else x, True),
        (lambda x, training: x, True),
        (lambda x, training: x if training else x * 2, False),
        (lambda x, training: keras.ops.copy(x), False),
        (lambda x, training: [x], False),
        (lambda x, training: 1 / 0, False),
    ],
)
def test_what_passes_in_inference(made, passes):
    layer = Counting(made)
    assert passes_in_inference(layer) is passes
    assert array(layer.calls) == 0


@pytest.mark.parametrize("other", [layers.Identity(), keras.ops.relu, None, layers.Dense(2)])
def test_what_has_no_training_is_not_called(other):
    assert not passes_in_inference(other)
