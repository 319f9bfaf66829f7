"""Every copy that the library makes of a model computes what the model computes: kinds of layers times ways to copy."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.compensators.adapted_models import add_adapters, merge_adapters, wrappable
from keras_filterprune.export.precision import in_float32
from keras_filterprune.rebuild.clone import clone
from keras_filterprune.rebuild.verify import call_whole

FACTOR = 3.0
TENSORFLOW = keras.backend.backend() == "tensorflow"
RNG = np.random.default_rng(0)
X = RNG.normal(100, 50, (8, 8, 8, 3)).astype("float32")


def own(x):
    return ops.relu(x) * FACTOR


def closure(factor):
    return lambda x: ops.tanh(x) * factor


class Slope:
    """A callable object without a configuration."""

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, x):
        return ops.maximum(x, self.slope * x)

    def method(self, x):
        return ops.minimum(x, self.slope)


FUNCTIONS = {
    "module's name": lambda x: keras.ops.abs(x),
    "module's constant": lambda x: x * FACTOR,
    "module's function": own,
    "partial": functools.partial(ops.leaky_relu, negative_slope=0.3),
    "closure": closure(2.0),
    "object": Slope(0.3),
    "method": Slope(0.3).method,
    "keras.ops": ops.gelu,
    "keras.activations": keras.activations.gelu,
}
if TENSORFLOW:
    import tensorflow as tf

    FUNCTIONS |= {"tf.nn": tf.nn.relu6, "tf.math": tf.math.softplus, "tf.nn.gelu": tf.nn.gelu}


class Standardize(layers.Layer):
    """Derives attributes from data, which stand neither in its weights nor in its configuration."""

    mean = None

    def adapt(self, data):
        self.mean, self._deviation = data.mean(axis=(0, 1, 2)), data.std(axis=(0, 1, 2))

    def call(self, x):
        return (x - self.mean) / self._deviation


class Doubling(layers.Layer):
    """Does something else once it is told to."""

    exponent = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.after = 1.0, []

    def call(self, x):
        for function in self.after:
            x = function(x)
        return self.factor * x


class AlwaysDrops(layers.Layer):
    """Monte-Carlo dropout."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(x, training=True)


class Unregistered(keras.regularizers.Regularizer):
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        return self.strength * ops.sum(ops.square(x))

    def get_config(self):
        return {"strength": self.strength}


class Counts(layers.Layer):
    """Adds how often it was called."""

    def build(self, shape):
        self.calls = self.add_weight((), "zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + self.calls


def adapted(layer, data=X):
    layer.adapt(data)
    return layer


def told(layer):
    layer.factor, layer.after = 2.0, [own]
    return layer


def model_in_a_wrapper():
    inner = keras.Input((8, 3))
    h = layers.Conv1D(3, 3, padding="same", activation=own)(layers.Lambda(closure(0.1))(inner))
    return layers.TimeDistributed(keras.Model(inner, h))


def tables(x):
    """The mean of the image as words, looked up."""
    lookup = layers.IntegerLookup(output_mode="multi_hot", max_tokens=6)
    lookup.adapt(np.array([90, 95, 100, 105, 110]))
    return layers.Dense(8)(lookup(ops.cast(ops.mean(x, axis=(1, 2)), "int32")))


def bins(x):
    layer = layers.Discretization(num_bins=4, output_mode="multi_hot")
    layer.adapt(X.mean(axis=(1, 2)))
    return layers.Dense(8)(layer(ops.mean(x, axis=(1, 2))))


# What stands before, in and behind two convolutions.
BEFORE = {
    "Normalization": lambda: adapted(layers.Normalization(axis=-1)),
    "Normalization in TimeDistributed": lambda: layers.TimeDistributed(
        adapted(layers.Normalization(axis=-1), X.reshape(-1, 8, 3))
    ),
    "attributes": lambda: adapted(Standardize()),
    "attributes set later": lambda: told(Doubling()),
    "model in a wrapper": model_in_a_wrapper,
    "noise": lambda: layers.GaussianNoise(0.5),
    "augmentation": lambda: keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)]),
    "always random": AlwaysDrops,
    "random function": lambda: layers.Lambda(lambda x: x + keras.random.normal(ops.shape(x))),
    "counting": Counts,
    "own regularizer": lambda: layers.Conv2D(4, 3, kernel_regularizer=Unregistered(0.1), bias_regularizer=ops.sum),
}
BEFORE |= {f"Lambda, {name}": functools.partial(layers.Lambda, f) for name, f in FUNCTIONS.items()}
ACTIVATIONS = {f"activation, {name}": function for name, function in FUNCTIONS.items()}
ACTIVATIONS |= {"activation, a layer": layers.LeakyReLU, "activation, a layer with weights": layers.PReLU}
BEHIND = {"tables": tables, "bins": bins}
KINDS = [*BEFORE, *ACTIVATIONS, *BEHIND, "stateful"]


def build(kind, policy="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((8, 8, 3), batch_size=8 if kind == "stateful" else None)
        activation = ACTIVATIONS.get(kind, "relu")
        activation = activation() if isinstance(activation, type) else activation
        h = BEFORE[kind]()(inputs) if kind in BEFORE else layers.Rescaling(0.01)(inputs)
        h = layers.Conv2D(8, 3, padding="same", activation=activation, name="first")(h)
        h = layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(h)
        # A block that can be removed.
        h = layers.Add()([h, layers.Conv2D(8, 3, padding="same", name="third")(h)])
        if kind == "stateful":
            h = layers.LSTM(4, stateful=True)(layers.Reshape((64, 8))(h))
        else:
            h = layers.GlobalAveragePooling2D()(h)
        if kind in BEHIND:
            h = layers.Concatenate()([h, BEHIND[kind](inputs)])
        model = keras.Model(inputs, layers.Dense(4, dtype="float32")(h))
    finally:
        keras.config.set_dtype_policy("float32")
    # Some layers are built, and some begin to count, when they are called on numbers.
    model(X / 100)
    for weight in model.weights:
        if weight.name == "alpha":
            weight.assign(np.random.default_rng(1).uniform(0.1, 0.5, weight.shape))
    return model


def difference(model, twin):
    a, b = (keras.ops.convert_to_numpy(call_whole(m, [ops.convert_to_tensor(X)])[0]) for m in (model, twin))
    return np.abs(a - b).max() / np.abs(a).max()


def with_adapters(model):
    graph = kfp.analyze(model)
    return add_adapters(model, graph, wrappable(graph))


# What equals the original.
COPIES = {
    "clone": clone,
    "prune, all kept": lambda m: kfp.prune_model(m, "l2", kfp.FiltersBudget(keep=1.0), progress=False),
    "bridgeout": kfp.apply_bridgeout,
    "masks": kfp.apply_filter_pruning,
    "gates": kfp.apply_filter_gates,
    "penalty": lambda m: kfp.apply_penalty(m, kfp.regularizers.GroupLasso()),
    "strip": lambda m: kfp.strip_wrappers(kfp.apply_filter_pruning(kfp.apply_bridgeout(m))),
    "adapters": with_adapters,
    "adapters merged": lambda m: merge_adapters(with_adapters(m)),
}


# All that is made of one kind is made of one model, which each leaves as it was.
one_of = functools.cache(build)
# One mechanism carries layers over where all stay, another where channels may go: of all but functions, each kind meets
# both; whatever it is, it meets every third way to copy.
PAIRS = [
    (kind, copy)
    for number, kind in enumerate(KINDS)
    for turn, copy in enumerate(COPIES)
    if (number + turn) % 3 == 0 or (", " not in kind and copy.startswith(("clone", "prune")))
]
# All kinds, of functions every second.
FEWER = [kind for number, kind in enumerate(KINDS) if ", " not in kind or number % 2 == 0]


@pytest.mark.parametrize(("kind", "copy"), PAIRS)
def test_copies_compute_what_the_original_computes(kind, copy):
    model = one_of(kind)
    before = [w.copy() for w in model.get_weights()]
    twin = COPIES[copy](model)
    assert difference(model, twin) < 1e-5
    # A state of its own, and the original's is what it was.
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not {id(v) for v in model.variables} & {id(v) for v in twin.variables}


OPENED = "attributes", "attributes set later"


@pytest.mark.parametrize("kind", FEWER)
def test_smaller_models_are_proven(kind):
    model = one_of(kind)
    small = kfp.prune_model(model, "l2", 0.6, progress=False)
    assert small.count_params() < model.count_params()
    # What Standardize and Doubling compute stands in the graph, as operations; of a model in a wrapper, its layers.
    assert small.layers[1].name.startswith((model.layers[2] if kind in OPENED else model.layers[1]).name)
    fewer = kfp.prune_layers(model, n_layers=1, progress=False)
    assert len(fewer.layers) < len(small.layers)


# Draws in half precision are others, and Keras' bins do not run in it.
@pytest.mark.parametrize("kind", [k for k in FEWER if "random" not in k and k != "bins"])
def test_twins_in_float32_compute_what_half_precision_computes(kind):
    model = build(kind, "mixed_float16")
    twin, halves, tolerance = in_float32(model)
    assert halves and tolerance == 2e-2
    assert not {"float16", "mixed_float16"} & {layer.compute_dtype for layer in twin.layers}
    assert difference(model, twin) < tolerance


def test_what_only_the_original_holds_is_no_silent_difference():
    class Hidden(layers.Layer):
        def call(self, x):
            return x * self.table["factor"]

    layer = Hidden()
    layer.table = {"factor": 2.0, "of no known type": object()}
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(4, 3, name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layer(h))))
    with pytest.raises((errors.FilterPruneError, AttributeError)):
        clone(model)
    # Opened, it is a product with 2.
    assert difference(model, kfp.apply_bridgeout(model)) == 0


# ---------------------------------------------------------------------------------- layers that were changed later


def changed(name, **attributes):
    def change(model):
        for attribute, value in attributes.items():
            setattr(model.get_layer(name), attribute, value)

    return change


def ruled(**rules):
    def change(model):
        for name, rule in rules.items():
            setattr(model.get_layer("second").kernel, name, rule)

    return change


# What is done to a built layer that its configuration does not know of, or knows as something that it was never built
# with.
CHANGES = {
    "no dropout": changed("dropout", rate=0),
    "another dropout": changed("dropout", rate=0.9),
    "no noise": changed("noise", stddev=0.0),
    "statistics": changed("bn", momentum=0.5, epsilon=0.1),
    "no scale": changed("bn", scale=False),
    "no shift": changed("bn", center=False),
    "slope": changed("leaky", negative_slope=0.7),
    "activation": changed("second", activation=own),
    "no bias of a convolution": changed("first", use_bias=False),
    "no bias of a dense layer": changed("dense", bias=None),
    "a penalty that came too late": changed("second", kernel_regularizer=keras.regularizers.L2(0.1)),
    "a penalty on a weight": ruled(regularizer=Unregistered(0.1)),
    "a function as a penalty on a weight": ruled(regularizer=lambda w: ops.sum(w * w)),
    "no penalty any more": lambda m: setattr(m.get_layer("first").kernel, "regularizer", None),
    "a constraint on a weight": ruled(constraint=keras.constraints.MaxNorm(0.01)),
    "half precision": changed("second", dtype_policy=keras.DTypePolicy("mixed_bfloat16")),
}


@functools.cache
def with_change(change):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(8, 3, padding="same", kernel_regularizer="l2", name="first")(inputs)
    h = layers.LeakyReLU(name="leaky")(layers.BatchNormalization(name="bn")(h))
    h = layers.GaussianNoise(0.5, name="noise")(layers.Dropout(0.5, name="dropout")(h))
    h = layers.Conv2D(8, 3, activation="relu", name="second")(h)
    h = layers.Dense(8, activation="relu", name="dense")(layers.GlobalAveragePooling2D()(h))
    model = keras.Model(inputs, layers.Dense(4, name="head")(h))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("bias", "beta", "moving_mean"):
            weight.assign(rng.normal(size=weight.shape))
    CHANGES[change](model)
    return model


def near(change):
    return 2e-2 if change == "half precision" else 1e-5


# What copies put around convolutions meets all that is changed of these; the rest is carried over by one mechanism, by
# another where channels may go, and meets pruning and every third way to copy.
OF_OTHERS = ("no dropout", "another dropout", "no noise", "statistics", "no scale", "no shift", "slope")
CHANGED = [
    (change, copy)
    for number, change in enumerate(CHANGES)
    for turn, copy in enumerate(COPIES)
    if change not in OF_OTHERS or copy.startswith("prune") or (number + turn) % 3 == 0
]


@pytest.mark.parametrize(("change", "copy"), CHANGED)
def test_copies_of_changed_layers(change, copy):
    model = with_change(change)
    twin = COPIES[copy](model)
    assert difference(model, twin) < near(change)
    if copy not in ("penalty", "adapters", "adapters merged"):
        # Those add penalties, or put a layer under the penalty of another.
        a, b = (float(sum(map(ops.sum, m.losses), 0.0)) for m in (model, twin))
        assert b == pytest.approx(a, rel=1e-5)
    if "constraint" in change and copy in ("clone", "strip"):
        assert twin.get_layer("second").kernel.constraint.max_value == 0.01


# What is written into the smaller model, half of it for each change.
COMPENSATED = [
    (change, compensate)
    for number, change in enumerate(CHANGES)
    for turn, compensate in enumerate(["none", "linear", "least_squares", "bn"])
    if (number + turn) % 2 == 0
]


@pytest.mark.parametrize(("change", "compensate"), COMPENSATED)
def test_smaller_models_of_changed_layers_are_proven(change, compensate):
    model = with_change(change)
    half = kfp.FiltersBudget(0.5)
    small = kfp.prune_model(model, "l2", half, data=X / 100, compensate=compensate, progress=False)
    assert small.get_layer("first").filters == small.get_layer("dense").units == 4


class Stacked(keras.Model):
    def __init__(self, stack):
        super().__init__()
        self.stack = stack

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return x


@pytest.mark.parametrize("change", CHANGES)
def test_models_with_changed_layers_are_opened(change):
    model = with_change(change)
    given = Stacked(model.layers[1:])
    given(X)
    opened = kfp.open_model(given)
    assert difference(model, opened) < near(change)
    assert float(sum(map(ops.sum, opened.losses), 0.0)) == pytest.approx(
        float(sum(map(ops.sum, model.losses), 0.0)), rel=1e-5
    )
