"""Small models and data that many tests use, and what tests ask of models and plans."""

import warnings

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune.probe import Weights

# Of the zoo, those whose filters can be masked while training.
MASKABLE = [
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

# ------------------------------------------------------------------------------------------------------------ data


def images(count: int = 64, shape=(8, 8, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def labelled_images(count: int = 32, shape=(8, 8, 3), classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, *shape)).astype("float32"), rng.integers(0, classes, count)


def digits(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits (8, 8, 1) in [0, 1], and which they are."""
    found = load_digits()
    return (found.images[:count, :, :, None] / 16).astype("float32"), found.target[:count]


# ---------------------------------------------------------------------------------------------------------- models


def conv(filters: int, name: str, **kwargs) -> keras.Layer:
    return layers.Conv2D(filters, 3, padding="same", name=name, **kwargs)


def chain(widths=(64, 96, 48), side: int = 6, classes: int = 3) -> keras.Model:
    """Convolutions "conv0", "conv1", ..., each normalized and rectified, then a dense layer "head"."""
    y = inputs = keras.Input((side, side, 3))
    for number, width in enumerate(widths):
        y = layers.ReLU()(layers.BatchNormalization()(conv(width, f"conv{number}")(y)))
    y = layers.Dense(classes, name="head")(layers.GlobalAveragePooling2D()(y))
    return randomise(keras.Model(inputs, y, name="chain"))


def network(policy: str | None = None) -> keras.Model:
    """A residual block of "conv2" and "conv3" behind "conv1", and a dense layer "head" of three classes."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv1", dtype=policy)(inputs)
    x = layers.ReLU(dtype=policy)(layers.BatchNormalization(name="bn1", dtype=policy)(x))
    y = layers.Conv2D(12, 3, padding="same", name="conv2", dtype=policy)(x)
    y = layers.Conv2D(8, 3, padding="same", name="conv3", dtype=policy)(layers.ReLU(dtype=policy)(y))
    x = layers.ReLU(dtype=policy)(layers.BatchNormalization(name="bn3", dtype=policy)(layers.Add(dtype=policy)([x, y])))
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    return keras.Model(inputs, layers.Dense(3, name="head", dtype="float32")(x), name="network")


def compiled(model: keras.Model, optimizer=None, loss=None, **settings) -> keras.Model:
    # With a state of its own, and a third of Adam's operations at each step.
    optimizer = optimizer or keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True), **settings)
    return model


# ------------------------------------------------------------------------------------------------------- questions


def array(value) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def values(model: keras.Model) -> list[np.ndarray]:
    """Copies of all weights."""
    return [array(weight.value).copy() for weight in model.weights]


def predict(model: keras.Model, x) -> list[np.ndarray]:
    """All outputs, in double precision."""
    return [array(y).astype("float64") for y in keras.tree.flatten(model(x, training=False))]


def assert_all_equal(expected, received) -> None:
    """Two lists of as many arrays, equal to the last bit."""
    for one, other in zip(expected, received, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_same(model: keras.Model, other: keras.Model, x, tolerance: float) -> None:
    """`tolerance` is relative to the largest value of each output."""
    for a, b in zip(predict(model, x), predict(other, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(a).max(), 1e-3))


def relative_error(model: keras.Model, other: keras.Model, x) -> float:
    """Squared distance of the outputs, relative to their variance."""
    pairs = list(zip(predict(model, x), predict(other, x), strict=True))
    spread = sum(np.square(a - a.mean(axis=0)).sum() for a, _ in pairs)
    return sum(np.square(a - b).sum() for a, b in pairs) / spread


def total_macs(model: keras.Model) -> int:
    cost = kfp.budgets.CostModel(kfp.analyze(model))
    return cost.macs(cost.sizes)


def shrunk(model: keras.Model) -> keras.Model:
    """The model without its dead filters, if there are some."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no filter is dead")
        # Who asks for more than its cost compares its outputs.
        options = {"compensate": "none", "verify": False, "progress": False}
        return kfp.prune_model(model, "dead", kfp.budgets.RedundancyBudget(), **options)


def kept_counts(plan: kfp.PruningPlan) -> dict[str, int]:
    """How many units each group keeps."""
    return {group["name"]: len(group["kept"]) for group in plan.groups}


def keeping(model: keras.Model, **kept: list[int]) -> kfp.PruningPlan:
    """A plan under which the named groups keep the given units and all others stay whole."""
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(1.0), progress=False)
    assert set(kept) <= {group["name"] for group in plan.groups}
    for group in plan.groups:
        group["kept"] = np.asarray(kept.get(group["name"], group["kept"])).tolist()
    return plan


def observed(criterion, model: keras.Model, data):
    """(graph, weights, the criterion after it has seen the data)."""
    graph = kfp.analyze(model)
    weights = Weights(graph.view)
    return graph, weights, criterion.observe(graph, weights, data, False)


def begun(model: keras.Model, callback, epochs: int = 1):
    """The callback at the beginning of training."""
    callback.set_model(model)
    callback.set_params({"epochs": epochs})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    return callback
