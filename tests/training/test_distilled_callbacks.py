"""Callbacks that prune while a teacher teaches: they find the student inside, and its groups."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import images, labelled_images, predict, shrunk, total_macs, values
from keras import layers

import keras_filterprune as kfp


def network(width: int, seed: int, heads: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    h = layers.BatchNormalization()(layers.Conv2D(width, 3, activation="relu", name="first")(inputs))
    h = layers.Conv2D(width, 3, activation="relu", name="second")(h)
    what = layers.Dense(3, name="what")(layers.GlobalAveragePooling2D()(h))
    return keras.Model(inputs, [what, layers.Conv2D(2, 1, name="where")(h)] if heads == 2 else what)


CALLBACKS = {
    "masks": (kfp.apply_filter_pruning, lambda data: kfp.callbacks.PruningSchedule([0.8, 0.5]), "macs_if_pruned"),
    "masks by data": (
        kfp.apply_filter_pruning,
        lambda data: kfp.callbacks.PruningSchedule(0.5, "energy", data=data[0]),
        "macs_if_pruned",
    ),
    "gates": (kfp.apply_filter_gates, lambda data: kfp.callbacks.BudgetGates(0.5, strength=1.0), "macs_if_pruned"),
    "soft": (lambda m: m, lambda data: kfp.callbacks.SoftPruning(0.5), "macs_if_pruned"),
    "soft, every step": (lambda m: m, lambda data: kfp.callbacks.SoftPruning(0.5, rho=0.9, every=1), "macs_if_pruned"),
    "penalties": (
        lambda m: kfp.apply_penalty(m, kfp.regularizers.GroupLasso(1e-4)),
        lambda data: kfp.callbacks.PenaltySchedule(0.9, step=1e-3),
        "strength",
    ),
    "bridgeout": (kfp.apply_bridgeout, lambda data: kfp.callbacks.BridgeoutSchedule(rate=lambda epoch: 0.1), None),
    "scorer": (lambda m: m, lambda data: kfp.callbacks.SensitivityScorer(data, metric="error"), "drop_first"),
}


HOWS = "no labels", "features, two outputs, a wrapped teacher"
# How it is taught is the same for all: they take turns, and one meets both.
BOTH = [(kind, HOWS[number % 2]) for number, kind in enumerate(CALLBACKS)] + [("gates", HOWS[1])]


@pytest.mark.filterwarnings("ignore:PenaltySchedule")
@pytest.mark.parametrize(("kind", "how"), BOTH)
def test_callbacks_act_on_the_student(kind, how):
    prepare, make, logged = CALLBACKS[kind]
    heads = 1 if how == "no labels" else 2
    student, teacher = prepare(network(8, 0, heads)), network(16, 1, heads)
    if "wrapped teacher" in how:
        teacher = kfp.apply_filter_pruning(kfp.apply_bridgeout(teacher))
    x, y = labelled_images()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.SGD(0.01), [loss, "mse"][:heads], run_eagerly=True)
    before = values(teacher)
    # Wrapped layers are called by other names.
    ours, theirs = (next(layer.name for layer in m.layers if "second" in layer.name) for m in (student, teacher))
    distiller = kfp.distill(student, teacher, features={ours: theirs} if "features" in how else None)
    labels = [y, images(32, (4, 4, 2))] if heads == 2 else y
    data = (x,) if how == "no labels" else (x, labels)
    history = distiller.fit(*data, epochs=4, verbose=0, callbacks=[make((x, y))]).history
    assert logged is None or logged in history
    assert {"loss", "student_loss", "distillation_loss"} <= history.keys()
    for a, b, c in zip(before, values(teacher), values(distiller.teacher), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    if logged == "macs_if_pruned":
        plain = kfp.strip_wrappers(student)
        small = shrunk(plain)
        assert total_macs(small) <= 0.5 * total_macs(plain)
        assert total_macs(small) == history[logged][-1]
        np.testing.assert_allclose(predict(small, x)[0], predict(student, x)[0], atol=1e-5)
