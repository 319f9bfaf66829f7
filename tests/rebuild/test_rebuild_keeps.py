"""What a rebuilt model keeps of the original."""

import keras
import numpy as np
import pytest
from builders import assert_all_equal, conv, predict
from keras import layers, ops
from rebuilt import chain, head, image, prune, reason
from zoo import ZOO, random_inputs, randomise

PACKAGE = "test_rebuild_keeps"
# What is trained takes a step or two.
pytestmark = pytest.mark.usefixtures("untraced")


# Names, types, dtypes.


def test_name_of_an_input_without_a_name_is_kept():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2, name="out")(layers.Dense(8, name="a")(x)))
    assert [layer.name for layer in prune(model).layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"])
def test_dtype_policy_is_kept(policy):
    model = chain(conv(8, "a", dtype=policy), layers.BatchNormalization(dtype=policy, name="bn"), conv(6, "b"))
    small = prune(model)
    for layer in model.layers:
        twin = small.get_layer(layer.name)
        assert twin.dtype_policy.name == layer.dtype_policy.name
        assert [w.dtype for w in twin.weights] == [w.dtype for w in layer.weights]
    assert small.get_layer("a").filters == 4


@pytest.mark.parametrize(
    "kind",
    [layers.LayerNormalization, layers.GroupNormalization, layers.RMSNormalization, layers.UnitNormalization],
)
def test_statistics_over_channels_in_half_precision_are_verified(kind):
    groups = {"groups": 2} if kind is layers.GroupNormalization else {}
    model = chain(conv(8, "a", dtype="mixed_float16"), kind(dtype="mixed_float16", name="norm", **groups))
    assert prune(model).get_layer("a").filters == 4


def test_global_dtype_policy_at_pruning_time_does_not_matter():
    model = chain(conv(8, "a"), layers.Rescaling(2.0, name="twice"))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        small = prune(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.dtype_policy.name for layer in small.layers if layer.weights} == {"float32"}
    assert {w.dtype for w in small.weights} == {"float32"}


# Trainable flags.


def flags(model) -> dict:
    return {x.name: (x.trainable, flags(x) if hasattr(x, "layers") else None) for x in model.layers}


def nested_model(frozen_outside: bool = False, frozen_inside: bool = False) -> keras.Model:
    inner = keras.Input((6, 6, 8), name="inner_in")
    block = keras.Model(inner, conv(8, "inner2")(conv(6, "inner1")(inner)), name="block")
    block.get_layer("inner1").trainable = not frozen_inside
    if frozen_outside:
        block.trainable = False
    return chain(conv(8, "a"), block, conv(5, "b"))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_flags_of_a_nested_model_are_kept(outside, inside):
    model = nested_model(outside, inside)
    small = prune(model)
    assert flags(small) == flags(model)
    assert [w.name for w in small.trainable_weights] == [w.name for w in model.trainable_weights]
    assert small.get_layer("block").trainable is not outside


def test_frozen_layers_are_kept_frozen():
    model = ZOO["frozen_layers"]()
    small = prune(model)
    assert flags(small) == flags(model)
    assert [w.path for w in small.trainable_weights] == [w.path for w in model.trainable_weights]


def test_model_level_flag_is_kept():
    model = nested_model()
    model.trainable = False
    small = prune(model)
    assert small.trainable is False
    assert flags(small) == flags(model)
    assert small.trainable_weights == []


def test_layers_unfrozen_inside_a_frozen_model_are_kept_so():
    model = nested_model()
    model.trainable = False
    model.get_layer("b").trainable = True
    small = prune(model)
    assert small.trainable is False
    assert flags(small) == flags(model)


def test_frozen_sequential_is_kept_frozen():
    model = ZOO["sequential"]()
    model.trainable = False
    small = prune(model)
    assert small.trainable is False
    assert flags(small) == flags(model)


def test_frozen_layer_inside_a_wrapper_is_kept_frozen():
    wrapped = layers.TimeDistributed(layers.Dense(8, name="fc"), name="steps")
    x = keras.Input((5, 4), name="signal")
    model = randomise(keras.Model(x, layers.Dense(2, name="out")(layers.Flatten()(wrapped(x)))))
    wrapped.layer.trainable = False
    small = prune(model)
    assert small.get_layer("steps").layer.units == 4
    assert small.get_layer("steps").layer.trainable is False
    assert len(small.trainable_weights) == len(model.trainable_weights) == 2


def test_single_frozen_variable_is_kept_frozen():
    model = chain(conv(8, "a"), conv(6, "b"))
    model.get_layer("b").bias.trainable = False
    small = prune(model)
    assert [w.path for w in small.trainable_weights] == [w.path for w in model.trainable_weights]
    assert small.get_layer("b").kernel.trainable
    assert not small.get_layer("b").bias.trainable


# Layer configuration.


def test_regularizers_constraints_and_initializers_are_kept():
    model = chain(
        conv(
            8,
            "a",
            kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2),
            bias_regularizer="l2",
            activity_regularizer="l1",
            kernel_constraint=keras.constraints.MaxNorm(3.0),
            kernel_initializer=keras.initializers.HeNormal(seed=7),
        )
    )
    small, before = prune(model), model.get_layer("a").get_config()
    after = small.get_layer("a").get_config()
    assert (before.pop("filters"), after.pop("filters")) == (8, 4)
    assert after == before
    x = random_inputs(model)
    model(x), small(x)
    assert len(small.losses) == len(model.losses) == 3


@pytest.mark.parametrize("where", ["bias_initializer", "kernel_initializer"])
def test_array_valued_constant_initializer_is_no_obstacle(where):
    shape = {"bias_initializer": (8,), "kernel_initializer": (3, 3, 3, 8)}[where]
    value = np.random.default_rng(0).normal(size=shape).astype("float32")
    model = chain(conv(8, "a", **{where: keras.initializers.Constant(value)}), conv(6, "b"))
    small = prune(model)
    assert small.get_layer("a").filters == 4
    assert keras.models.model_from_json(small.to_json()).get_layer("a").filters == 4


def test_array_valued_constant_initializer_of_an_unpruned_layer_is_kept():
    value = np.arange(3.0, dtype="float32")
    x = image()
    y = layers.GlobalAveragePooling2D()(conv(8, "a")(x))
    model = keras.Model(x, layers.Dense(3, name="out", bias_initializer=keras.initializers.Constant(value))(y))
    small = prune(model)
    np.testing.assert_array_equal(small.get_layer("out").bias, value)


def test_weights_that_are_given_are_not_drawn_before():
    drawn = []

    class Ones(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            drawn.append(shape)
            return keras.ops.ones(shape, dtype)

    model = chain(conv(8, "a", kernel_initializer=Ones()))
    before = len(drawn)
    small = prune(model).get_layer("a")
    assert len(drawn) == before
    assert np.all(small.kernel != 0)
    assert isinstance(small.kernel_initializer, Ones)


def test_python_lambda_is_rebuilt_without_switching_safe_mode_off():
    small = prune(model := ZOO["lambda_layer"]())
    assert isinstance(small.get_layer("square"), layers.Lambda)
    config = small.get_layer("square").get_config()
    with pytest.raises(ValueError, match="lambda"):
        layers.Lambda.from_config(config)
    # It treats every number alike, which is found by trying.
    assert reason(model, "conv2") == ""
    assert small.get_layer("conv2").filters < model.get_layer("conv2").filters


def test_normalization_adapted_on_data_is_kept():
    data = np.random.default_rng(0).normal(3.0, 2.0, (64, 6, 6, 3)).astype("float32")
    normalize = layers.Normalization(name="normalize")
    normalize.adapt(data)
    x = image()
    model = keras.Model(x, head(conv(6, "b")(conv(8, "a")(normalize(x)))))
    small = prune(model)
    np.testing.assert_array_equal(small.get_layer("normalize").mean, normalize.mean)
    values = small.get_layer("normalize")(data)
    assert abs(float(ops.mean(values))) < 1e-3
    assert abs(float(ops.std(values)) - 1) < 1e-3


def test_normalization_adapted_on_hidden_channels_pins_them():
    normalize = layers.Normalization(name="normalize")
    normalize.adapt(np.random.default_rng(0).normal(size=(9, 6, 6, 8)).astype("float32"))
    x = image()
    model = keras.Model(x, head(conv(6, "b")(normalize(conv(8, "a")(x)))))
    assert "feeds the fixed statistics of layer 'normalize' (Normalization)" in reason(model, "a")
    assert prune(model).get_layer("b").filters == 3


@pytest.mark.parametrize("kind", ["time_distributed", "spectral", "bidirectional"])
def test_wrappers_are_kept_around_resized_layers(kind):
    x = keras.Input((5, 6, 6, 3), name="video") if kind == "time_distributed" else image()
    if kind == "time_distributed":
        wrapped = layers.TimeDistributed(conv(8, "inner", activation="tanh"), name="wrapped")
        y = layers.Flatten()(wrapped(x))
    elif kind == "spectral":
        wrapped = layers.SpectralNormalization(conv(8, "inner"), name="wrapped")
        y = layers.Flatten()(wrapped(x))
    else:
        wrapped = layers.Bidirectional(layers.LSTM(4), name="wrapped")
        y = wrapped(layers.Reshape((36, 8))(conv(8, "inner")(x)))
    model = randomise(keras.Model(x, layers.Dense(2, name="out")(y)))
    small = prune(model)
    twin = small.get_layer("wrapped")
    assert type(twin) is type(wrapped)
    if kind != "bidirectional":
        assert twin.layer.name == "inner"
        assert twin.layer.filters == 4
        assert wrapped.layer.filters == 8
    else:
        assert small.get_layer("inner").filters == 4


def test_shared_layers_stay_shared():
    model = ZOO["siamese"]()
    small = prune(model)
    assert len(small.weights) == len(model.weights)
    assert small.count_params() < model.count_params()
    assert len([c for c in small.get_config()["layers"] if c["name"] == "conv"]) == 1


def test_layer_shared_across_nesting_levels_stays_shared():
    shared = conv(8, "shared")
    inner = keras.Input((6, 6, 8), name="inner_in")
    nest = keras.Model(inner, layers.ReLU(name="act")(shared(inner)), name="nest")
    model = chain(conv(8, "a"), shared, nest, conv(6, "b"))
    small = prune(model)
    assert small.get_layer("shared") is small.get_layer("nest").get_layer("shared")
    assert len(small.weights) == len(model.weights)
    # The second call reads what the first one makes, so both layers' filters are one group.
    assert small.get_layer("a").filters == small.get_layer("shared").filters == 4
    assert small.get_layer("b").filters == 3


# Inputs, outputs and the kind of model.


def test_optional_input_stays_optional():
    @keras.saving.register_keras_serializable(package=PACKAGE)
    class AddIfGiven(layers.Layer):
        def call(self, x, y=None):
            return x if y is None else x + y

        def compute_output_shape(self, x_shape, y_shape=None):
            return x_shape

    x, extra = image(), keras.Input((6, 6, 3), name="extra", optional=True)
    model = keras.Model([x, extra], head(conv(6, "b")(conv(8, "a")(AddIfGiven()(x, extra)))))
    small = prune(model)
    assert small.get_layer("extra").optional
    a = np.ones((2, 6, 6, 3), "float32")
    assert small([a, None]).shape == (2, 3)
    assert small.get_layer("a").filters == 4


def test_optional_input_without_a_name_stays_optional():
    x, extra = keras.Input((4,)), keras.Input((8,), optional=True)
    y = layers.Dense(8, name="a")(x)
    model = keras.Model([x, extra], layers.Dense(2, name="out")(layers.Dense(6, name="b")(y)))
    inputs = [op for op in prune(model).operations if isinstance(op, layers.InputLayer)]
    assert [op.optional for op in inputs] == [False, True]


def test_optional_input_of_a_sequential_stays_optional():
    model = keras.Sequential([keras.Input((4,), optional=True), layers.Dense(8, name="a"), layers.Dense(2)])
    small = prune(model)
    assert keras.Model(model.inputs, model.outputs).operations[0].optional
    assert keras.Model(small.inputs, small.outputs).operations[0].optional


def test_sparse_input_stays_sparse():
    x = keras.Input((9,), name="bag", sparse=True)
    model = keras.Model(x, layers.Dense(2, name="out")(layers.Dense(8, name="a")(x)))
    small = prune(model)
    assert small.inputs[0].sparse
    assert small.get_layer("a").units == 4


def test_structure_and_dtype_of_inputs_and_outputs_are_kept():
    p, q = keras.Input((6, 6, 3), name="p"), keras.Input((4,), name="q", dtype="float64")
    y = head(conv(6, "b")(conv(8, "a")(p)))
    z = layers.Dense(2, name="z")(layers.Dense(6, name="c")(q))
    model = keras.Model({"q": q, "p": p}, {"y": y, "both": (z, y)})
    small = prune(model)
    x = random_inputs(model)
    old, new = model(x), small(x)
    keras.tree.assert_same_structure(old, new)
    assert list(small.input) == list(model.input)
    assert [t.dtype for t in small.inputs] == [t.dtype for t in model.inputs]
    assert small.output_names == model.output_names
    assert new["y"].shape == (2, 3)


def test_fixed_batch_size_is_kept():
    x = keras.Input(batch_shape=(4, 6, 6, 3))
    small = prune(keras.Model(x, head(conv(6, "b")(conv(8, "a")(x)))))
    assert small.inputs[0].shape == (4, 6, 6, 3)


def test_sequential_stays_sequential_nested_ones_too():
    assert type(prune(ZOO["sequential"]())) is keras.Sequential
    nested = prune(ZOO["nested_sequential"]())
    assert type(nested.get_layer("middle")) is keras.Sequential
    assert type(nested.get_layer("middle").get_layer("inner")) is keras.Sequential


@pytest.mark.parametrize("compiled", [False, True])
def test_functional_subclass_comes_back_as_a_plain_functional_model(compiled):
    class Mine(keras.Model):
        pass

    x = image()
    model = Mine(x, head(conv(6, "b")(conv(8, "a")(x))), name="mine")
    if compiled:
        model.compile("sgd", "mse")
    small = prune(model)
    assert type(small) is type(chain(conv(4, "a")))
    assert small.name == "mine"


# Compilation and training.


def small_and_report(**compile_args):
    model = chain(conv(8, "a"), layers.BatchNormalization(name="bn"), conv(6, "b"))
    model.compile(**compile_args)
    return prune(model, return_report=True)


def fit(model, n_outputs: int = 3):
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
    y = np.random.default_rng(1).normal(size=(8, n_outputs)).astype("float32")
    return model.fit(x, y, batch_size=4, verbose=0).history


def test_compile_configuration_is_kept_and_training_works():
    optimizer = keras.optimizers.SGD(0.05, momentum=0.8, clipnorm=2.0)
    small, report = small_and_report(optimizer=optimizer, loss="mse", metrics=["mae"], loss_weights=2.0)
    assert small.compiled
    assert report.notes == []
    assert small.optimizer is not optimizer
    assert small.optimizer.get_config() == optimizer.get_config()
    assert small.loss == "mse"
    x, y = np.ones((4, 6, 6, 3), "float32"), np.ones((4, 3), "float32")
    found = small.evaluate(x, y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(2 * np.mean((predict(small, x)[0] - y) ** 2), rel=1e-4)
    assert set(found) == {"loss", "mae"}
    assert np.isfinite(fit(small)["loss"]).all()


def test_optimizer_starts_fresh_after_training():
    model = chain(conv(8, "a"), conv(6, "b"))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    fit(model)
    small = prune(model)
    assert int(small.optimizer.iterations) == 0
    assert int(model.optimizer.iterations) == 2
    fit(small)
    assert int(small.optimizer.iterations) == 2


def test_learning_rate_changed_by_hand_is_kept():
    model = chain(conv(8, "a"), conv(6, "b"))
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.optimizer.learning_rate = 1e-4
    assert float(prune(model).optimizer.learning_rate) == pytest.approx(1e-4)


def test_uncompiled_model_stays_uncompiled():
    assert not prune(chain(conv(8, "a"), conv(6, "b"))).compiled


def shifted_error(y_true, y_pred):
    return ops.mean((y_true - y_pred - 1.0) ** 2, axis=-1)


class OwnLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return shifted_error(y_true, y_pred)


class OwnOptimizer(keras.optimizers.SGD):
    pass


# Keras says so when it serializes the lambda, which is the user's choice.
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": shifted_error},
        {"loss": OwnLoss()},
        {"loss": "mse", "metrics": [shifted_error]},
        {"loss": [shifted_error]},
        {"loss": lambda y_true, y_pred: ops.mean(y_true - y_pred)},
        {"loss": "mse", "optimizer": OwnOptimizer(0.1)},
    ],
    ids=["function", "class", "metric", "list", "lambda", "optimizer"],
)
def test_unregistered_objects_of_compile_are_kept_or_noted(arguments):
    small, report = small_and_report(**{"optimizer": "sgd"} | arguments)
    if not small.compiled:
        (note,) = report.notes
        assert "not compiled" in note
        assert "compile()" in note
        small.compile("sgd", "mse")
    else:
        assert report.notes == []
    assert np.isfinite(fit(small)["loss"]).all()


def test_unregistered_loss_function_is_the_very_one():
    small, _ = small_and_report(optimizer="sgd", loss=shifted_error)
    assert small.compiled
    assert small.loss is shifted_error


def test_losses_per_output_are_kept():
    x = image()
    y = layers.GlobalAveragePooling2D()(conv(8, "a")(x))
    model = keras.Model(x, {"u": layers.Dense(2, name="u")(y), "v": layers.Dense(1, name="v")(y)})
    model.compile("sgd", loss={"u": "mse", "v": "mae"}, metrics={"u": ["mae"]}, loss_weights={"u": 1.0, "v": 0.5})
    small = prune(model)
    data = np.ones((4, 6, 6, 3), "float32"), {"u": np.ones((4, 2)), "v": np.zeros((4, 1))}
    assert small.loss == {"u": "mse", "v": "mae"}
    assert set(small.fit(*data, verbose=0).history) == set(model.fit(*data, verbose=0).history)


@pytest.mark.parametrize("name", ["sequential", "nested_functional", "shufflenet_v2", "se_reshape", "frozen_layers"])
def test_one_step_of_training_works_on_the_result(name):
    small = prune(ZOO[name]())
    small.compile("sgd", "mse")
    x = random_inputs(small, batch=4)
    y = np.zeros(predict(small, x)[0].shape, "float32")
    frozen = [np.array(w) for w in small.non_trainable_weights if "moving" not in w.path and "seed" not in w.path]
    assert np.isfinite(small.fit(x, y, verbose=0).history["loss"]).all()
    after = [np.array(w) for w in small.non_trainable_weights if "moving" not in w.path and "seed" not in w.path]
    assert_all_equal(frozen, after)


@pytest.mark.parametrize("name", ["sequential", "residual_projection", "nested_called_twice", "grouped_conv", "unet"])
def test_a_pruned_model_can_be_pruned_again(name):
    model = ZOO[name]()
    sizes = []
    for _ in range(3):
        sizes.append(model.count_params())
        model, report = prune(model, 0.7, return_report=True)
        assert report.verification <= 1e-4
    sizes.append(model.count_params())
    assert sizes == sorted(set(sizes), reverse=True)
