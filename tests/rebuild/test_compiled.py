"""Copies are compiled as the original is: by object, with an optimizer of the same settings."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from builders import labelled_images
from keras import layers, ops

import keras_filterprune as kfp
from keras_filterprune.graph.compiled import compile_arguments
from keras_filterprune.rebuild.compiled import compile_like

X, Y = labelled_images(16)
# Compiled arguments are compared, and a step or two are taken.
pytestmark = pytest.mark.usefixtures("untraced")


def focal(gamma):
    def loss(labels, scores):
        scores = ops.softmax(scores)
        hit = ops.sum(ops.one_hot(ops.cast(ops.reshape(labels, (-1,)), "int32"), 3) * scores, -1)
        return -((1 - hit) ** gamma) * ops.log(hit + 1e-7)

    return loss


class OwnLoss(keras.losses.Loss):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, labels, scores):
        return self.factor * ops.mean(ops.square(scores), axis=-1)


class OwnMetric(keras.metrics.Mean):
    def __init__(self, factor, name="own"):
        super().__init__(name)
        self.factor = factor

    def update_state(self, labels, scores, sample_weight=None):
        return super().update_state(self.factor * ops.mean(scores), sample_weight)

    def get_config(self):
        return {"factor": self.factor, "name": self.name}


class Silent(OwnMetric):
    """Its configuration does not build it."""

    def get_config(self):
        return {}


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 / (1.0 + ops.cast(step, "float32"))


class OwnOptimizer(keras.optimizers.SGD):
    pass


def own_metric(labels, scores):
    return ops.mean(scores)


def network(heads=1):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(8, 3, activation="relu", name="second")(
        layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    )
    h = layers.GlobalAveragePooling2D()(h)
    outputs = {name: layers.Dense(3, name=name)(h) for name in "ab"[:heads]}
    return keras.Model(inputs, outputs if heads > 1 else outputs["a"])


COPIES = {
    "prune": lambda m: kfp.prune_model(m, "l2", kfp.FiltersBudget(keep=1.0), progress=False),
    "bridgeout": kfp.apply_bridgeout,
    "masks": kfp.apply_filter_pruning,
    "strip": lambda m: kfp.strip_wrappers(kfp.apply_bridgeout(m)),
    "penalty of nothing": lambda m: kfp.apply_penalty(m, kfp.regularizers.GroupLasso(0.0)),
}
SETTINGS = {
    "name": {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
    "own function": {"loss": focal(2.0), "metrics": [own_metric]},
    "own class": {"loss": OwnLoss(3.0), "metrics": [OwnMetric(2.0)], "weighted_metrics": [OwnMetric(3.0, "weighted")]},
    "lambdas": {"loss": lambda y, z: ops.mean(z * z, -1), "metrics": [lambda y, z: ops.max(z)]},
    "function in a metric": {"loss": focal(1.0), "metrics": [keras.metrics.MeanMetricWrapper(own_metric, name="m")]},
    "no loss": {"loss": None, "metrics": [own_metric]},
    "settings": {"loss": focal(1.0), "steps_per_execution": 2, "run_eagerly": True},
}


def in_turns(rows, step):
    """One function compiles all copies: each row meets every so many of them, and each copy of the rows."""
    return [(row, copy) for n, row in enumerate(rows) for m, copy in enumerate(COPIES) if (n + m) % step == 0]


@pytest.mark.parametrize(("trained", "copy"), in_turns([False, True], 2))
def test_weights_of_activations_are_trained_in_copies_of_fresh_models_too(trained, copy):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(8, 3)(layers.Conv2D(4, 3, activation=layers.PReLU())(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(h)))
    model.compile("adam", focal(2.0))
    if trained:
        model.fit(X, Y, verbose=0)
    twin = COPIES[copy](model)
    twin.fit(X, Y, verbose=0)
    assert any("alpha" in v.path for v in twin.trainable_variables)


@pytest.mark.parametrize("copy", COPIES)
def test_sequential_models_are_compiled_like_the_original(copy):
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8, 8, 3)), layers.Conv2D(8, 3, activation="relu"), layers.Conv2D(8, 3), layers.Flatten()]
    model = keras.Sequential([*stack, layers.Dense(3)])
    model.compile("adam", focal(2.0), metrics=[own_metric])
    wanted = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert COPIES[copy](model).evaluate(X, Y, verbose=0, return_dict=True) == pytest.approx(wanted, rel=1e-5)


@functools.lru_cache(1)
def evaluated(settings):
    """A model of these settings, of which copies are made, and what it is evaluated to."""
    model = network()
    model.compile("sgd", **SETTINGS[settings])
    return model, model.evaluate(X, Y, verbose=0, return_dict=True) if SETTINGS[settings]["loss"] is not None else None


@pytest.mark.parametrize(("settings", "copy"), in_turns(SETTINGS, 2))
def test_copies_are_evaluated_like_the_original(settings, copy):
    (model, wanted), settings = evaluated(settings), SETTINGS[settings]
    twin = COPIES[copy](model)
    given, found = compile_arguments(model), compile_arguments(twin)
    assert found["loss"] is given["loss"]
    assert {k: found[k] for k in ("steps_per_execution", "run_eagerly", "jit_compile")} == {
        k: given[k] for k in ("steps_per_execution", "run_eagerly", "jit_compile")
    }
    for metric, other in zip(given["metrics"] or (), found["metrics"] or (), strict=True):
        assert type(metric) is type(other)
        assert (metric is other) is not isinstance(metric, keras.metrics.Metric)
    if wanted is not None:
        assert twin.evaluate(X, Y, verbose=0, return_dict=True) == pytest.approx(wanted, rel=1e-5)
        twin.fit(X, Y, verbose=0)


LOSSES = {
    "dict": {"a": focal(1.0), "b": focal(4.0)},
    "in the other order": {"b": focal(4.0), "a": focal(1.0)},
    "one without": {"a": focal(1.0), "b": None},
}


@pytest.mark.parametrize(("losses", "copy"), in_turns(LOSSES, 3))
def test_two_losses_of_one_factory_stay_apart(losses, copy):
    model = network(2)
    weights = {"a": 0.5, "b": 2.0}
    model.compile("sgd", LOSSES[losses], weights, metrics={"a": [own_metric], "b": [OwnMetric(2.0)]})
    targets = {"a": Y, "b": Y}
    wanted = model.evaluate(X, targets, verbose=0, return_dict=True)
    found = COPIES[copy](model).evaluate(X, targets, verbose=0, return_dict=True)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_names_of_outputs_stay_where_their_layers_are_wrapped():
    """Losses and labels go by the names of outputs."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    h = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(inputs))
    model = keras.Model(inputs, [layers.Dense(3, name=name)(h) for name in "ab"])
    model.compile("sgd", {"a": focal(1.0), "b": focal(4.0)})
    wanted = model.evaluate(X, {"a": Y, "b": Y}, verbose=0, return_dict=True)
    for copy in (*COPIES.values(), kfp.apply_filter_gates):
        found = copy(model).evaluate(X, {"a": Y, "b": Y}, verbose=0, return_dict=True)
        assert found == pytest.approx(wanted, rel=1e-5)


OPTIMIZERS = {
    "clipping": lambda: keras.optimizers.Adam(1e-3, clipnorm=0.5, global_clipnorm=None),
    "averages": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "Keras' schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 100)),
    "own schedule": lambda: keras.optimizers.SGD(OwnSchedule()),
    "function as a rate": lambda: keras.optimizers.SGD(lambda: 0.25),
    "own class": lambda: OwnOptimizer(0.3, momentum=0.9),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(OwnSchedule()), 8.0, 5),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_are_fresh_and_of_the_same_settings(kind):
    model = network()
    model.compile(OPTIMIZERS[kind](), focal(2.0))
    model.fit(X, Y, verbose=0)
    twin = kfp.apply_bridgeout(model)
    assert type(twin.optimizer) is type(model.optimizer)
    assert not int(twin.optimizer.iterations)
    for name, value in vars(model.optimizer).items():
        if isinstance(value, int | float | str) and not name.startswith("_"):
            assert vars(twin.optimizer)[name] == value
    twin.fit(X, Y, verbose=0)
    a, b = (getattr(m.optimizer, "inner_optimizer", m.optimizer) for m in (model, twin))
    assert int(a.iterations) == int(b.iterations)
    assert float(ops.convert_to_numpy(a.learning_rate)) == float(ops.convert_to_numpy(b.learning_rate))


@pytest.mark.parametrize(("how", "copy"), in_turns(["names", "variables"], 2))
def test_variables_left_out_of_weight_decay_stay_out(how, copy):
    model = network()
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    first = model.get_layer("first").kernel
    optimizer.exclude_from_weight_decay(**({"var_names": ["bias"]} if how == "names" else {"var_list": [first]}))
    # The loss of zeros: decay alone moves weights.
    model.compile(optimizer, lambda y, z: 0.0 * ops.sum(z, -1))
    twin = COPIES[copy](model)
    for variable in twin.trainable_variables:
        variable.assign(ops.ones_like(variable))
    before = [w.path for w in twin.trainable_variables]
    twin.fit(X, Y, batch_size=16, verbose=0)
    kept = {path for path, v in zip(before, twin.trainable_variables, strict=True) if np.allclose(v, 1.0)}
    assert kept == {p for p in before if p.endswith("bias" if how == "names" else "first/kernel")}


def test_what_cannot_be_carried_over_is_said():
    model = network()
    model.compile("sgd", focal(2.0), metrics=[Silent(2.0)])
    with pytest.warns(UserWarning, match=r"compiled without metrics.*get_config\(\)"):
        twin = kfp.apply_bridgeout(model)
    assert twin.compiled and twin.loss is model.loss
    _, report = kfp.prune_model(model, "l2", 0.6, progress=False, return_report=True)
    assert any("without metrics" in note for note in report.notes)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has none")
@pytest.mark.parametrize("chosen", ["by patterns", "by a function"])
def test_several_optimizers_are_not_shared(chosen):
    model, optimizers = network(), [keras.optimizers.SGD(0.1), keras.optimizers.Adam()]
    choose = keras.optimizers.OptimizerMap(optimizers[0], {"first.*": optimizers[1]})
    if chosen == "by a function":
        choose = lambda v: optimizers["first" in v.path]  # noqa: E731
    model.compile(keras.optimizers.MultiOptimizer(choose), focal(2.0))
    model.fit(X, Y, verbose=0)
    with pytest.warns(UserWarning, match="not compiled, because MultiOptimizer knows by the paths"):
        twin = kfp.apply_bridgeout(model)
    assert not twin.compiled
    model.fit(X, Y, verbose=0)


def test_where_keras_keeps_what_it_compiled():
    """The one private thing that is read: metrics, as the objects that compile() was given, and who decays."""
    model, metric = network(), OwnMetric(2.0)
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    model.compile(optimizer, "mse", metrics=[metric], weighted_metrics=[own_metric], loss_weights=[2.0])
    found = compile_arguments(model)
    assert found["metrics"][0] is metric and found["weighted_metrics"][0] is own_metric
    assert found["loss"] == "mse" and found["loss_weights"] == [2.0]
    assert optimizer._use_weight_decay(model.weights[0])
    twin = network()
    variables = {id(a): b for a, b in zip(model.weights, twin.weights, strict=True)}
    assert compile_like(model, twin, variables) == [] and twin.compiled
