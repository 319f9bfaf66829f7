"""The registry, the weight randomiser and the layer shorthands that every builder uses."""

import functools
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

ZOO: dict[str, Callable[[], keras.Model]] = {}


def register(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Add `build` to `ZOO` under its own name; its models come out with randomised weights."""

    @functools.wraps(build)
    def build_randomised() -> keras.Model:
        return randomise(build())

    if build.__name__ in ZOO:
        raise ValueError(f"two builders are called {build.__name__!r}")
    ZOO[build.__name__] = build_randomised
    return build_randomised


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give every float weight a non-trivial value, in place, keeping activations of order one."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(_random_value(rng, variable.name, variable.path, tuple(variable.shape)))
    return model


def _random_value(rng: np.random.Generator, name: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
    if "variance" in name:
        return rng.uniform(0.5, 1.5, shape)
    if name == "gamma":
        return rng.uniform(0.5, 1.5, shape) * rng.choice([1.0, 1.0, 1.0, -1.0], shape)
    if name == "alpha":
        return rng.uniform(0.05, 0.5, shape)
    if "kernel" in name:
        # Each output of a depthwise kernel sees one channel. Such layers carry "depthwise" in their name.
        fan_in = math.prod(shape[:-2]) if "depthwise" in path and "pointwise" not in name else math.prod(shape[:-1])
        return rng.normal(0.0, math.sqrt(1.5 / fan_in), shape)
    if name == "embeddings":
        return rng.normal(0.0, 1.0, shape)
    return rng.normal(0.0, 0.3, shape)


def conv(x, filters: int, name: str, kernel_size: int = 3, **kwargs):
    """A "same" 2-D convolution."""
    return layers.Conv2D(filters, kernel_size, padding="same", name=name, **kwargs)(x)


def conv_bn(x, filters: int, name: str, kernel_size: int = 3, activation: str | None = "relu", **kwargs):
    """Convolution without bias, batch normalization, then an activation layer unless it is None."""
    x = conv(x, filters, name, kernel_size, use_bias=False, **kwargs)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return x if activation is None else layers.Activation(activation, name=f"{name}_act")(x)


def logits(x, classes: int = 5, name: str = "logits"):
    """Global average pooling and a classifier."""
    return layers.Dense(classes, name=name)(layers.GlobalAveragePooling2D(name=f"{name}_gap")(x))
