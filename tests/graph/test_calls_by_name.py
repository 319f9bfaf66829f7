"""Layers that are called by the names of their arguments are pruned as those that are called by place."""

import functools

import keras
import numpy as np
import pytest
from builders import predict
from keras import layers

import keras_filterprune as kfp

X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")


@functools.cache
def network(by_name):
    def call(layer, x):
        return layer(inputs=x) if by_name else layer(x)

    # Names decide which rows are drawn.
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((8, 8, 3))
    for width in (8, 10):
        x = call(layers.Conv2D(width, 3, padding="same"), x)
        x = call(layers.ReLU(), call(layers.BatchNormalization(), x))
    inner = keras.Sequential([keras.Input(x.shape[1:]), layers.Conv2D(6, 1), layers.LayerNormalization()])
    x = call(layers.GlobalAveragePooling2D(), call(inner, x))
    steps = call(layers.RepeatVector(2), x)
    x = layers.LSTM(5)(sequences=steps) if by_name else layers.LSTM(5)(steps)
    return keras.Model(inputs, call(layers.Dense(4), x))


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    "settings",
    [
        *({"method": name} for name in ("l2", "pursuit", "cap", "energy", "genetic")),
        {"compensate": kfp.compensators.LeastSquares()},
        {"compensate": kfp.compensators.BNRecalibration()},
        {"compensate": kfp.compensators.MeanShift()},
        {"compensate": kfp.compensators.Linear()},
        {"compensate": kfp.compensators.Reconstruct(steps=2)},
    ],
    ids=str,
)
def test_a_name_makes_no_difference(settings):
    settings = {"method": "l2", "budget": 0.5, "data": X, "progress": False, "return_report": True} | settings
    (small, report), (by_name, other) = (kfp.prune_model(network(way), **settings) for way in (False, True))
    for a, b in zip(report.plan.kept.values(), other.plan.kept.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(predict(small, X), predict(by_name, X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
