"""Nets of Keras' own layers, and the same nets of subclasses that are registered like them, or are not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers
from zoo import randomise

import keras_filterprune as kfp

KINDS = sorted(name for name in dir(layers) if inspect.isclass(getattr(layers, name)))


def subclasses(prefix: str, **methods: Callable) -> dict[str, type]:
    """{name of a layer class of Keras: a subclass of it}, which files of models know."""
    register = keras.saving.register_keras_serializable(package=prefix)
    return {name: register(type(prefix + name, (getattr(layers, name),), methods)) for name in KINDS}


class Maker:
    """Makes layers: `make.Conv2D(4, 3)` is one of Keras' own, or of the class in its place; names do not tell which."""

    def __init__(self, classes: dict[str, type] | None = None):
        self._classes, self._count = classes or {}, 0

    def __getattr__(self, kind: str) -> Callable[..., keras.layers.Layer]:
        def make(*args: Any, **kwargs: Any) -> keras.layers.Layer:
            self._count += 1
            return self._classes.get(kind, getattr(layers, kind))(
                *args, **{"name": f"{kind.lower()}_{self._count}"} | kwargs
            )

        return make


def image(make: Maker) -> keras.Model:
    """Every family that LiteRT's operators are known of, with a shortcut, a gate, a join and a flat head."""
    inputs = keras.Input((8, 8, 3), name="input")
    x = make.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(make.Rescaling(0.5, 0.1)(inputs))
    x = make.Conv2D(8, 3, strides=2, use_bias=False)(make.ZeroPadding2D(((0, 1), (0, 1)))(x))
    x = make.ReLU()(make.BatchNormalization()(x))
    y = make.ReLU()(make.BatchNormalization(scale=False)(make.Conv2D(8, 3, padding="same")(x)))
    y = make.BatchNormalization(center=False)(make.Conv2D(8, 3, padding="same", use_bias=False)(y))
    x = make.ReLU()(make.Add()([x, y]))
    y = make.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, activation="relu")(x)
    gate = make.Dense(8, activation="sigmoid")(make.GlobalAveragePooling2D(keepdims=True)(y))
    y = make.Multiply()([y, gate])
    z = make.ReLU(6.0)(make.BatchNormalization()(make.Conv2DTranspose(6, 3, strides=2, padding="same")(y)))
    z = make.LeakyReLU()(make.DepthwiseConv2D(3, depth_multiplier=2)(make.MaxPooling2D()(z)))
    z = make.Activation("swish")(make.Conv2D(8, 2, groups=2)(z))
    y = make.Conv2D(6, 4, activation=make.ELU(), name="wide")(make.UpSampling2D(interpolation="bilinear")(y))
    x = make.Flatten()(make.Concatenate()([make.AveragePooling2D(5)(y), z, make.MaxPooling2D(4)(x)]))
    return keras.Model(inputs, make.Softmax()(make.Dense(3)(make.Dense(8, activation="relu")(make.Dropout(0.2)(x)))))


def sequence(make: Maker) -> keras.Model:
    """Families along one axis, and recurrent ones."""
    inputs = keras.Input((12, 3), name="input")
    x = make.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="relu")(inputs)
    x = make.PReLU(shared_axes=[1])(make.SeparableConv1D(8, 3)(make.ZeroPadding1D(1)(x)))
    x = make.BatchNormalization()(make.Conv1DTranspose(6, 3, strides=2)(x))
    x = make.SpatialDropout1D(0.1)(make.DepthwiseConv1D(3)(x))
    # Few steps: what recurs is slow.
    x = make.AveragePooling1D(4)(make.LayerNormalization()(make.Conv1D(8, 2)(x)))
    x = make.Bidirectional(make.GRU(3, return_sequences=True))(x)
    x = make.LSTM(4, return_sequences=True)(make.Conv1D(6, 3)(x))
    x = make.SimpleRNN(4, return_sequences=True)(make.Conv1D(6, 2)(x))
    x = make.GRU(4)(make.Conv1D(7, 1)(x))
    x = make.Dense(8, activation="tanh")(make.RepeatVector(3)(make.Dense(6)(x)))
    x = make.GlobalMaxPooling1D()(make.TimeDistributed(make.Dense(5))(make.Permute((1, 2))(x)))
    return keras.Model(inputs, make.Dense(3)(x))


def volume(make: Maker) -> keras.Model:
    """Families along three axes."""
    inputs = keras.Input((4, 4, 4, 2), name="input")
    x = make.Conv3DTranspose(6, 2)(make.GroupNormalization(2)(make.Conv3D(8, 2, activation="relu")(inputs)))
    x = make.Conv3D(4, 2)(make.AveragePooling3D(2)(make.Subtract()([x, make.Conv3D(6, 2, padding="same")(x)])))
    return keras.Model(inputs, make.Dense(3)(make.Reshape((4,))(x)))


NETS = {"image": image, "sequence": sequence, "volume": volume}


def build(net: str, classes: dict[str, type] | None = None) -> keras.Model:
    """A net with random weights, the same whatever its classes are."""
    keras.utils.set_random_seed(0)
    return randomise(NETS[net](Maker(classes)), seed=1)


def samples(net: str, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    shape = {"image": (8, 8, 3), "sequence": (12, 3), "volume": (4, 4, 4, 2)}[net]
    return rng.normal(size=(count, *shape)).astype("float32"), rng.integers(0, 3, count)


def teach(classes: dict[str, type]) -> None:
    """Register every class like the layer of Keras that it is a subclass of, where that has a handler."""
    for name, kind in classes.items():
        try:
            kfp.register_handler(kind, like=getattr(layers, name))
        except kfp.errors.UnsupportedLayerError:
            continue


# One layer of every family that keeps the rank of images.
FAMILIES = {
    "Conv2D": lambda make: make.Conv2D(5, 3, padding="same", activation="relu", name="strange"),
    "DepthwiseConv2D": lambda make: make.DepthwiseConv2D(3, padding="same", name="strange"),
    "SeparableConv2D": lambda make: make.SeparableConv2D(5, 3, name="strange"),
    "Conv2DTranspose": lambda make: make.Conv2DTranspose(5, 3, name="strange"),
    "Dense": lambda make: make.Dense(5, activation="relu", name="strange"),
    "BatchNormalization": lambda make: make.BatchNormalization(name="strange"),
    "ReLU": lambda make: make.ReLU(name="strange"),
    "Activation": lambda make: make.Activation("relu", name="strange"),
    "MaxPooling2D": lambda make: make.MaxPooling2D(2, 1, name="strange"),
    "ZeroPadding2D": lambda make: make.ZeroPadding2D(1, name="strange"),
    "UpSampling2D": lambda make: make.UpSampling2D(interpolation="bilinear", name="strange"),
    "Dropout": lambda make: make.Dropout(0.1, name="strange"),
    "Rescaling": lambda make: make.Rescaling(2.0, name="strange"),
    "Add": lambda make: lambda x: make.Add(name="strange")([x, x]),
    "Multiply": lambda make: lambda x: make.Multiply(name="strange")([x, x]),
}


def around(family: str, classes: dict[str, type] | None = None) -> keras.Model:
    """A layer between convolutions of equal shape, whose filters it reads and whose inputs it makes."""
    keras.utils.set_random_seed(0)
    inputs, make = keras.Input((8, 8, 3), name="input"), Maker(classes)
    x = layers.Conv2D(5, 3, padding="same", name="before")(layers.Conv2D(6, 3, padding="same", name="first")(inputs))
    x = layers.BatchNormalization(name="normalised")(FAMILIES[family](make)(x))
    x = layers.Conv2D(8, 3, padding="same", name="behind")(layers.Conv2D(6, 3, padding="same", name="after")(x))
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)), seed=1)
