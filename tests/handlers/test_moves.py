"""Reshape, Permute and Flatten move channel ids the way NumPy moves an array of them."""

import math

import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import keras_filterprune as kfp
from keras_filterprune.graph import ChannelGraph


@st.composite
def factorizations(draw, size: int) -> tuple[int, ...]:
    """Shapes that hold so many elements."""
    shape = []
    while size > 1:
        shape.append(draw(st.sampled_from([n for n in range(2, size + 1) if size % n == 0])))
        size //= shape[-1]
    for _ in range(draw(st.integers(0 if shape else 1, 1))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return tuple(shape)


@st.composite
def moves(draw):
    """(shape before the channels, channels, layers that move them, the same for an array with a batch axis)."""
    sides = draw(st.lists(st.integers(1, 4), min_size=0, max_size=2).map(tuple))
    channels = draw(st.integers(1, 8))
    shape, steps = (*sides, channels), []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["reshape", "permute", "flatten"]))
        if kind == "permute":
            dims = draw(st.permutations(range(1, len(shape) + 1)))
            steps.append((layers.Permute(dims), lambda x, dims=dims: x.transpose(0, *dims)))
            shape = tuple(shape[d - 1] for d in dims)
        else:
            shape = draw(factorizations(math.prod(shape))) if kind == "reshape" else (math.prod(shape),)
            layer = layers.Reshape(shape) if kind == "reshape" else layers.Flatten()
            steps.append((layer, lambda x, shape=shape: x.reshape(len(x), *shape)))
    return sides, channels, steps


def moved(sides, channels, steps) -> tuple[ChannelGraph, list[np.ndarray]]:
    """The graph of a layer with so many channels and the moves behind it; which channel each element comes from."""
    x = keras.Input((*sides, 3))
    y = layers.Dense(channels, name="source")(x)
    origins = [np.broadcast_to(np.arange(channels), (1, *sides, channels))]
    for layer, move in steps:
        y = layer(y)
        origins.append(move(origins[-1]))
    return kfp.analyze(keras.Model(x, y)), origins


@settings(max_examples=60)
@given(move=moves())
def test_every_element_belongs_to_the_unit_of_its_place(move):
    graph, origins = moved(*move)
    (source,) = graph.tensors[1][1]
    units = graph.unit_of_id[source.ids]
    for (_, (tensor,)), origin in zip(graph.tensors[1:], origins, strict=True):
        assert tensor.tracked
        along = [-1 if axis == tensor.axis else 1 for axis in range(origin.ndim)]
        expected = np.broadcast_to(graph.unit_of_id[tensor.ids].reshape(along), origin.shape)
        np.testing.assert_array_equal(units[origin], expected)


def units_left(origin: np.ndarray, axis: int, channels: int) -> int:
    """Units that are left when every place along an axis is one unit, merged one pair of places at a time."""
    unit = list(range(channels))
    for place in np.moveaxis(origin, axis, 0):
        first, *others = {unit[channel] for channel in place.ravel()}
        unit = [first if u in others else u for u in unit]
    return len(set(unit))


@settings(max_examples=60)
@given(move=moves())
def test_no_other_axis_would_leave_more_units(move):
    sides, channels, steps = move
    graph, origins = moved(sides, channels, steps[:1])
    left = len(np.unique(graph.unit_of_id[graph.tensors[1][1][0].ids]))
    origin = origins[-1]
    # An axis of one place holds a channel only where there is no more than one element.
    axes = [axis for axis in range(1, origin.ndim) if origin.shape[axis] > 1 or origin.size == 1]
    assert left == max(units_left(origin, axis, channels) for axis in axes)
