"""Whatever a network gives and however it is trained, the loss of distillation is the formula, and teaches."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy.special import expit, log_softmax, softmax

import keras_filterprune as kfp

# One step each.
pytestmark = pytest.mark.usefixtures("untraced")
ALPHA, T = 0.6, 3.0
COUNT, SIDE = 12, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(COUNT, SIDE, SIDE, 2)).astype("float32")
CLASSES, PIXELS = RNG.integers(0, 3, COUNT), RNG.integers(0, 3, (COUNT, SIDE, SIDE))
BITS, MANY = RNG.integers(0, 2, (COUNT, 1)).astype("float32"), RNG.integers(0, 2, (COUNT, 5)).astype("float32")
NUMBERS, MAPS = RNG.normal(size=(COUNT, 4)), RNG.normal(size=(COUNT, SIDE, SIDE, 2))

# ------------------------------------------------------------------------------- formulas, per sample and position


def cross_entropy(y, p):
    return -np.log(np.take_along_axis(p, y[..., None], -1)[..., 0])


def binary(y, p):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1)


def squares(y, z):
    return np.square(y - z).mean(-1)


def softmax_divergence(teacher, student):
    """Of logits."""
    p = softmax(teacher / T, -1)
    return T**2 * (p * (log_softmax(teacher / T, -1) - log_softmax(student / T, -1))).sum(-1)


def unit_divergence(teacher, student):
    p, q = expit(teacher / T), expit(student / T)
    return T**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1)


def logit(p):
    return np.log(p) - np.log1p(-p)


def from_softmax(divergence):
    return lambda teacher, student: divergence(np.log(teacher), np.log(student))


def from_sigmoid(divergence):
    return lambda teacher, student: divergence(logit(teacher), logit(student))


# ------------------------------------------------------------------------------------------------------------ heads


def pooled(h):
    return layers.GlobalAveragePooling2D()(h)


def nested(h):
    inputs = keras.Input(h.shape[1:])
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(inputs))(h)


def focal(y, z):
    """A loss of one's own, on logits of classes."""
    p = ops.sum(ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), 3) * ops.softmax(z), -1)
    return -((1 - p) ** 2) * ops.log(p)


def own_brier(y, z):
    return ops.mean(ops.square(ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), 3) - z), -1)


def own_binary(y, z):
    return ops.mean(ops.softplus(z) - ops.cast(y, z.dtype) * z, -1)


def focal_values(y, z):
    p = np.take_along_axis(softmax(z, -1), y[:, None], -1)[:, 0]
    return -((1 - p) ** 2) * np.log(p)


SPARSE = keras.losses.SparseCategoricalCrossentropy
SOFTMAX = (CLASSES, "sparse_categorical_crossentropy", cross_entropy, from_softmax(softmax_divergence))
LOGITS = cross_entropy_of_logits = lambda y, z: cross_entropy(y, softmax(z, -1))
UNITS = (MANY, "binary_crossentropy", binary, from_sigmoid(unit_divergence))
# {name: (head on features, labels, loss, its formula, the teacher's formula)}
HEADS = {
    "softmax": (lambda h: layers.Dense(3, activation="softmax")(pooled(h)), *SOFTMAX),
    "nested softmax": (lambda h: nested(pooled(h)), *SOFTMAX),
    "softmax, cast": (
        lambda h: layers.Activation("linear", dtype="float32")(layers.Dense(3, activation="softmax")(pooled(h))),
        *SOFTMAX,
    ),
    "softmax, reshaped": (lambda h: layers.Reshape((3,))(layers.Dense(3, activation="softmax")(pooled(h))), *SOFTMAX),
    "raw softmax": (lambda h: ops.softmax(layers.Dense(3)(pooled(h))), *SOFTMAX),
    "softmax as a layer": (lambda h: layers.Dense(3, activation=layers.Softmax())(pooled(h)), *SOFTMAX),
    "own softmax": (lambda h: layers.Lambda(lambda z: ops.softmax(z))(layers.Dense(3)(pooled(h))), *SOFTMAX),
    "mean of two softmaxes": (
        lambda h: layers.Average()([layers.Dense(3, activation="softmax")(pooled(h)) for _ in range(2)]),
        *SOFTMAX,
    ),
    "logits": (
        lambda h: layers.Dense(3)(pooled(h)),
        CLASSES,
        SPARSE(from_logits=True),
        cross_entropy_of_logits,
        softmax_divergence,
    ),
    "logits, partial": (
        lambda h: layers.Dense(3)(pooled(h)),
        CLASSES,
        functools.partial(keras.losses.sparse_categorical_crossentropy, from_logits=True),
        cross_entropy_of_logits,
        softmax_divergence,
    ),
    "logits, smoothed": (
        lambda h: layers.Dense(3)(pooled(h)),
        np.eye(3)[CLASSES],
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        lambda y, z: -((0.9 * y + 0.1 / 3) * log_softmax(z, -1)).sum(-1),
        softmax_divergence,
    ),
    "logits, own loss": (
        lambda h: layers.Dense(3)(pooled(h)), CLASSES, focal, focal_values, softmax_divergence,
    ),
    "scores, own loss": (
        lambda h: layers.Dense(3)(pooled(h)),
        CLASSES,
        own_brier,
        lambda y, z: squares(np.eye(3)[y], z),
        squares,
    ),
    "one sigmoid": (
        lambda h: layers.Dense(1, activation="sigmoid")(pooled(h)), BITS, *UNITS[1:],
    ),
    "one logit": (
        lambda h: layers.Dense(1)(pooled(h)),
        BITS,
        keras.losses.BinaryCrossentropy(from_logits=True),
        lambda y, z: binary(y, expit(z)),
        unit_divergence,
    ),
    "own loss of logits": (
        lambda h: layers.Dense(5)(pooled(h)), MANY, own_binary, lambda y, z: binary(y, expit(z)), unit_divergence,
    ),
    "multi-label": (lambda h: layers.Dense(5, activation="sigmoid")(pooled(h)), *UNITS),
    "multi-label, raw": (lambda h: ops.sigmoid(layers.Dense(5)(pooled(h))), *UNITS),
    "multi-label, cast": (
        lambda h: layers.Activation("linear", dtype="float32")(layers.Dense(5, activation="sigmoid")(pooled(h))),
        *UNITS,
    ),
    "multi-label, joined": (
        lambda h: layers.Concatenate()([layers.Dense(n, activation="sigmoid")(pooled(h)) for n in (2, 3)]),
        *UNITS,
    ),
    "multi-label, own sigmoid": (
        lambda h: layers.Lambda(lambda z: 1 / (1 + ops.exp(-z)))(layers.Dense(5)(pooled(h))), *UNITS,
    ),
    "sigmoids trained by mse": (
        lambda h: layers.Dense(5, activation="sigmoid")(pooled(h)),
        MANY, "mse", squares, from_sigmoid(unit_divergence),
    ),
    "regression": (lambda h: layers.Dense(4)(pooled(h)), NUMBERS, "mse", squares, squares),
    "regression, huber": (
        lambda h: layers.Dense(4)(pooled(h)),
        NUMBERS,
        keras.losses.Huber(),
        lambda y, z: np.where(np.abs(y - z) < 1, (y - z) ** 2 / 2, np.abs(y - z) - 0.5).mean(-1),
        squares,
    ),
    "positive regression": (
        lambda h: layers.Dense(4, activation="relu")(pooled(h)), NUMBERS, "mae",
        lambda y, z: np.abs(y - z).mean(-1), squares,
    ),
    "softmax per pixel": (
        lambda h: layers.Conv2D(3, 1, activation="softmax")(h),
        PIXELS, "sparse_categorical_crossentropy", cross_entropy, from_softmax(softmax_divergence),
    ),
    "logits per pixel": (
        lambda h: layers.Conv2D(3, 1)(h), PIXELS, SPARSE(from_logits=True), cross_entropy_of_logits, softmax_divergence,
    ),
    "numbers per pixel": (lambda h: layers.Conv2D(2, 1)(h), MAPS, "mse", squares, squares),
    "softmax over a grid": (
        lambda h: layers.Reshape((3, 1))(layers.Softmax()(layers.Dense(3)(pooled(h)))),
        np.eye(3)[CLASSES][..., None],
        "mse",
        squares,
        lambda a, b: softmax_divergence(np.log(a[..., 0]), np.log(b[..., 0])),
    ),
}  # fmt: skip


@functools.cache
def network(head: str, width: int, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((SIDE, SIDE, 2))
    h = layers.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer="random_normal")(inputs)
    h = layers.Conv2D(width, 1, kernel_initializer=keras.initializers.RandomNormal(0, 2.0))(h)
    return keras.Model(inputs, HEADS[head][0](h), name=f"net{width}")


def output(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(X, training=False)).astype(float)


def weighted(values_: np.ndarray, weights: np.ndarray | None) -> float:
    """Mean over samples and positions."""
    if weights is None:
        return float(values_.mean())
    weights = weights.reshape(*weights.shape[: values_.ndim], *[1] * (values_.ndim - weights.ndim))
    return float((values_ * weights).mean())


def weights_for(how: str, labels: np.ndarray, rank: int) -> np.ndarray | None:
    if how == "sample_weight":
        return RNG.uniform(0, 2, (COUNT, *[1] * (rank - 1)))
    if how == "class_weight":
        return np.array([0.5, 1.0, 4.0])[labels]
    return None


# One of each divergence, of each shape and with a loss of one's own.
EVERY_HOW = "softmax", "logits, own loss", "one logit", "multi-label", "regression, huber", "softmax per pixel"


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_the_formula(head):
    _, labels, loss, own, taught = HEADS[head]
    student, teacher = network(head, 4, 0), network(head, 8, 1)
    student_values, teacher_values = output(student), output(teacher)
    rank = own(labels, student_values).ndim
    hows = {"plain": ALPHA, "sample_weight": ALPHA, "class_weight": ALPHA, "no labels": ALPHA, "one": 1.0, "zero": 0.0}
    if head not in EVERY_HOW:
        hows = {"plain": ALPHA, "sample_weight": ALPHA}
    elif labels.dtype.kind != "i" or labels.ndim > 1:
        # Keras weighs classes by their numbers, one per sample.
        del hows["class_weight"]
    distillers = {}
    for how, alpha in hows.items():
        if alpha not in distillers:
            student.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
            distillers[alpha] = kfp.distill(student, teacher, T, alpha)
        given = weights_for(how, labels, rank)
        settings = {
            "sample_weight": {"sample_weight": given},
            "class_weight": {"class_weight": {0: 0.5, 1: 1.0, 2: 4.0}},
        }.get(how, {})
        y = None if how == "no labels" else labels
        history = distillers[alpha].fit(X, y, batch_size=COUNT, verbose=0, **settings).history
        mine = 0.0 if how in ("no labels", "one") else weighted(own(labels, student_values), given)
        theirs = 0.0 if how == "zero" else weighted(taught(teacher_values, student_values), given)
        found = [history[name][0] for name in ("student_loss", "distillation_loss", "loss", "total_loss")]
        total = (1 - alpha) * mine + alpha * theirs
        assert found == pytest.approx([mine, theirs, total, total], rel=2e-3, abs=1e-5), how
        assert how == "zero" or theirs > 1e-4, how


# ----------------------------------------------------------------------------------------------- several outputs


def two_heads(width: int, seed: int, shape: str = "list", swapped: bool = False) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((SIDE, SIDE, 2))
    h = layers.Conv2D(width, 3, padding="same", activation="relu")(inputs)
    outputs = {
        "what": layers.Dense(3, activation="softmax", name="what")(pooled(h)),
        "where": layers.Conv2D(2, 1, name="where")(h),
    }
    outputs = dict(reversed(outputs.items())) if swapped else outputs
    return keras.Model(inputs, outputs if shape == "dict" else list(outputs.values()), name=f"two{width}")


LOSSES = {"what": "sparse_categorical_crossentropy", "where": "mse"}
Y = {"what": CLASSES, "where": MAPS}
WEIGHTS = {"what": RNG.uniform(0, 2, COUNT), "where": RNG.uniform(0, 2, (COUNT, SIDE, SIDE))}


def in_order(model: keras.Model, entries: dict) -> list:
    return [entries[name] for name in model.output_names]


@pytest.mark.parametrize(
    ("how", "loss_weights"),
    [("plain", None), ("sample_weight", {"what": 2.0, "where": 0.25}), ("no labels", {"what": 2.0, "where": 0.25})],
    ids=["plain", "sample_weight", "no labels"],
)
@pytest.mark.parametrize(
    ("shape", "swapped"), [("list", False), ("dict", False), ("dict", True)], ids=["list", "dict", "other order"]
)
def test_every_output_learns_from_the_one_of_its_name(shape, swapped, how, loss_weights):
    student, teacher = two_heads(4, 0, shape), two_heads(8, 1, shape, swapped)
    student.compile(keras.optimizers.SGD(0.0), LOSSES, loss_weights, run_eagerly=True)
    history = {"sample_weight": WEIGHTS} if how == "sample_weight" else {}
    if shape == "list":
        history = {key: in_order(student, entries) for key, entries in history.items()}
    y = None if how == "no labels" else Y if shape == "dict" else in_order(student, Y)
    found = kfp.distill(student, teacher, T, ALPHA).fit(X, y, batch_size=COUNT, verbose=0, **history).history

    def outputs(model):
        values = model(X, training=False)
        values = values if shape == "dict" else dict(zip(model.output_names, values, strict=True))
        return {name: keras.ops.convert_to_numpy(value).astype(float) for name, value in values.items()}

    a, b = outputs(teacher), outputs(student)
    weights = WEIGHTS if how == "sample_weight" else dict.fromkeys(WEIGHTS)
    terms = {"what": softmax_divergence(np.log(a["what"]), np.log(b["what"])), "where": squares(a["where"], b["where"])}
    own = {"what": cross_entropy(CLASSES, b["what"]), "where": squares(MAPS, b["where"])}
    factors = loss_weights or {"what": 1.0, "where": 1.0}
    theirs = sum(factors[name] * weighted(terms[name], weights[name]) for name in terms)
    mine = 0.0 if y is None else sum(factors[name] * weighted(own[name], weights[name]) for name in own)
    expected = [mine, theirs, (1 - ALPHA) * mine + ALPHA * theirs]
    assert [found[key][0] for key in ("student_loss", "distillation_loss", "loss")] == pytest.approx(expected, rel=2e-3)
    if y is not None:
        assert found["what_loss"][0] == pytest.approx(weighted(own["what"], weights["what"]), rel=2e-3)


def test_outputs_inside_of_outputs():
    def network(width, seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((SIDE, SIDE, 2), name="x")
        h = pooled(layers.Conv2D(width, 3, activation="relu")(inputs))
        kinds = {name: layers.Dense(3, activation="softmax", name=name)(h) for name in ("fine", "coarse")}
        return keras.Model({"x": inputs}, {"kinds": kinds, "box": (layers.Dense(4, name="box")(h),)})

    student, teacher = network(4, 0), network(8, 1)
    crossed = {"fine": "sparse_categorical_crossentropy", "coarse": "sparse_categorical_crossentropy"}
    weights = {"kinds": {"fine": 2.0, "coarse": 0.5}, "box": (3.0,)}
    student.compile(keras.optimizers.SGD(0.0), {"kinds": crossed, "box": ("mse",)}, weights)
    labels = {"kinds": {"fine": CLASSES, "coarse": CLASSES}, "box": (NUMBERS,)}
    a, b = (
        keras.tree.map_structure(lambda z: np.array(z, float), m.predict({"x": X}, verbose=0))
        for m in (teacher, student)
    )
    taught = from_softmax(softmax_divergence)
    expected = 2 * taught(a["kinds"]["fine"], b["kinds"]["fine"]).mean()
    expected += (
        0.5 * taught(a["kinds"]["coarse"], b["kinds"]["coarse"]).mean() + 3 * squares(a["box"][0], b["box"][0]).mean()
    )
    for y in (labels, None):
        found = kfp.distill(student, teacher, T, 0.5).fit({"x": X}, y, batch_size=COUNT, verbose=0).history
        assert found["distillation_loss"][0] == pytest.approx(expected, rel=2e-3)


def test_outputs_of_one_name():
    """Those of one operation, say."""

    def network(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,))
        return keras.Model(inputs, list(ops.split(layers.Dense(4)(inputs), 2, axis=-1)))

    student, teacher = network(0), network(1)
    student.compile("sgd", ["mse", "mse"])
    x = RNG.normal(size=(8, 4)).astype("float32")
    found = kfp.distill(student, teacher, alpha=1.0).fit(x, batch_size=8, verbose=0).history["loss"][0]
    student = network(0)
    a, b = student.predict(x, verbose=0), teacher.predict(x, verbose=0)
    assert found == pytest.approx(sum(np.square(p - q).mean() for p, q in zip(a, b, strict=True)), rel=1e-4)


def test_outputs_of_one_shape_in_another_order():
    def network(names, seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,))
        return keras.Model(inputs, [layers.Dense(2, name=name)(inputs) for name in names])

    student, teacher = network("ab", 0), network("ba", 1)
    student.compile("sgd", "mse")
    x = RNG.normal(size=(8, 4)).astype("float32")
    found = kfp.distill(student, teacher, alpha=1.0).fit(x, batch_size=8, verbose=0).history["loss"][0]
    student, teacher = network("ab", 0), network("ba", 1)
    (a, b), (c, d) = student.predict(x, verbose=0), teacher.predict(x, verbose=0)
    assert found == pytest.approx(np.square(a - d).mean() + np.square(b - c).mean(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_outputs_without_a_loss_are_left_alone():
    student, teacher = two_heads(4, 0), two_heads(8, 1)
    student.compile(keras.optimizers.SGD(0.0), {"what": LOSSES["what"], "where": None})
    found = kfp.distill(student, teacher, T, 1.0).fit(X, CLASSES, batch_size=COUNT, verbose=0).history
    (a, _), (b, _) = teacher.predict(X, verbose=0), student.predict(X, verbose=0)
    expected = softmax_divergence(np.log(a.astype(float)), np.log(b.astype(float))).mean()
    assert found["loss"][0] == pytest.approx(expected, rel=1e-3)
