"""Dependency-aware scores: what makes a channel times what reads it, whichever of the two carries the scale."""

from __future__ import annotations

import numpy as np
import pytest
from builders import array, chain, network
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import criteria
from keras_filterprune.probe import Weights

CHAIN = {"conv0": ("batch_normalization", "conv1"), "conv1": ("batch_normalization_1", "head")}


def scored(model, criterion, name):
    graph = kfp.analyze(model)
    return criterion.scores(graph.by_name[name], Weights(graph.view))


def normalizations(model):
    return [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]


@pytest.mark.parametrize("number", [0, 1])
def test_scores_are_gamma_times_the_norm_of_what_reads(number):
    model = chain((8, 6))
    gamma = np.abs(array(normalizations(model)[number].gamma).astype(float))
    kernel = array(model.get_layer(("conv1", "head")[number]).kernel).astype(float)
    expected = [gamma[c] * np.sqrt(sum(w**2 for w in np.take(kernel, c, axis=-2).ravel())) for c in range(len(gamma))]
    np.testing.assert_allclose(scored(model, criteria.Dependency(), f"conv{number}"), expected, rtol=1e-5)


def test_a_scale_that_is_taken_back_changes_nothing():
    model, factors = chain((8, 6)), np.array([100, 0.01, 1, 5, 3, 0.1, 7, 2])
    own = {c: scored(model, c, "conv0") for c in (criteria.Dependency(), criteria.BNScale())}
    bn, reader = normalizations(model)[0], model.get_layer("conv1").kernel
    bn.gamma.assign(array(bn.gamma) * factors)
    bn.beta.assign(array(bn.beta) * factors)
    reader.assign(array(reader) / factors[:, None])
    for criterion, before in own.items():
        same = np.allclose(scored(model, criterion, "conv0"), before, rtol=1e-4)
        assert same == isinstance(criterion, criteria.Dependency)


def test_coupled_layers_and_several_readers_add_squares():
    model = network()
    made = np.square(array(model.get_layer("bn1").gamma).astype(float))
    made = made + np.square(array(model.get_layer("bn3").gamma).astype(float))
    read = sum(
        np.square(array(model.get_layer(name).kernel).astype(float)).sum(axis=(0, 1, 3)[:axes])
        for name, axes in (("conv2", 3),)
    ) + np.square(array(model.get_layer("head").kernel).astype(float)).sum(axis=1)
    found = scored(model, criteria.Dependency(), "conv1")
    np.testing.assert_allclose(found, np.sqrt(made * read), rtol=1e-5)


def test_without_normalization_the_filter_itself_counts():
    model = ZOO["flatten_dense"]()
    graph = kfp.analyze(model)
    plain = [g for g in graph.groups if not any(m.weight == "gamma" for m in g.members)]
    assert plain
    for group in plain:
        (made,) = group.producers
        kernel = array(model.get_layer(made).kernel).astype(float)
        norms = np.sqrt(np.square(kernel.reshape(-1, kernel.shape[-1])).sum(axis=0))
        read = sum(
            np.square(criteria.read_filters(m, Weights(graph.view))).sum(axis=1)
            for m in group.members
            if m.role == "input"
        )
        np.testing.assert_allclose(
            criteria.Dependency().scores(group, Weights(graph.view)), norms * np.sqrt(read), rtol=1e-5
        )
