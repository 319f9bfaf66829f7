"""Readers of a convolution, and models without some of its units."""

from __future__ import annotations

import keras
import numpy as np
from builders import keeping, predict
from keras import layers

import keras_filterprune as kfp
from keras_filterprune import compensators

EXACT = compensators.LeastSquares(variance=False, ridge=1e-9)


def output(model: keras.Model, x: np.ndarray, layer: str | None = None) -> np.ndarray:
    """The model's only output, or that of one layer."""
    return predict(keras.Model(model.input, model.get_layer(layer).output) if layer else model, x)[0]


def give(layer, **arrays) -> None:
    """Assign weights of a layer by name."""
    for name, array in arrays.items():
        getattr(layer, name).assign(array)


def affine(model: keras.Model, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """What a batch normalization does to each channel in inference: (scale, offset)."""
    mean, variance, gamma, beta = (
        weight(model, layer, name).astype(float) for name in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    scale = gamma / np.sqrt(variance + model.get_layer(layer).epsilon)
    return scale, beta - scale * mean


def weight(model: keras.Model, layer: str, name: str) -> np.ndarray:
    return keras.ops.convert_to_numpy(getattr(model.get_layer(layer), name).value)


def cut(model: keras.Model, compensate, x=None, **kept: list[int]) -> keras.Model:
    """The model without the other units of the named groups."""
    plan = keeping(model, **kept)
    return kfp.apply_plan(model, plan, data=x, compensate=compensate, verify=False, progress=False)


def one_convolution(y):
    return layers.Conv2D(4, 3, name="next")(y)


def normalized(y):
    return layers.BatchNormalization(name="after")(layers.Conv2D(4, 3, use_bias=False, name="next")(y))


def flattened(y):
    return layers.Dense(4, name="next")(layers.Flatten()(y))
