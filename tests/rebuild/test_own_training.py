"""Models that train in a way of their own: it is used, or it is said that it is not."""

import warnings

import keras
import numpy as np
import pytest
from builders import labelled_images
from keras import layers, ops

import keras_filterprune as kfp

X, Y = labelled_images()
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class OwnLoss(keras.Model):
    """Twice the cross-entropy of one class alone; says so to nobody but `fit`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 2 * ops.mean(keras.losses.sparse_categorical_crossentropy(ops.zeros_like(y), y_pred, from_logits=True))


class OlderLoss(keras.Model):
    """The same, without the argument that Keras has added since."""

    def compute_loss(self, x, y, y_pred, sample_weight=None):
        return OwnLoss.compute_loss(self, x, y, y_pred)


class MoreLoss(keras.Model):
    """More than what it is compiled with."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training) + ops.mean(ops.square(y_pred))


class Unlabelled(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred[:, 0] - ops.mean(x, axis=(1, 2, 3))))


class Step(keras.Model):
    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


class Metrics(keras.Model):
    def compute_metrics(self, *args, **kwargs):
        return super().compute_metrics(*args, **kwargs)


class Failing(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        raise RuntimeError("no such luck")


class Rows(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return y_pred[:, 0]


def built(kind=keras.Model, loss=CROSS_ENTROPY, extra=None):
    keras.utils.set_random_seed(0)
    y = inputs = keras.Input((8, 8, 3))
    for name in ("a", "b"):
        y = layers.Conv2D(8, 3, activation="relu", name=name)(y)
        y = y if extra is None else extra(y)
    model = kind(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(y)))
    if loss is not None:
        model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def said(run, *arguments, **settings):
    """What it returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(*arguments, **settings)
    return found, [str(w.message) for w in caught if w.category is UserWarning]


def scores(model, method, data):
    plan, warned = said(kfp.plan_pruning, model, method, kfp.FiltersBudget(0.5), data=data, progress=False)
    return {name: kept.tolist() for name, kept in plan.kept.items()}, warned


def first_class(y, y_pred):
    return keras.losses.sparse_categorical_crossentropy(ops.zeros_like(y), y_pred, from_logits=True)


def and_squares(y, y_pred):
    return CROSS_ENTROPY(y, y_pred) + ops.mean(ops.square(y_pred))


@pytest.mark.parametrize("method", ["taylor", "taylor_gate", "group_fisher"])
@pytest.mark.parametrize("compiled", [CROSS_ENTROPY, None], ids=["compiled", "not compiled"])
@pytest.mark.parametrize("kind", [OwnLoss, OlderLoss])
def test_gradients_are_those_of_a_compute_loss_of_ones_own(kind, compiled, method):
    found, warned = scores(built(kind, compiled), method, (X, Y))
    assert found == scores(built(loss=first_class), method, (X, Y))[0] and not warned
    assert found != scores(built(), method, (X, Y))[0]


def test_a_compute_loss_that_adds_to_the_compiled_one():
    model = built(MoreLoss)
    assert scores(model, "taylor", (X, Y)) == (scores(built(loss=and_squares), "taylor", (X, Y))[0], [])
    model.fit(X, Y, verbose=0)


def test_a_compute_loss_without_labels_gets_the_inputs():
    found, warned = scores(built(Unlabelled, None), "taylor", X)
    labels = X.mean(axis=(1, 2, 3))
    wanted = scores(built(loss=lambda y, y_pred: ops.mean(ops.square(y_pred[:, 0] - y))), "taylor", (X, labels))[0]
    assert found == wanted and not warned


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Failing, r"Failing\.compute_loss\(\) fails on calibration data.*no such luck"), (Rows, "to return a scalar")],
)
def test_a_compute_loss_that_cannot_be_used_is_said_to_be_one(kind, message):
    with pytest.raises(kfp.FilterPruneError, match=message):
        kfp.plan_pruning(built(kind), "taylor", 0.5, data=(X, Y), progress=False)


class Adding(layers.Layer):
    """Adds to the loss."""

    def call(self, x):
        self.add_loss(ops.mean(x))
        return x


kfp.register_handler(Adding)(kfp.handlers.Elementwise)


@pytest.mark.parametrize("method", ["taylor", "group_fisher"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: built(Step), r"Step's own train_step\(\) is not looked at.*compiled loss 'sparse_categorical"),
        (lambda: built(Step, None), r"Step's own train_step\(\) is not looked at.*cross-entropy of class scores"),
        (lambda: built(extra=lambda y: Adding()(y)), r"what 'adding.*' add to the loss is not looked at"),
        (
            lambda: built(extra=lambda y: layers.ActivityRegularization(0.1)(y)),
            r"what 'activity_reg.*' add to the loss",
        ),
    ],
    ids=["step", "step, not compiled", "add_loss", "activity"],
)
def test_gradients_say_what_of_training_they_leave_out(model, message, method):
    _, warned = scores(model(), method, (X, Y))
    assert len(warned) == 1
    with pytest.raises(UserWarning, match=message):
        raise UserWarning(warned[0])


PLAIN = {
    "prune_model": lambda model: kfp.prune_model(model, "l2", 0.5, progress=False),
    "prune_model between adapters": lambda model: kfp.prune_model(
        model, "l2", 0.5, compensate="adapter", progress=False
    ),
    "apply_plan": lambda model: kfp.apply_plan(model, kfp.plan_pruning(model, "l2", 0.5), progress=False),
    "apply_filter_pruning": kfp.apply_filter_pruning,
    "apply_filter_gates": kfp.apply_filter_gates,
    "apply_bridgeout": kfp.apply_bridgeout,
    "apply_penalty": lambda model: kfp.apply_penalty(model, kfp.regularizers.GroupLasso(1e-4)),
}


@pytest.mark.parametrize("kind", [Step, OwnLoss])
@pytest.mark.parametrize("make", PLAIN)
def test_a_plain_model_that_would_train_otherwise_is_said_to_do_so(make, kind):
    result, warned = said(PLAIN[make], built(kind))
    assert type(result).__name__ == "Functional"
    assert len(warned) == 1 and f"{kind.__name__}'s own " in warned[0] and "is not part of it" in warned[0]
    # Without a compiled loss, fit() itself says that there is none.
    assert said(PLAIN[make], built(kind, None))[1] == []
    assert said(PLAIN[make], built(Metrics))[1] == []


@pytest.mark.parametrize("kind", [Step, OwnLoss, Metrics])
def test_distillation_says_what_of_the_student_it_does_not_call(kind):
    _, warned = said(kfp.distill, built(kind), built())
    assert len(warned) == 1 and f"{kind.__name__}'s own " in warned[0] and "is not called" in warned[0]
    assert said(kfp.distill, built(), built(kind))[1] == []


@pytest.mark.parametrize("kind", [Step, OwnLoss])
def test_a_study_of_the_loss_says_that_it_is_the_compiled_one(kind):
    settings = {"keep": (0.5,), "progress": False}
    _, warned = said(kfp.measure_sensitivity, built(kind), (X, Y), "loss", **settings)
    assert len(warned) == 1 and "metric 'loss' is the compiled one" in warned[0]
    assert said(kfp.measure_sensitivity, built(kind), (X, Y), **settings)[1] == []


class Opened(keras.Model):
    """Has no graph of layers, and a loss of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = (layers.Conv2D(8, 3, name=name) for name in "abc")

    def call(self, x):
        return ops.mean(self.head(ops.relu(self.b(ops.relu(self.a(x))))), axis=(1, 2))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred[:, 0]))


def test_what_was_opened_has_the_loss_of_its_class():
    model = Opened()
    model(X[:2])
    own, warned = scores(model, "taylor", (X, Y))
    plain = kfp.open_model(model)
    plain.compile("sgd", lambda y, y_pred: ops.mean(ops.square(y_pred[:, 0])))
    assert own == scores(plain, "taylor", (X, Y))[0] and not warned

    class Refusing(Opened):
        compute_loss = Failing.compute_loss

    model = Refusing()
    model(X[:2])
    with pytest.raises(kfp.FilterPruneError, match=r"Refusing\.compute_loss\(\) fails.*no such luck"):
        scores(model, "taylor", (X, Y))


def test_soft_pruning_trains_a_model_by_its_own_step():
    steps = []

    class Counted(keras.Model):
        def train_step(self, *args, **kwargs):
            steps.append(1)
            return super().train_step(*args, **kwargs)

    model = built(Counted)
    model.compile("sgd", CROSS_ENTROPY, run_eagerly=True)
    model.fit(X, Y, verbose=0, callbacks=[kfp.callbacks.SoftPruning(0.5)])
    assert steps and np.isfinite(model.get_layer("a").get_weights()[0]).all()
