"""The operator norm and the geometric mean of filters equal their definitions."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from filters import layer_of, matrices, random_kernel
from keras import layers
from scipy.stats import gmean

import keras_filterprune as kfp
from keras_filterprune import criteria
from keras_filterprune.graph.types import Group, Member
from keras_filterprune.probe import Weights


def operator_norms(filters: np.ndarray, aggregate: str) -> np.ndarray:
    """Filter by filter and channel by channel, of filters (n, taps, channels)."""
    sums = np.zeros(len(filters))
    for channel in range(filters.shape[2]):
        kernels = filters[:, :, channel].astype(float)
        centred = kernels - kernels.mean(axis=0)
        direction = np.linalg.svd(centred)[2][0]
        if direction @ centred[0] < 0:
            direction = -direction
        for j, kernel in enumerate(centred):
            sums[j] += kernel @ direction if aggregate == "signed" else (kernel @ direction) ** 2
    return sums**2 if aggregate == "signed" else sums


@pytest.mark.parametrize("aggregate", ["sumsq", "signed"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 12), (5, 5, 1, 7), (1, 1, 6, 9), (3, 1, 2, 2)], ids=str)
def test_operator_norm_equals_a_loop(shape, aggregate):
    kernel = random_kernel(*shape, seed=21)
    expected = operator_norms(matrices(kernel), aggregate)
    scores = criteria.OperatorNorm(aggregate).scores(*layer_of(kernel))
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("aggregate", ["sumsq", "signed"])
def test_operator_norm_of_dense_layers_is_that_of_1x1_convolutions(aggregate):
    kernel = random_kernel(1, 1, 6, 9, seed=22)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(9, name="dense")(inputs)))
    model.get_layer("dense").kernel.assign(kernel[0, 0])
    graph = kfp.analyze(model)
    criterion = criteria.OperatorNorm(aggregate)
    found = criterion.scores(graph.by_name["dense"], Weights(graph.view))
    np.testing.assert_allclose(found, criterion.scores(*layer_of(kernel)), rtol=1e-12)


@pytest.mark.parametrize("aggregate", ["sumsq", "signed"])
def test_operator_norm_of_a_unit_with_two_filters_is_their_sum(aggregate):
    kernel = random_kernel(3, 3, 4, 10, seed=23)
    positions = np.stack([np.arange(5), np.arange(5, 10)], axis=1)
    group = Group("conv", np.arange(5), (Member("conv", "kernel", 3, "filter", positions),))
    own = operator_norms(matrices(kernel), aggregate)
    expected = own[:5] + own[5:]
    scores = criteria.OperatorNorm(aggregate).scores(group, {("conv", "kernel"): kernel})
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


def test_the_signed_operator_norm_depends_on_the_numbers_of_the_filters():
    kernel = random_kernel(3, 3, 4, 12, seed=24)
    order = np.random.default_rng(25).permutation(12)
    (group, weights), (_, moved) = layer_of(kernel), layer_of(kernel[..., order])
    summed, signed = criteria.OperatorNorm(), criteria.OperatorNorm("signed")
    np.testing.assert_allclose(summed.scores(group, moved), summed.scores(group, weights)[order], rtol=1e-9)
    ranked, again = (np.argsort(signed.scores(group, w)) for w in (weights, moved))
    assert order[again].tolist() != ranked.tolist()


def test_what_all_filters_have_in_common_does_not_count_for_the_operator_norm():
    kernel = random_kernel(3, 3, 4, 12, seed=26)
    shifted = kernel + 5 * random_kernel(3, 3, 4, 1, seed=27)
    for aggregate in ("sumsq", "signed"):
        scores = (criteria.OperatorNorm(aggregate).scores(*layer_of(k)) for k in (kernel, shifted))
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-4)
    assert criteria.OperatorNorm().scores(*layer_of(np.ones((3, 3, 4, 5), "float32"))).tolist() == [0] * 5


def test_geometric_mean_equals_its_definition():
    kernel = random_kernel(3, 3, 4, 12, seed=28)
    weights = np.abs(kernel.astype(float))
    expected = (gmean(weights, axis=None) - gmean(weights, axis=(0, 1, 2))) ** 2
    scores = criteria.GeometricMean().scores(*layer_of(kernel))
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6)


def test_a_zero_among_the_weights_makes_the_geometric_mean_zero():
    kernel = random_kernel(3, 3, 4, 6, seed=29)
    kernel[1, 2, 3, 2] = 0
    kernel[..., 4] = 0
    means = gmean(np.abs(kernel.astype(float))[..., [0, 1, 3, 5]], axis=(0, 1, 2))
    # The whole layer's is 0 as well.
    expected = np.array([means[0], means[1], 0, means[2], 0, means[3]]) ** 2
    scores = criteria.GeometricMean().scores(*layer_of(kernel))
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-9)
