"""Cluster pruning: filters of a cluster are alike after every epoch, and merging them changes no output."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import MASKABLE, array, assert_same, compiled, images, network, predict, shrunk, total_macs
from scipy.cluster.vq import kmeans2
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.callbacks import ClusterPruning
from keras_filterprune.training.clusters import clustered


def fit(model, callbacks, epochs=1, **settings):
    x = random_inputs(model, batch=16, seed=1)
    y = [np.zeros((16, *output.shape[1:]), "float32") for output in model.outputs]
    # One step an epoch is sooner done than traced.
    compiled(model, keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    return x, model.fit(x, y[0] if len(y) == 1 else y, epochs=epochs, verbose=0, callbacks=callbacks, **settings)


@pytest.mark.parametrize("name", MASKABLE)
def test_merging_changes_no_output_and_meets_the_budget(name):
    model, before = ZOO[name](), []
    macs, x = total_macs(model), random_inputs(ZOO[name](), batch=16, seed=1)
    seen = keras.callbacks.LambdaCallback(on_train_end=lambda logs: before.extend(predict(model, x)))
    fit(model, [ClusterPruning(0.6), seen])
    tolerance = 1e-2 if name == "mixed_precision" else 1e-5
    for expected, found in zip(before, predict(model, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-3))
    small = shrunk(model)
    assert_same(model, small, x, tolerance)
    assert total_macs(small) <= 0.6 * macs


def weights_of(model):
    return {layer.name: [array(w).astype(float) for w in layer.weights] for layer in model.layers if layer.weights}


def folded(weights, layer, normalization):
    """Filters and shifts (filters, d) of a convolution, batch normalization folded in."""
    kernel, bias = weights[layer]
    if normalization is not None:
        gamma, beta, mean, variance = weights[normalization]
        factor = gamma / np.sqrt(variance + 1e-3)
        kernel, bias = kernel * factor, factor * (bias - mean) + beta
    rows = np.concatenate([kernel.reshape(-1, len(bias)), bias[None]]).T
    return rows / np.sqrt(np.square(rows).mean())


def test_all_that_makes_a_cluster_is_its_mean_by_hand():
    """K-means by SciPy on what the optimizer left, coupled layers side by side."""
    model, trained, ended = network(), {}, {}
    callback = ClusterPruning(0.5, seed=3)
    original = callback.on_epoch_end
    callback.on_epoch_end = lambda epoch, logs=None: (trained.update(weights_of(model)), original(epoch, logs))
    last = keras.callbacks.LambdaCallback(on_train_end=lambda logs: ended.update(weights_of(model)))
    _, history = fit(model, [callback, last])
    assert history.history["macs_if_pruned"][-1] <= 0.5 * total_macs(network())
    coupled = [folded(trained, "conv1", "bn1"), folded(trained, "conv3", None)]
    for rows, layers in (
        (np.hstack(coupled), ("conv1", "bn1", "conv3", "bn3")),
        (folded(trained, "conv2", None), ("conv2",)),
    ):
        (count,) = {
            len(np.unique(ended[name][0].reshape(-1, len(rows)).round(5), axis=1).T)
            for name in layers
            if "conv" in name
        }
        labels = kmeans2(rows, count, minit="++", seed=np.random.default_rng(3))[1]
        for name in layers:
            for before, after in zip(trained[name], ended[name], strict=True):
                expected = before.copy()
                for label in np.unique(labels):
                    expected[..., labels == label] = before[..., labels == label].mean(axis=-1, keepdims=True)
                np.testing.assert_allclose(after, expected, atol=1e-6)


def test_clusters_go_on_from_those_before():
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(5, 7)) * 10, 3, axis=0) + rng.normal(size=(15, 7)) * 0.01
    first = clustered(rows, 5, 0)
    assert [len(np.unique(first[n : n + 3])) for n in range(0, 15, 3)] == [1] * 5
    np.testing.assert_array_equal(clustered(rows + 0.01, 5, 99, first), first)


def test_it_goes_through_fit_again_and_beside_others():
    model = network()
    fit(model, [ClusterPruning([0.8, 0.5])], epochs=3)
    first = total_macs(shrunk(model))
    fit(model, [ClusterPruning(0.4, exclude="conv2")], epochs=2)
    small = shrunk(model)
    assert total_macs(small) < first
    assert np.isfinite(small.predict(images(4), verbose=0)).all()


@pytest.mark.parametrize("keep", [0, 1.5, [0.5, 0.8], []])
def test_fractions_are_checked_before_training(keep):
    with pytest.raises(errors.InfeasibleBudgetError, match="keep"):
        kfp.callbacks.ClusterPruning(keep)
