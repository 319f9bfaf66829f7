"""Batch Bridgeout: the perturbation is the paper's, inference is untouched, and it survives fit, save and strip."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from builders import array, assert_all_equal, compiled, labelled_images
from keras import layers
from other_backends import on_every_backend, run_on
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors

KINDS = {
    "conv1d": (lambda: layers.Conv1D(4, 3, name="layer"), (9, 5)),
    "conv2d": (lambda: layers.Conv2D(4, 3, name="layer"), (9, 9, 5)),
    "conv3d": (lambda: layers.Conv3D(4, 2, name="layer"), (4, 4, 4, 5)),
    "grouped": (lambda: layers.Conv2D(4, 3, groups=2, name="layer"), (9, 9, 6)),
    "depthwise1d": (lambda: layers.DepthwiseConv1D(3, name="layer"), (9, 5)),
    "depthwise2d": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="layer"), (9, 9, 5)),
    "separable1d": (lambda: layers.SeparableConv1D(4, 3, name="layer"), (9, 5)),
    "separable2d": (lambda: layers.SeparableConv2D(4, 3, name="layer"), (9, 9, 5)),
    "transposed1d": (lambda: layers.Conv1DTranspose(4, 3, name="layer"), (9, 5)),
    "transposed2d": (lambda: layers.Conv2DTranspose(4, 3, name="layer"), (9, 9, 5)),
    "transposed3d": (lambda: layers.Conv3DTranspose(4, 2, name="layer"), (4, 4, 4, 5)),
    "dense": (lambda: layers.Dense(4, name="layer"), (7,)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def wrapped(kind: str, **settings) -> tuple[kfp.layers.BatchBridgeout, np.ndarray]:
    """A built wrapper and inputs for it."""
    make, shape = KINDS[kind]
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    keras.utils.set_random_seed(1)
    layer = kfp.layers.BatchBridgeout(make(), **{"seed": 5} | settings)
    layer(x)
    return layer, x


def drawn(shape: tuple[int, ...], kernel, **settings) -> np.ndarray:
    """Kernels of a Dense layer as it sees them in one training call."""
    layer = kfp.layers.BatchBridgeout(layers.Dense(shape[1], use_bias=False), **settings)
    layer.build((None, shape[0]))
    layer.layer.kernel.assign(np.broadcast_to(kernel, shape))
    return array(layer(np.eye(shape[0], dtype="float32"), training=True))


def classifier(policy: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="conv1", dtype=policy)(inputs)
    x = layers.ReLU(dtype=policy)(layers.BatchNormalization(name="bn1", dtype=policy)(x))
    shared = layers.Conv2D(6, 3, padding="same", name="shared", dtype=policy)
    x = layers.Add(dtype=policy)([x, shared(shared(x))])
    x = layers.GlobalAveragePooling2D(dtype=policy)(layers.Conv2D(8, 1, name="pointwise", dtype=policy)(x))
    return keras.Model(inputs, layers.Dense(3, name="head", dtype="float32")(x), name="classifier")


# ------------------------------------------------------------------------------------------------- the perturbation


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("norm", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("weight", [0.3, -1.7])
def test_mean_is_the_weight_and_variance_is_its_norm_times_the_odds(rate, norm, weight):
    found = drawn((500, 500), weight, rate=rate, norm=norm, seed=1)
    deviation = math.sqrt(abs(weight) ** norm * rate / (1 - rate))
    # 250 000 draws: the mean is known to 0.2 % of the deviation.
    assert found.mean() == pytest.approx(weight, abs=0.01 * deviation)
    assert found.std() == pytest.approx(deviation, rel=0.02)
    low, high = weight - abs(weight) ** (norm / 2), weight + abs(weight) ** (norm / 2) * rate / (1 - rate)
    assert np.unique(np.round(found, 5)) == pytest.approx(sorted((low, high)), rel=1e-4, abs=1e-5)
    assert np.mean(np.isclose(found, low, rtol=1e-4, atol=1e-5)) == pytest.approx(rate, abs=0.01)


def test_norm_2_drops_positive_weights_and_scales_the_others():
    kernel = np.random.default_rng(4).uniform(0.1, 2, size=(40, 30)).astype("float32")
    found = drawn((40, 30), kernel, rate=0.25, norm=2.0, seed=2)
    share = found / kernel
    assert np.unique(np.round(share, 4)) == pytest.approx([0, 1 / 0.75], abs=1e-4)


def test_rate_0_changes_nothing():
    kernel = np.random.default_rng(5).normal(size=(20, 10)).astype("float32")
    np.testing.assert_array_equal(drawn((20, 10), kernel, rate=0.0), drawn((20, 10), kernel, rate=0.0, norm=0.5))
    np.testing.assert_allclose(drawn((20, 10), kernel, rate=0.0), kernel, rtol=1e-6)


@every_kind
def test_one_mask_for_the_batch_and_another_at_every_call(kind):
    layer, x = wrapped(kind)
    same = np.repeat(x[:1], 5, axis=0)
    first, second = (array(layer(same, training=True)) for _ in range(2))
    np.testing.assert_allclose(first, np.broadcast_to(first[:1], first.shape), atol=1e-5)
    assert np.abs(first - second).max() > 1e-3


@every_kind
def test_inference_is_that_of_the_layer(kind):
    layer, x = wrapped(kind)
    plain = array(layer.layer(x))
    np.testing.assert_array_equal(array(layer(x)), plain)
    np.testing.assert_array_equal(array(layer(x, training=False)), plain)
    assert np.abs(array(layer(x, training=True)) - plain).max() > 1e-3


@every_kind
@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.75, 1.0])
def test_the_weakest_input_slices_of_every_filter_are_perturbed(kind, fraction):
    layer, _ = wrapped(kind, target_fraction=fraction)
    axes = (-1, -2) if kind.startswith("transposed") else (-2, -1)
    for variable in layer.layer.variables:
        if not variable.name.endswith("kernel"):
            continue
        kernel, found = array(variable), array(layer._perturbed(variable, *axes))
        if kind.startswith("transposed"):
            kernel, found = kernel.swapaxes(-1, -2), found.swapaxes(-1, -2)
        touched = (kernel != found).reshape(-1, *kernel.shape[-2:])
        norms = np.sqrt(np.square(kernel).reshape(touched.shape).sum(axis=0))
        inputs, outputs = norms.shape
        weakest = np.argsort(np.argsort(norms, axis=0), axis=0) < math.floor(fraction * inputs)
        assert weakest.sum() == math.floor(fraction * inputs) * outputs
        # Every element of a perturbed slice is.
        np.testing.assert_array_equal(touched.all(axis=0), weakest)
        np.testing.assert_array_equal(touched.any(axis=0), weakest)


@pytest.mark.parametrize("norm", [0.8, 1.5, 2.0])
def test_gradients_are_those_of_finite_differences_with_the_mask_fixed(norm):
    import tensorflow as tf

    plain = layers.Conv2D(4, 3, dtype="float64")
    layer, x = kfp.layers.BatchBridgeout(plain, rate=0.4, norm=norm, target_fraction=0.7, seed=5), labelled_images(3)[0]
    layer.build(x.shape)
    layer.layer.kernel.assign(np.random.default_rng(6).uniform(0.2, 1, size=layer.layer.kernel.shape))
    state = array(layer.generator.state.value)

    def loss() -> tf.Tensor:
        layer.generator.state.assign(state)
        return tf.reduce_sum(tf.square(layer(x, training=True)))

    with tf.GradientTape() as tape:
        value = loss()
    kernel = layer.layer.kernel
    gradient = tape.gradient(value, kernel.value)
    direction = np.random.default_rng(7).normal(size=kernel.shape)
    start, step, ends = array(kernel.value), 1e-5, []
    for sign in (1, -1):
        kernel.assign(start + sign * step * direction)
        ends.append(float(loss()))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float((gradient * direction).numpy().sum()), rel=1e-6)


# ------------------------------------------------------------------------------------------------- in a model


def test_every_convolution_with_a_window_is_wrapped_and_the_original_is_not_touched():
    model, (x, _) = classifier(), labelled_images()
    before, config = model.get_weights(), model.get_config()
    other = kfp.apply_bridgeout(model, rate=0.2, norm=1.2, target_fraction=0.5)
    wrappers = {layer.name for layer in other.layers if isinstance(layer, kfp.layers.BatchBridgeout)}
    assert wrappers == {"conv1_bridgeout", "shared_bridgeout"}
    np.testing.assert_array_equal(array(model(x)), array(other(x)))
    assert np.abs(array(other(x, training=True)) - array(model(x, training=False))).max() > 1e-4
    layer = other.get_layer("conv1_bridgeout")
    assert (float(layer.rate.value), float(layer.norm.value)) == pytest.approx((0.2, 1.2))
    assert layer.target_fraction == 0.5
    assert model.get_config() == config
    assert_all_equal(before, model.get_weights())


def test_layers_are_chosen_by_name():
    other = kfp.apply_bridgeout(classifier(), include=["head", "point*"])
    assert [layer.name for layer in other.layers if isinstance(layer, kfp.layers.BatchBridgeout)] == [
        "pointwise_bridgeout",
        "head_bridgeout",
    ]


ZOO_NAMES = ["conv_bn_relu_chain", "nested_functional", "shared_conv", "depthwise", "separable", "unet", "conv3d"]


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_stripping_gives_the_plain_model_back(name):
    model = ZOO[name]()
    x = random_inputs(model)
    other = kfp.apply_bridgeout(model)
    keras.tree.map_structure(lambda v: v, other(x, training=True))
    plain = kfp.strip_wrappers(other)
    ours, theirs = (keras.tree.flatten(m(x, training=False)) for m in (plain, other))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(array(a), array(b))
    kinds = [type(call.op) for call in kfp.analyze(plain).view.calls]
    assert kinds == [type(call.op) for call in kfp.analyze(model).view.calls]
    assert kfp.layers.BatchBridgeout in [type(call.op) for call in kfp.analyze(other).view.calls]
    names = [call.path for call in kfp.analyze(plain).view.calls]
    assert names == [call.path for call in kfp.analyze(model).view.calls]


def test_a_stripped_model_is_pruned_and_saved_without_custom_objects(tmp_path):
    wrapped_model, (x, y) = compiled(kfp.apply_bridgeout(classifier()), run_eagerly=True), labelled_images()
    wrapped_model.fit(x, y, epochs=1, verbose=0)
    plain = kfp.strip_wrappers(wrapped_model)
    assert plain.compiled
    plain.save(tmp_path / "plain.keras")
    assert "keras_filterprune" not in str(plain.get_config())
    np.testing.assert_array_equal(array(keras.models.load_model(tmp_path / "plain.keras")(x)), array(wrapped_model(x)))
    small = kfp.prune_model(plain, "l2", 0.5, progress=False)
    assert small.count_params() < plain.count_params()


def test_a_sequential_model_stays_one():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.Flatten()])
    other = kfp.apply_bridgeout(model)
    assert isinstance(other, keras.Sequential)
    assert isinstance(kfp.strip_wrappers(other), keras.Sequential)


@pytest.mark.parametrize("jit", [False, True])
def test_fit_draws_a_new_mask_at_every_step(jit):
    model = compiled(kfp.apply_bridgeout(classifier()), keras.optimizers.SGD(0.0), jit_compile=jit)
    x, y = labelled_images()
    model.get_layer("bn1").trainable = False
    losses = [model.train_on_batch(x, y) for _ in range(4)]
    assert len({round(float(np.ravel(loss)[0]), 6) for loss in losses}) == 4


def test_training_goes_on_after_loading_as_if_nothing_had_happened(tmp_path):
    (x, y), path = labelled_images(), tmp_path / "half.keras"
    models = [compiled(kfp.apply_bridgeout(classifier(), seed=3), run_eagerly=True) for _ in range(2)]
    models[0].fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    models[1].fit(x, y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    models[1].save(path)
    again = keras.models.load_model(path)
    again.fit(x, y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(models[0].get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    other = compiled(kfp.apply_bridgeout(classifier(), seed=4), run_eagerly=True)
    other.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert np.abs(other.get_layer("head").kernel - models[0].get_layer("head").kernel).max() > 1e-4


def test_mixed_precision_perturbs_in_float32():
    model, (x, y) = kfp.apply_bridgeout(classifier("mixed_float16"), rate=0.5), labelled_images()
    layer = model.get_layer("conv1_bridgeout")
    # In float16 this weight is 0, and the gradient of its root infinite.
    layer.layer.kernel.assign(np.full(layer.layer.kernel.shape, 1e-9, "float32"))
    values = array(layer._perturbed(layer.layer.kernel, 2, 3))
    assert values.dtype == np.float32
    expected = [1e7 * (1e-9 - 1e-9**0.75), 1e7 * (1e-9 + 1e-9**0.75)]
    assert np.unique(np.round(1e7 * values, 3)).tolist() == pytest.approx(expected, rel=0.05)
    assert keras.backend.standardize_dtype(layer(x, training=True).dtype) == "float16"
    assert keras.backend.standardize_dtype(layer.output.dtype) == "float16"
    compiled(model).fit(x, y, epochs=2, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_schedule_sets_rate_and_norm_of_every_wrapper():
    model, (x, y) = compiled(kfp.apply_bridgeout(classifier(), rate=0.0), run_eagerly=True), labelled_images()
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            [(round(float(w.rate.value), 3), round(float(w.norm.value), 3)) for w in model.layers if hasattr(w, "norm")]
        )
    )
    schedule = kfp.callbacks.BridgeoutSchedule(rate=lambda epoch: 0.1 * epoch, norm=lambda epoch: 2 - 0.5 * epoch)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[schedule, watch])
    assert seen == [[(0.0, 2.0)] * 2, [(0.1, 1.5)] * 2, [(0.2, 1.0)] * 2]


def test_a_configuration_is_left_as_it_is():
    layer, x = wrapped("conv2d", rate=0.2, norm=1.1, target_fraction=0.6)
    config = layer.get_config()
    copy = kfp.layers.BatchBridgeout.from_config(config)
    assert config == layer.get_config()
    copy(x)
    assert copy.get_config() == config


# ------------------------------------------------------------------------------------------------- penalty


@pytest.mark.parametrize("q", [0.5, 1.0, 1.5, 2.0])
def test_the_penalty_is_the_norm_and_its_gradient_is_finite(q):
    import tensorflow as tf

    penalty, kernel = kfp.regularizers.BridgePenalty(q, 0.01), np.random.default_rng(8).normal(size=(3, 3, 2, 4))
    kernel[0, 0] = 0
    x = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        value = penalty(x)
    assert float(value) == pytest.approx(0.01 * (np.abs(kernel) ** q).sum(), rel=1e-4)
    assert np.isfinite(tape.gradient(value, x)).all()
    assert kfp.regularizers.BridgePenalty.from_config(penalty.get_config()).get_config() == {"q": q, "strength": 0.01}


@pytest.mark.parametrize("axis", [-1, -2, 0])
def test_the_group_lasso_sums_the_norms_of_filters_and_keeps_zeros(axis):
    import tensorflow as tf

    penalty, kernel = kfp.regularizers.GroupLasso(0.1, axis), np.random.default_rng(9).normal(size=(3, 2, 4, 5))
    np.moveaxis(kernel, axis, 0)[1] = 0
    x = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        value = penalty(x)
    rows = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    assert float(value) == pytest.approx(0.1 * math.sqrt(rows.shape[1]) * np.linalg.norm(rows, axis=1).sum(), rel=1e-4)
    gradient = np.moveaxis(tape.gradient(value, x).numpy(), axis, 0)
    assert np.abs(gradient[1]).max() == 0
    assert np.abs(gradient[0]).max() > 0
    assert kfp.regularizers.GroupLasso.from_config(penalty.get_config()).get_config() == {"strength": 0.1, "axis": axis}
    with pytest.raises(errors.InvalidValueError, match=r"axis is .* Received: axis='last'"):
        kfp.regularizers.GroupLasso(axis="last")


def test_the_penalty_is_saved_with_the_model(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2, kernel_regularizer=kfp.regularizers.BridgePenalty(1.2, 0.5))(x))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert float(again.losses[0]) == pytest.approx(0.5 * (np.abs(array(model.layers[1].kernel)) ** 1.2).sum(), rel=1e-5)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, True, "0.3", None, float("nan")])
def test_rates_that_are_none(rate):
    with pytest.raises(
        errors.InvalidValueError, match=r"rate is the probability that a weight is dropped, in \[0, 1\)"
    ):
        kfp.layers.BatchBridgeout(layers.Dense(2), rate=rate)


@pytest.mark.parametrize("norm", [0, -1, True, "2", float("inf"), float("nan")])
def test_norms_that_are_none(norm):
    with pytest.raises(errors.InvalidValueError, match=r"norm is the q of the L_q penalty, above 0\. Received"):
        kfp.layers.BatchBridgeout(layers.Dense(2), norm=norm)
    with pytest.raises(errors.InvalidValueError, match="above 0"):
        kfp.regularizers.BridgePenalty(norm)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, True, None])
def test_fractions_that_are_none(fraction):
    with pytest.raises(errors.InvalidValueError, match=r"target_fraction is .*, in \[0, 1\]"):
        kfp.layers.BatchBridgeout(layers.Dense(2), target_fraction=fraction)


@pytest.mark.parametrize("strength", [-1, True, None, float("nan")])
def test_strengths_that_are_none(strength):
    with pytest.raises(errors.InvalidValueError, match="strength is a number, at least 0"):
        kfp.regularizers.BridgePenalty(1.5, strength)
    with pytest.raises(errors.InvalidValueError, match="strength is a number, at least 0"):
        kfp.regularizers.GroupLasso(strength)


@pytest.mark.parametrize("make", [layers.ReLU, layers.BatchNormalization, lambda: layers.LSTM(3), lambda: 3])
def test_layers_without_a_kernel(make):
    with pytest.raises(errors.UnsupportedLayerError, match="which has no kernel to perturb"):
        kfp.layers.BatchBridgeout(make())


def test_wrapping_twice():
    with pytest.raises(
        errors.UnsupportedLayerError, match=r"Received: 'd_bridgeout' \(BatchBridgeout\), which is wrapped"
    ):
        kfp.layers.BatchBridgeout(kfp.layers.BatchBridgeout(layers.Dense(2, name="d")))
    other = kfp.apply_bridgeout(classifier())
    with pytest.raises(errors.UnsupportedLayerError, match="which is wrapped already"):
        kfp.apply_bridgeout(other, include="conv1*")
    with pytest.raises(errors.UnsupportedModelError, match="has no layer that matches a convolution with a window"):
        kfp.apply_bridgeout(other)


def test_schedules_that_do_not_fit():
    with pytest.raises(errors.InvalidValueError, match="expects rate=, norm= or both"):
        kfp.callbacks.BridgeoutSchedule()
    x, y = labelled_images()
    with pytest.raises(errors.UnsupportedModelError, match="found no BatchBridgeout layer in model 'classifier'"):
        compiled(classifier()).fit(x, y, verbose=0, callbacks=[kfp.callbacks.BridgeoutSchedule(rate=lambda epoch: 0.1)])
    with pytest.raises(errors.InvalidValueError, match=r"Received: rate=1\.5"):
        compiled(kfp.apply_bridgeout(classifier())).fit(
            x, y, verbose=0, callbacks=[kfp.callbacks.BridgeoutSchedule(rate=lambda epoch: 1.5)]
        )


# ------------------------------------------------------------------------------------------------- other backends

ELSEWHERE = """
import keras, numpy as np, keras_filterprune as kfp
inputs = keras.Input((8, 8, 3))
x = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3, name="conv")(inputs))
model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
other = kfp.apply_bridgeout(model, rate=0.0)
data = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
other.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
schedule = kfp.callbacks.BridgeoutSchedule(rate=lambda epoch: 0.2 * epoch)
other.fit(data, np.arange(16) % 3, epochs=2, verbose=0, callbacks=[schedule])
wrapper = other.get_layer("conv_bridgeout")
assert abs(float(wrapper.rate.value) - 0.2) < 1e-6
to_numpy = keras.ops.convert_to_numpy
drawn = [to_numpy(wrapper(data, training=True)) for _ in range(2)]
assert abs(drawn[0] - drawn[1]).max() > 1e-3
other.save(PATH)
for again in (keras.models.load_model(PATH), kfp.strip_wrappers(other)):
    assert (to_numpy(again(data)) == to_numpy(other(data))).all()
"""


@on_every_backend
def test_every_backend_trains_saves_and_strips(backend, tmp_path):
    run_on(backend, ELSEWHERE.replace("PATH", repr(str(tmp_path / "model.keras"))))
