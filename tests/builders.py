"""Small models and data that many tests use."""

import keras
import numpy as np
from keras import layers

import keras_filterprune as kfp

MODELS = [
    "conv_bn_relu_chain",
    "residual_projection",
    "preactivation_residual",
    "depthwise",
    "separable",
    "grouped_conv",
    "dense_concat",
    "se_reshape",
    "shared_conv",
    "nested_functional",
    "flatten_dense",
    "unet",
    "conv1d_residual",
    "conv3d",
    "mixed_precision",
]


def array(value) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))


def outputs(model: keras.Model, x) -> list[np.ndarray]:
    return [array(y) for y in keras.tree.flatten(model(x, training=False))]


def assert_same(model: keras.Model, other: keras.Model, x, tolerance: float) -> None:
    for a, b in zip(outputs(model, x), outputs(other, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(a).max(), 1e-3))


def network(policy: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv1", dtype=policy)(inputs)
    x = layers.ReLU(dtype=policy)(layers.BatchNormalization(name="bn1", dtype=policy)(x))
    y = layers.Conv2D(12, 3, padding="same", name="conv2", dtype=policy)(x)
    y = layers.Conv2D(8, 3, padding="same", name="conv3", dtype=policy)(layers.ReLU(dtype=policy)(y))
    x = layers.ReLU(dtype=policy)(layers.BatchNormalization(name="bn3", dtype=policy)(layers.Add(dtype=policy)([x, y])))
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    return keras.Model(inputs, layers.Dense(3, name="head", dtype="float32")(x), name="network")


def images(count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 8, 8, 3)).astype("float32"), rng.integers(0, 3, count)


def compiled(model: keras.Model) -> keras.Model:
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def shrunk(model: keras.Model) -> keras.Model:
    return kfp.prune_model(model, "dead", kfp.RedundancyBudget(), compensate="none", progress=False)


def total(model: keras.Model) -> int:
    cost = kfp.budgets.CostModel(kfp.analyze(model))
    return cost.macs(cost.sizes)
