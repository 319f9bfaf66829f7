"""LASSO selection: solutions meet the conditions of an optimum, and what stays is never more than may."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, chain, images, observed
from sklearn.linear_model import Lasso as OfSamples

import keras_filterprune as kfp
from keras_filterprune import criteria
from keras_filterprune.criteria.lasso import lasso, lasso_path

# (channels, rows): more rows than channels, fewer, and channels that are there twice or do nothing.
PROBLEMS = {"well": (12, 60), "wide": (20, 10), "twice": (10, 40), "dead": (9, 30), "shifted": (16, 64)}


def contributions(kind):
    """Z (rows, channels)."""
    channels, rows = PROBLEMS[kind]
    rng = np.random.default_rng(len(kind))
    z = rng.normal(size=(rows, channels)) * rng.uniform(0.2, 2, channels) + 2.0 * (kind == "shifted")
    if kind == "twice":
        z[:, 5:] = z[:, :5]
    if kind == "dead":
        z[:, ::3] = 0
    return z


@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_solution_of_a_path_meets_the_conditions_of_an_optimum(kind):
    z = contributions(kind)
    penalties, path = lasso_path(z.T @ z)
    assert (path[0] == 0).all() and (path[-1] != 0).sum() >= np.linalg.matrix_rank(z) // 2
    for penalty, b in zip(penalties, path, strict=True):
        gradient, kept = z.T @ (z.sum(axis=1) - z @ b), b != 0
        np.testing.assert_allclose(gradient[kept], penalty * np.sign(b[kept]), rtol=1e-4)
        assert np.abs(gradient).max() <= penalty * (1 + 1e-4)


@pytest.mark.parametrize("kind", ["well", "wide", "dead", "shifted"])
def test_solutions_are_those_from_the_samples_themselves(kind):
    z = contributions(kind)
    largest = np.abs(z.T @ z.sum(axis=1)).max()
    for share in (0.5, 0.1, 0.01):
        found = lasso(z.T @ z, share * largest, np.zeros(z.shape[1]))
        other = OfSamples(share * largest / len(z), fit_intercept=False, tol=1e-10, max_iter=100_000)
        np.testing.assert_allclose(found, other.fit(z, z.sum(axis=1)).coef_, atol=1e-4)


def by_hand(model, name, reader, x):
    """Z of the channels of a layer in its one reader, a 3x3 convolution over "same" zeros, means taken off."""
    layer, kernel = model.get_layer(reader), array(model.get_layer(reader).kernel).astype(float)
    inputs = array(keras.Model(model.input, layer.input)(x)).astype(float)
    padded = np.pad(inputs, [(0, 0), (1, 1), (1, 1), (0, 0)])
    n, h, w, channels = inputs.shape
    z = np.zeros((n, h, w, channels, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            z += padded[:, i : i + h, j : j + w, :, None] * kernel[i, j]
    z = z.transpose(0, 1, 2, 4, 3).reshape(-1, kernel.shape[-1], channels)
    return (z - z.mean(axis=0)).reshape(-1, channels)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_the_channels_are_those_of_a_lasso_over_what_the_reader_makes_of_each(count):
    """All positions are sampled: the Gram matrix is that of every window."""
    model, x = chain((12, 8), side=4), images(1_024, (4, 4, 3))
    graph, weights, criterion = observed(criteria.Lasso(), model, x)
    group = graph.by_name["conv0"]
    (q,) = criterion.found(group)
    kept = criterion.select(group, count, weights)
    z = by_hand(model, "conv0", "conv1", x)
    gram = z.T @ z
    np.testing.assert_allclose(q / np.trace(q), gram / np.trace(gram), atol=2e-3)
    # Raised until no more channels are left than may stay.
    for penalty in np.abs(gram.sum(axis=1)).max() * 0.96 ** np.arange(1, 300):
        b = OfSamples(penalty / len(z), fit_intercept=False, precompute=gram, tol=1e-8, max_iter=10_000)
        support = np.flatnonzero(b.fit(z, z.sum(axis=1)).coef_)
        if len(support) > count:
            break
        last = support
    assert len(kept) == count >= len(last)
    assert set(last) <= set(kept.tolist())


def test_a_planted_set_is_found():
    model, x = chain((12, 8), side=4), images(256, (4, 4, 3))
    read = [1, 4, 7, 8]
    kernel = array(model.get_layer("conv1").kernel).copy()
    kernel[:, :, [c for c in range(12) if c not in read]] *= 1e-3
    model.get_layer("conv1").kernel.assign(kernel)
    graph, weights, criterion = observed(criteria.Lasso(), model, x)
    assert criterion.select(graph.by_name["conv0"], 4, weights).tolist() == read


def test_of_a_path_everything_is_a_support_and_the_rest_fills_up():
    model, x = chain((12, 8), side=4), images(64, (4, 4, 3))
    graph, weights, criterion = observed(criteria.Lasso(), model, x)
    for group in graph.groups:
        (q,) = criterion.found(group)
        _, path = lasso_path(q)
        for count in range(1, group.size + 1):
            kept = set(criterion.select(group, count, weights).tolist())
            within = [np.flatnonzero(b) for b in path if (b != 0).sum() <= count]
            assert len(kept) == count and set(max(within, key=len).tolist()) <= kept


def test_groups_too_wide_to_be_looked_at_together_stay_whole(monkeypatch):
    monkeypatch.setattr(kfp.criteria.reconstruction, "_WIDEST", 8)
    model, x = chain((12, 8), side=4), images(32, (4, 4, 3))
    for method in ("lasso", "genetic"):
        plan = kfp.plan_pruning(model, method, kfp.FiltersBudget(0.5), data=x, progress=False)
        assert [p["reason"] for p in plan.pinned if p["layer"] == "conv0"] == [
            "has 12 units, too many to be looked at together"
        ]
