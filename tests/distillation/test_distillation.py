"""Distillation: the loss is the formula, the teacher is left alone, and the student stays plain."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from builders import digits, labelled_images
from keras import layers
from other_backends import on_every_backend, run_on
from scipy.special import log_softmax, softmax

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.distillation.heads import heads_of

FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(width: int, seed: int, activation=None, dropout: float = 0.0, regularizer=None) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(width, 3, name="conv", kernel_regularizer=regularizer)(inputs)
    h = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(h))
    h = layers.Dropout(dropout)(layers.GlobalAveragePooling2D(name="pool")(h))
    return keras.Model(inputs, layers.Dense(3, activation=activation, name="head")(h), name=f"network{width}")


def compiled(model: keras.Model, loss=FROM_LOGITS, **settings) -> keras.Model:
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, run_eagerly=True, **settings)
    return model


def loss_of(distiller: keras.Model, x, y) -> float:
    x = keras.ops.convert_to_tensor(x)
    return float(distiller.compute_loss(x, y, distiller.student(x, training=False)))


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    p = softmax(teacher / temperature, axis=-1)
    return float((p * (log_softmax(teacher / temperature, -1) - log_softmax(student / temperature, -1))).sum(-1).mean())


def logits(model: keras.Model, x) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x, training=False)).astype(float)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.7), (2, 0.5), (1.0, 1.0), (4.0, 0)])
def test_the_loss_is_the_formula(temperature, alpha, squared):
    student, teacher, (x, y) = compiled(network(4, 0)), network(8, 1), labelled_images()
    distiller = kfp.distill(student, teacher, temperature, alpha, squared_temperature=squared)
    a, b = logits(teacher, x), logits(student, x)
    own = -log_softmax(b, -1)[np.arange(len(y)), y].mean()
    factor = temperature**2 if squared else 1
    expected = (1 - alpha) * own + alpha * factor * divergence(a, b, temperature)
    assert loss_of(distiller, x, y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "limit"),
    [(FROM_LOGITS, 2), (keras.losses.BinaryCrossentropy(from_logits=True), 8)],
    ids=["classes", "units"],
)
def test_an_infinite_temperature_is_what_high_ones_tend_to(loss, limit):
    teacher, (x, y) = network(8, 1), labelled_images()
    y = np.eye(3)[y] if limit == 8 else y
    found = {t: loss_of(kfp.distill(compiled(network(4, 0), loss), teacher, t, 1.0), x, y) for t in (20.0, math.inf)}
    difference = logits(network(4, 0), x) - logits(teacher, x)
    squares = difference.var(-1) if limit == 2 else (difference**2).mean(-1)
    assert found[math.inf] == pytest.approx(squares.mean(), rel=1e-4)
    assert found[math.inf] == pytest.approx(limit * found[20.0], rel=0.05)


def test_probabilities_teach_and_learn_as_their_logits_do():
    x, y = labelled_images()
    plain = kfp.distill(compiled(network(4, 0)), network(8, 1))
    for ours, theirs in (("softmax", None), (None, "softmax"), ("softmax", "softmax")):
        loss = "sparse_categorical_crossentropy" if ours else FROM_LOGITS
        distiller = kfp.distill(compiled(network(4, 0, ours), loss), network(8, 1, theirs))
        assert loss_of(distiller, x, y) == pytest.approx(loss_of(plain, x, y), rel=1e-4)


def test_attention_maps_are_compared_whatever_the_widths():
    teacher, (x, y) = network(8, 1), labelled_images()
    for features in (["conv"], "conv", {"conv": "conv"}):
        student = compiled(network(4, 0))
        base = loss_of(kfp.distill(student, teacher), x, y)
        found = loss_of(kfp.distill(student, teacher, features=features, attention=10.0), x, y)
        maps = []
        for model in (student, teacher):
            energy = (keras.ops.convert_to_numpy(model.get_layer("conv")(x)) ** 2).sum(-1).reshape(len(x), -1)
            maps.append(energy / np.linalg.norm(energy, axis=1, keepdims=True))
        expected = 0.7 * 10 * ((maps[0] - maps[1]) ** 2).mean()
        assert found - base == pytest.approx(expected, rel=1e-3)
    # One's own attention, however strong the activations are.
    strong, features = compiled(network(8, 1)), {"conv": "scaled"}
    scaled = layers.Rescaling(3.0, name="scaled")(teacher.get_layer("conv").output)
    louder = keras.Model(teacher.inputs, teacher.get_layer("head")(layers.GlobalAveragePooling2D()(scaled)))
    apart = [loss_of(kfp.distill(strong, louder, features=f), x, y) for f in (None, features)]
    assert apart[0] > 0.1 and apart[1] == pytest.approx(apart[0], rel=1e-4)


def test_a_sigmoid_before_weights_makes_no_units():
    """Numbers that happen to lie between 0 and 1 are numbers."""
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, "sigmoid")(inputs)
    numbers = layers.Dense(2, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(0.3))(hidden)
    units = layers.Reshape((2,))(layers.Dense(2, "sigmoid")(hidden))
    found = heads_of(keras.Model(inputs, [numbers, units]), [None, None])
    assert [head.kind for head in found] == ["numbers", "units"]


def test_the_losses_of_regularizers_are_added():
    x, y = labelled_images()
    for strength in (0.0, 0.5):
        student = compiled(network(4, 0, regularizer=keras.regularizers.L2(strength)))
        found = loss_of(kfp.distill(student, network(8, 1)), x, y)
        plain = loss_of(kfp.distill(compiled(network(4, 0)), network(8, 1)), x, y)
        squares = float((keras.ops.convert_to_numpy(student.get_layer("conv").kernel) ** 2).sum())
        assert found - plain == pytest.approx(strength * squares, abs=1e-4)


def test_without_a_share_of_the_teacher_it_is_plain_training():
    x, y = labelled_images()
    alone, taught = compiled(network(4, 0)), compiled(network(4, 0))
    settings = {"epochs": 2, "batch_size": 16, "shuffle": False, "verbose": 0}
    alone.fit(x, y, **settings)
    kfp.distill(taught, network(8, 1), alpha=0.0).fit(x, y, **settings)
    for a, b in zip(alone.get_weights(), taught.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_teacher_is_left_alone_and_teaches_in_inference_mode():
    x, y = labelled_images()
    teacher = network(8, 1, dropout=0.9)
    before, flags = [w.copy() for w in teacher.get_weights()], [layer.trainable for layer in teacher.layers]
    student = compiled(network(4, 0))
    distiller = kfp.distill(student, teacher)
    assert len({round(loss_of(distiller, x, y), 6) for _ in range(3)}) == 1
    assert not distiller.teacher.trainable_variables
    distiller.fit(x, y, epochs=2, verbose=0)
    assert [layer.trainable for layer in teacher.layers] == flags
    for a, b, c in zip(before, teacher.get_weights(), distiller.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_the_student_stays_plain(tmp_path):
    x, y = labelled_images()
    student = compiled(network(4, 0), metrics=["accuracy"])
    before = logits(student, x)
    distiller = kfp.distill(student, network(8, 1), features=["relu"])
    history = distiller.fit(x, y, epochs=2, verbose=0).history
    assert {"accuracy", "loss", "distillation_loss", "student_loss"} <= history.keys()
    assert np.abs(logits(student, x) - before).max() > 1e-3
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras", custom_objects={})
    np.testing.assert_allclose(logits(again, x), logits(student, x), atol=1e-6)
    assert int(again.optimizer.iterations) == 2
    student.fit(x, y, verbose=0)


def test_a_pruned_network_learns_from_the_one_it_was():
    x, y = digits(600)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    h = layers.Conv2D(16, 3, activation="relu")(inputs)
    h = layers.Flatten()(layers.Conv2D(16, 3, activation="relu")(h))
    model = keras.Model(inputs, layers.Dense(10)(h))
    model.compile("adam", FROM_LOGITS, metrics=["accuracy"])
    model.fit(x, y, epochs=8, verbose=0)
    small = kfp.prune_model(model, "l2", 0.3, compensate="none", progress=False)

    def apart() -> float:
        return divergence(logits(model, x), logits(small, x), 4.0)

    before = apart()
    # No labels: the teacher alone.
    kfp.distill(small, model, alpha=1.0).fit(x, y[::-1].copy(), epochs=8, verbose=0)
    assert apart() < 0.2 * before
    assert (logits(small, x).argmax(-1) == y).mean() > 0.9


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = network(8, 1)

    def call(self, x, training=None):
        return self.inner(x, training=training)


def test_a_subclassed_teacher_teaches_as_its_graph_does():
    x, y = labelled_images()
    teacher, found = Subclassed(), []
    teacher(x[:1])
    for given in (teacher, teacher.inner):
        distiller = kfp.distill(compiled(network(4, 0)), given)
        found.append(loss_of(distiller, x, y))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    student = Subclassed()
    student(x[:1])
    student.compile("sgd", "mse")
    with pytest.raises(errors.UnsupportedModelError, match=r"open_model\(student\) gives one that has"):
        kfp.distill(student, teacher)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": "4"},
        {"temperature": math.nan},
        {"temperature": -math.inf},
        {"alpha": 1.1},
        {"alpha": -0.1},
        {"attention": -1},
        {"squared_temperature": 2},
    ],
)
def test_settings_out_of_range(settings):
    ((name, value),) = settings.items()
    with pytest.raises(errors.InvalidValueError, match=f"{name} is .* Received: {name}={value!r}"):
        kfp.distill(compiled(network(4, 0)), network(8, 1), **settings)


def test_features_that_are_not_there():
    with pytest.raises(errors.UnknownNameError, match=r"has no layer 'none'\. It has: "):
        kfp.distill(compiled(network(4, 0)), network(8, 1), features=["none"])


def test_features_without_positions():
    with pytest.raises(errors.InvalidValueError, match="'pool' of the student 'network4' gives"):
        kfp.distill(compiled(network(4, 0)), network(8, 1), features=["pool"])


def test_models_that_do_not_fit():
    teacher = network(8, 1)
    with pytest.raises(errors.UnsupportedModelError, match=r"compile\(optimizer, loss\) it first"):
        kfp.distill(network(4, 0), teacher)
    other = compiled(keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(5)]))
    with pytest.raises(errors.UnsupportedModelError, match="cannot teach"):
        kfp.distill(other, teacher)
    inputs = keras.Input((8, 8, 3))
    h = layers.Flatten()(inputs)
    with pytest.raises(errors.UnsupportedModelError, match="they have 1 and 2 outputs"):
        kfp.distill(compiled(keras.Model(inputs, [layers.Dense(2)(h), layers.Dense(3)(h)])), teacher)


# ---------------------------------------------------------------------------------------------- other backends

ELSEWHERE = """
import keras, numpy as np, keras_filterprune as kfp
keras.utils.set_random_seed(0)
def network(width):
    inputs = keras.Input((8, 8, 3))
    h = keras.layers.BatchNormalization()(keras.layers.Conv2D(width, 3, name="conv")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(h)))
student, teacher = network(4), network(8)
student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x, y = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32"), np.arange(32) % 3
before = [w.copy() for w in teacher.get_weights()]
losses = kfp.distill(student, teacher, features=["conv"]).fit(x, y, epochs=5, verbose=0).history["loss"]
assert losses[-1] < losses[0]
assert all((a == b).all() for a, b in zip(before, teacher.get_weights()))
student.predict(x, verbose=0)
"""


@on_every_backend
def test_every_backend_distills(backend):
    run_on(backend, ELSEWHERE)
