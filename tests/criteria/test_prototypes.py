"""Prototypes of filters: columns of the rank-1 part of a kernel's matrix."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array
from filters import SIGNS, by_definition, coupled, every_sign, matrices, random_kernel
from keras import layers
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune.criteria import pairwise as closeness
from keras_filterprune.probe import Weights


@every_sign
@pytest.mark.parametrize("shape", [(9, 4), (9, 32), (4, 4), (25, 3), (49, 1), (2, 50), (1, 7)], ids=str)
def test_prototypes_are_columns_of_the_rank_1_part(shape, sign):
    filters = np.random.default_rng(0).normal(size=(20, *shape)).astype("float32")
    found = closeness.prototypes(filters, sign)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.array([by_definition(f, sign) for f in filters]), atol=1e-9)


def test_the_two_signs_differ_where_first_and_largest_channel_do():
    filters = np.random.default_rng(1).normal(size=(50, 9, 8))
    first, dominant = (closeness.prototypes(filters, sign) for sign in SIGNS)
    same = (np.sign(first) == np.sign(dominant)).all(axis=1)
    assert 5 < same.sum() < 45
    np.testing.assert_allclose(np.abs(first), np.abs(dominant))


@every_sign
@pytest.mark.parametrize("shape", [(9, 4), (9, 32), (25, 1), (1, 6)], ids=str)
def test_filters_of_zeros_have_prototypes_of_zeros(shape, sign):
    filters = np.random.default_rng(2).normal(size=(6, *shape)).astype("float32")
    filters[[0, 4]] = 0
    norms = np.linalg.norm(closeness.prototypes(filters, sign), axis=1)
    np.testing.assert_allclose(norms, [0, 1, 1, 1, 0, 1], atol=1e-12)


@pytest.mark.parametrize("taps", [4, 25])
@pytest.mark.parametrize("first", [0.0, 1e-13])
def test_a_first_channel_without_weights_leaves_the_sign_to_the_largest(taps, first):
    filters = np.random.default_rng(3).normal(size=(30, taps, 8))
    filters[::2, :, 0] *= first
    found = closeness.prototypes(filters, "first_channel")
    assert np.isfinite(found).all()
    expected = [by_definition(f, ("dominant", "first_channel")[i % 2]) for i, f in enumerate(filters)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@every_sign
def test_prototypes_in_blocks_are_those_of_one_block(sign, monkeypatch):
    filters = np.random.default_rng(4).normal(size=(23, 9, 5)).astype("float32")
    whole = closeness.prototypes(filters, sign)
    monkeypatch.setattr(closeness, "_FILTERS", 200)
    np.testing.assert_allclose(closeness.prototypes(filters, sign), whole, atol=1e-12)


# {layer: (how to make it, shape of its input, name of the kernel, (kernel, j) -> filter j (taps, channels))}
KINDS = {
    "conv1d": (lambda: layers.Conv1D(6, 3, name="conv"), (9, 4), "kernel", lambda k, j: k[:, :, j]),
    "conv2d": (lambda: layers.Conv2D(6, (3, 2), name="conv"), (6, 6, 4), "kernel", lambda k, j: k[..., j]),
    "conv3d": (lambda: layers.Conv3D(6, 2, name="conv"), (4, 4, 4, 3), "kernel", lambda k, j: k[..., j]),
    "1x1": (lambda: layers.Conv2D(6, 1, name="conv"), (4, 4, 5), "kernel", lambda k, j: k[..., j]),
    "dense": (lambda: layers.Dense(6, name="conv"), (7,), "kernel", lambda k, j: k[None, :, j]),
    "separable": (
        lambda: layers.SeparableConv2D(6, 3, depth_multiplier=2, name="conv"),
        (6, 6, 4),
        "pointwise_kernel",
        lambda k, j: k[..., j],
    ),
    "conv1d transposed": (lambda: layers.Conv1DTranspose(6, 3, name="conv"), (6, 4), "kernel", lambda k, j: k[:, j]),
    "conv2d transposed": (
        lambda: layers.Conv2DTranspose(6, (3, 2), name="conv"),
        (5, 5, 4),
        "kernel",
        lambda k, j: k[:, :, j],
    ),
}


@every_sign
@pytest.mark.parametrize("kind", KINDS)
def test_prototypes_of_keras_layers(kind, sign):
    make, shape, weight, pick = KINDS[kind]
    inputs = keras.Input(shape)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(make()(inputs)))))
    graph = kfp.analyze(model)
    found, sizes = closeness.group_prototypes(graph.by_name["conv"], Weights(graph.view), sign)
    kernel = array(getattr(model.get_layer("conv"), weight))
    filters = [pick(kernel, j) for j in range(6)]
    filters = [f.reshape(-1, f.shape[-1]) for f in filters]
    np.testing.assert_allclose(found, np.array([by_definition(f, sign) for f in filters]), atol=1e-9)
    squares = np.array([np.square(f.astype(float)).sum() for f in filters])
    np.testing.assert_allclose(sizes, squares / squares.mean(), rtol=1e-6)


@every_sign
def test_prototypes_of_a_coupled_group_stand_side_by_side(sign):
    first, second = random_kernel(3, 3, 4, 8), 100 * random_kernel(1, 1, 6, 8, seed=1)
    first[..., 2], second[..., 5] = 0, 0
    first[..., 7] = second[..., 7] = 0
    found, sizes = closeness.group_prototypes(*coupled(first, second), sign)
    parts = [closeness.prototypes(matrices(k), sign) for k in (first, second)]
    expected = np.concatenate(parts, axis=1) / np.sqrt(2)
    expected[[2, 5]] *= np.sqrt(2)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    squares = [np.square(k.astype(float)).sum(axis=(0, 1, 2)) for k in (first, second)]
    np.testing.assert_allclose(sizes, sum(s / s.mean() for s in squares), rtol=1e-6)


def test_a_depthwise_kernel_is_compared_along_with_the_filters_it_follows():
    inputs = keras.Input((6, 6, 4))
    y = layers.DepthwiseConv2D(3, name="depthwise")(layers.Conv2D(6, 2, name="conv")(inputs))
    model = randomise(keras.Model(inputs, layers.Conv2D(2, 1)(y)))
    graph = kfp.analyze(model)
    found, _ = closeness.group_prototypes(graph.by_name["conv"], Weights(graph.view), "dominant")
    kernel, spread = (array(model.get_layer(name).kernel) for name in ("conv", "depthwise"))
    parts = [closeness.prototypes(matrices(k), "dominant") for k in (kernel, spread.swapaxes(2, 3))]
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1) / np.sqrt(2), atol=1e-9)
