"""Distillation beside what Keras does in training: strategies, callbacks, penalties of layers, files."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
from builders import array, digits, labelled_images, predict, values
from keras import layers

import keras_filterprune as kfp
from keras_filterprune import errors

FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

REPLICAS = """
import keras, numpy as np, tensorflow as tf, keras_filterprune as kfp
L = keras.layers
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 40)
maps, weights = rng.normal(size=(40, 6, 6, 2)).astype("float32"), rng.uniform(0, 2, 40).astype("float32")

def network(width, seed, strength=0.0, heads=1):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    h = L.Conv2D(width, 3, padding="same", name="conv", kernel_regularizer=keras.regularizers.L2(strength))(inputs)
    h = L.ReLU(name="relu")(h)
    what = L.Dense(3, activation="softmax", name="what")(L.GlobalAveragePooling2D()(h))
    return keras.Model(inputs, [what, L.Conv2D(2, 1, name="where")(h)] if heads == 2 else what)

def train(strength=0.0, heads=1, labels=True, weighted=False, reduction="sum_over_batch_size", **settings):
    student, teacher = network(4, 0, strength, heads), network(8, 1, 0.0, heads)
    loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    student.compile(keras.optimizers.SGD(0.01), [loss, "mse"][:heads])
    distiller = kfp.distill(student, teacher, 3.0, 0.6, **settings)
    sample_weight = weights if weighted else None
    data = (x, [y, maps] if heads == 2 else y) if labels else (x,)
    history = distiller.fit(*data, sample_weight=sample_weight, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return history.history, [keras.ops.convert_to_numpy(w) for w in student.get_weights()]

# A second strategy would take the first one's collective operations for its own.
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for case in (
    dict(weighted=True),
    dict(labels=False, strength=0.1, features=["relu"]),
    dict(heads=2, strength=0.1, features=["relu"]),
):
    one = train(**case)
    with strategy.scope():
        two = train(**case)
    assert one[0].keys() == two[0].keys(), case
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], two[0][name], rtol=1e-4, atol=1e-6, err_msg=f"{case} {name}")
    for a, b in zip(one[1], two[1]):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=str(case))
"""


def test_two_replicas_train_as_one():
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def network(width: int, seed: int, penalty: str = "none") -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(
        width,
        3,
        activation="relu",
        kernel_regularizer=keras.regularizers.L2(0.1) if penalty == "kernel" else None,
        activity_regularizer=keras.regularizers.L2(0.01) if penalty == "activity" else None,
        name="conv",
    )(inputs)
    h = layers.Conv2D(width, 3, activation="relu", name="second")(h)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(h)), name=f"network{width}")


def taught(student: keras.Model, **settings) -> keras.Model:
    """The distiller of a student that learns fast."""
    student.compile(keras.optimizers.SGD(0.05, momentum=0.9), FROM_LOGITS, metrics=["accuracy"], run_eagerly=True)
    return kfp.distill(student, network(8, 1), **settings)


@pytest.mark.parametrize(("labels", "features"), [(True, None), (False, ["conv"])], ids=["labels", "features alone"])
@pytest.mark.parametrize("penalty", ["kernel", "activity"])
def test_what_layers_add_counts_once_and_the_teachers_for_nothing(penalty, labels, features):
    """Nor does it matter how many steps there were before."""
    x, y = labelled_images()

    def losses(ours: str, theirs: str) -> list[float]:
        student, teacher = network(4, 0, ours), network(8, 1, theirs)
        student.compile(keras.optimizers.SGD(0.0), FROM_LOGITS, run_eagerly=True)
        distiller = kfp.distill(student, teacher, features=features)
        return distiller.fit(x, y if labels else None, batch_size=16, epochs=2, verbose=0).history["loss"]

    student = network(4, 0, penalty)
    kernel = array(student.get_layer("conv").kernel)
    given = array(student.get_layer("conv")(x))
    added = 0.1 * np.square(kernel).sum() if penalty == "kernel" else 0.01 * np.square(given).sum() / len(x)
    plain = losses("none", "none")
    assert losses("none", penalty) == pytest.approx(plain, rel=1e-5)
    assert losses(penalty, penalty) == pytest.approx(np.add(plain, added), rel=1e-4)


def own_loss(labels, scores):
    return keras.ops.mean(keras.ops.square(keras.ops.one_hot(keras.ops.cast(labels, "int32"), 3) - scores), -1)


def own_metric(labels, scores):
    return keras.ops.mean(scores)


def test_compiled_by_object():
    """Losses, metrics and settings of one's own, which no name finds again."""
    x, y = labelled_images()
    student = network(4, 0)
    metric = keras.metrics.MeanMetricWrapper(own_metric, name="mine")
    student.compile("adam", lambda y, z: own_loss(y, z), metrics=[metric, lambda y, z: keras.ops.max(z)])
    distiller = kfp.distill(student, network(8, 1))
    assert distiller.optimizer is student.optimizer
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    assert {"mine", "val_mine", "val_loss", "val_distillation_loss"} <= history.keys()


# ------------------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("weights_only", [False, True], ids=["model", "weights"])
@pytest.mark.parametrize("often", ["epoch", 1], ids=["epochs", "steps"])
def test_checkpoints_hold_the_student(tmp_path, often, weights_only):
    x, y = labelled_images()
    student = network(4, 0)
    path = tmp_path / f"student{'.weights.h5' if weights_only else '.keras'}"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=weights_only, save_freq=often)
    taught(student).fit(x, y, epochs=2, verbose=0, callbacks=[checkpoint])
    if weights_only:
        again = network(4, 5)
        again.load_weights(path)
    else:
        again = keras.models.load_model(path)
        assert int(again.optimizer.iterations) == int(student.optimizer.iterations) == 2
    np.testing.assert_allclose(predict(again, x)[0], predict(student, x)[0], atol=1e-6)


def test_training_goes_on_from_a_backup(tmp_path):
    x, y = labelled_images()

    class Fails(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    whole, parts = network(4, 0), network(4, 0)
    settings = {"epochs": 4, "shuffle": False, "verbose": 0}
    taught(whole).fit(x, y, **settings)
    with pytest.raises(InterruptedError):
        taught(parts).fit(x, y, callbacks=[backup(), Fails()], **settings)
    again = network(4, 7)
    taught(again).fit(x, y, callbacks=[backup()], **settings)
    for a, b in zip(values(whole), values(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_best_weights_come_back():
    x, y = labelled_images()
    student = network(4, 0)
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=3, restore_best_weights=True)
    before = values(student)
    taught(student).fit(x, y, epochs=3, verbose=0, callbacks=[stop])
    first = network(4, 0)
    taught(first).fit(x, y, epochs=1, verbose=0)
    assert not all(np.array_equal(a, b) for a, b in zip(before, values(student), strict=True))
    for a, b in zip(values(first), values(student), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ real images


def test_a_teacher_of_digits():
    """The same student learns more of few digits with a teacher, and most of it without any label."""
    x, y = digits(1600)
    few, rest = slice(0, 200), slice(1000, None)

    def network(width, seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((8, 8, 1))
        h = layers.Flatten()(layers.Conv2D(width, 3, activation="relu")(inputs))
        model = keras.Model(inputs, layers.Dense(10, activation="softmax")(h))
        model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    teacher = network(16, 0)
    teacher.fit(x[:1000], y[:1000], epochs=12, verbose=0)
    told = predict(teacher, x[rest])[0].argmax(-1)
    for labels in (y[few], None):
        student = network(2, 1)
        kfp.distill(student, teacher).fit(x[few], labels, epochs=30, verbose=0)
        found = predict(student, x[rest])[0].argmax(-1)
        assert (found == y[rest]).mean() > 0.8, f"labels: {labels is not None}"
        assert (found == told).mean() > 0.8, f"labels: {labels is not None}"


# ---------------------------------------------------------------------------------------------------------- refused


def test_no_labels_and_no_teacher():
    x, _ = labelled_images()
    with pytest.raises(errors.InvalidValueError, match="data without labels"):
        taught(network(4, 0), alpha=0.0).fit(x, verbose=0)


def outputs(activation, width=3, dtype=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    h = layers.Dense(width, activation=activation)(inputs)
    model = keras.Model(inputs, keras.ops.argmax(h, -1) if dtype else h)
    model.compile("sgd", "mse")
    return model


def test_kinds_that_do_not_fit():
    with pytest.raises(errors.UnsupportedModelError, match=r"probabilities of units.*probabilities of classes"):
        kfp.distill(outputs("sigmoid"), outputs("softmax"))


def test_outputs_that_nothing_is_learnt_from():
    with pytest.raises(errors.UnsupportedModelError, match=r"teacher.*gives int"):
        kfp.distill(outputs("softmax"), outputs("softmax", dtype="int32"))
