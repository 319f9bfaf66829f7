"""The proof that an opened model is the original: state that calls of one layer share counts, their order does not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_filterprune.opening.proof import difference_of


class Average(layers.Layer):
    """Passes on what it takes, and keeps a moving average of it."""

    def __init__(self, updates=1, momentum=0.6, **kwargs):
        super().__init__(**kwargs)
        self.updates, self.momentum = updates, momentum
        self.average = self.add_weight((), "ones", trainable=False, name="average")

    def call(self, x):
        for _ in range(self.updates):
            self.average.assign(self.momentum * self.average + (1 - self.momentum) * ops.mean(x))
        return x


class Branches(keras.Model):
    """What both branches make, in an order."""

    def __init__(self, order):
        super().__init__()
        self.shared, self.order = Average(), order

    def call(self, x):
        made = {n: self.shared(x[n]) for n in self.order}
        return made[0] + 2 * made[1]


def graph(layer, calls=(0, 1)):
    """Both branches as a graph, which Keras runs in an order of its own; of inputs without a call nothing is kept."""
    inputs = [keras.Input((3,)), keras.Input((3,))]
    made = {n: layer(inputs[n]) for n in calls}
    first, second = (made.get(n, inputs[n]) for n in (0, 1))
    return keras.Model(inputs, first + 2 * second)


def difference(layer, order=(0, 1), calls=(0, 1)):
    original, x = Branches(order), [np.full((2, 3), n, "float32") for n in (3.0, -5.0)]
    origins = [(original.shared.average, layer.average)]
    found = difference_of(original, graph(layer, calls), origins, x)
    assert float(original.shared.average.value) == float(layer.average.value) == 1.0
    return found


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_order_of_branches_makes_no_difference(order):
    assert difference(Average(), order) == ""


@pytest.mark.parametrize(
    "layer, calls",
    [
        (Average(updates=0), (0, 1)),
        (Average(updates=2), (0, 1)),
        (Average(momentum=0.601), (0, 1)),
        (Average(), (0,)),
        (Average(), (1,)),
        (Average(), ()),
    ],
    ids=["no update", "two updates", "another momentum", "first branch alone", "second branch alone", "no call"],
)
def test_state_that_is_kept_otherwise_is_found(layer, calls):
    assert "what it remembers of a batch differs" in difference(layer, calls=calls)
