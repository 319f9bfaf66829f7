"""What every compensator promises over many architectures."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from builders import assert_all_equal, images, predict, relative_error, values
from keras import layers
from readers import cut, weight
from zoo import ZOO, random_inputs, randomise

import keras_filterprune as kfp
from keras_filterprune import compensators, criteria
from keras_filterprune.compensators import least_squares
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.gaussian import gaussian_inputs
from keras_filterprune.probe.gradients import output_sensitivity
from keras_filterprune.probe.inputs import calibration_inputs
from keras_filterprune.probe.regression import coefficients, mixed_by_all, refit, regression

MODELS = [
    "conv_bn_relu_chain",
    "residual_projection",
    "preactivation_residual",
    "depthwise",
    "grouped_conv",
    "separable",
    "decoder",
    "unet",
    "shared_conv",
    "nested_functional",
    "conv1d_residual",
    "conv3d",
    "dense_mlp",
    "mixed_precision",
]


NAMES = ["least_squares", "bn", "mean_shift", "linear"]


@functools.cache
def subject(name: str):
    """(model, plan, calibration data, other data, error of the pruned model that nothing makes up for)."""
    model = ZOO[name]()
    # Dense layers have one row per sample: as many as columns and more.
    x, fresh = random_inputs(model, {"conv3d": 320, "separable": 320}.get(name, 48), 1), random_inputs(model, 96, 2)
    plan = kfp.plan_pruning(model, "l2", 0.6, progress=False)
    plain = kfp.apply_plan(model, plan, compensate="none", verify=False, progress=False)
    return model, plan, x, fresh, relative_error(model, plain, fresh)


@pytest.mark.parametrize("compensate", NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_contract(name, compensate):
    """Finite, deterministic, and the original stays as it was; least squares and mean shift bring outputs nearer.

    Nearer: the squared error falls to 0.75 of what it is without them at most; 0.65 is the most that is seen. The mean
    shift does not make up for what the dense layers of `dense_mlp` lose.
    """
    model, plan, x, fresh, plain = subject(name)
    before, said = values(model), predict(model, fresh)
    small = kfp.prune_model(model, "l2", 0.6, data=x, compensate=compensate, verify=False, progress=False)
    again = kfp.apply_plan(model, plan, data=x, compensate=compensate, verify=False, progress=False)
    assert_all_equal(before, values(model))
    assert_all_equal(said, predict(model, fresh))
    for one, two in zip(values(small), values(again), strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.isfinite(one.astype(float)).all()
    assert all(np.isfinite(y).all() for y in predict(small, fresh))
    if compensate == "least_squares" or (compensate == "mean_shift" and name != "dense_mlp"):
        assert relative_error(model, small, fresh) < 0.75 * plain


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "linear"])
def test_nothing_changes_where_nothing_was_removed(compensate):
    model, _, x, *_ = subject("residual_projection")
    same = kfp.prune_model(model, "l2", kfp.FiltersBudget(1.0), data=x, compensate=compensate, progress=False)
    assert_all_equal(values(model), values(same))


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "linear"])
@pytest.mark.parametrize("side", [6, 8])
def test_a_normalization_over_another_axis_takes_no_constant(compensate, side):
    """Its moving mean belongs to rows, as many as the convolution has filters or not."""
    inputs = keras.Input((side, side, 3))
    y = layers.ReLU()(layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv1")(inputs))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv2")(y)
    y = layers.BatchNormalization(axis=1, name="rows")(y)
    model = randomise(keras.Model(inputs, layers.Conv2D(2, 1, name="last")(y)))
    small = cut(model, compensate, images(shape=(side, side, 3)), conv1=[0, 2, 4])
    np.testing.assert_array_equal(weight(small, "rows", "moving_mean"), weight(model, "rows", "moving_mean"))


# -------------------------------------------------------------------------------------------------- linear, no data


def planted(consistent: bool = True, behind=None, bias: bool = False, width: int = 8) -> keras.Model:
    """conv1, whose last filters are combinations of the first five -> bn1 -> what reads it."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(width, 3, use_bias=bias, name="conv1")(inputs)
    y = layers.BatchNormalization(name="bn1")(y)
    model = randomise(keras.Model(inputs, behind(y)), seed=4)
    mix = np.random.default_rng(1).normal(size=(5, width - 5))
    kernel, mean = weight(model, "conv1", "kernel").copy(), weight(model, "bn1", "moving_mean").copy()
    offset = weight(model, "conv1", "bias") if bias else np.zeros(width)
    kernel[..., 5:] = kernel[..., :5] @ mix
    if consistent:
        # What training leaves behind: mean and filters depend alike.
        mean[5:] = offset[5:] + (mean[:5] - offset[:5]) @ mix
    give(model.get_layer("conv1"), kernel=kernel)
    give(model.get_layer("bn1"), moving_mean=mean)
    return model


def one_convolution(y):
    return layers.Conv2D(4, 3, name="next")(y)


def normalized(y):
    return layers.BatchNormalization(name="after")(layers.Conv2D(4, 3, use_bias=False, name="next")(y))


def flattened(y):
    return layers.Dense(4, name="next")(layers.Flatten()(y))


def pooled_and_flattened(y):
    return layers.Dense(4, name="next")(layers.Flatten()(layers.AveragePooling2D(2)(y)))


def several(y):
    a = layers.Conv2D(4, 3, name="next")(y)
    b = layers.BatchNormalization(name="after")(layers.Conv2D(5, 3, strides=2, use_bias=False, name="strided")(y))
    return [a, b, layers.Dense(3, name="dense")(layers.GlobalAveragePooling2D()(y))]


def upsampled(y):
    return layers.Conv2D(4, 3, name="next")(layers.UpSampling2D(2)(y))


def dropped(y):
    return layers.Conv2D(4, 3, dilation_rate=2, name="next")(layers.Dropout(0.3)(y))


CONSUMERS = [one_convolution, normalized, flattened, pooled_and_flattened, several, upsampled, dropped]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("behind", CONSUMERS, ids=lambda f: f.__name__)
def test_linear_is_exact_where_only_normalization_lies_between(behind, bias):
    model, x = planted(behind=behind, bias=bias), images()
    small, plain = (cut(model, how, conv1=[0, 1, 2, 3, 4]) for how in ("linear", "none"))
    for wanted, received, without in zip(*(predict(m, x) for m in (model, small, plain)), strict=True):
        assert received == pytest.approx(wanted, abs=1e-4)
        assert np.abs(without - wanted).max() > 0.1


def test_linear_puts_the_constant_into_the_bias_or_the_moving_mean():
    model = planted(behind=several)
    small = cut(model, "linear", conv1=[0, 1, 2, 3, 4])
    assert np.abs(weight(small, "next", "bias") - weight(model, "next", "bias")).min() > 1e-3
    assert np.abs(weight(small, "after", "moving_mean") - weight(model, "after", "moving_mean")).min() > 1e-3
    for name in ("gamma", "beta", "moving_variance"):
        np.testing.assert_array_equal(weight(small, "after", name), weight(model, "after", name))


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.2])
def test_linear_merges_scaled_duplicates_behind_a_relu(factor):
    """Batch normalization undoes the factor, so that both channels are one."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, use_bias=False, name="conv1")(inputs)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(epsilon=1e-7, name="bn1")(y))
    model = randomise(keras.Model(inputs, layers.Conv2D(4, 3, name="next")(y)))
    scales = {"kernel": factor, "moving_mean": factor, "moving_variance": factor**2, "gamma": 1.0, "beta": 1.0}
    for name, scale in scales.items():
        layer = model.get_layer("conv1" if name == "kernel" else "bn1")
        array = weight(model, layer.name, name).copy()
        array[..., 5] = scale * array[..., 1]
        give(layer, **{name: array})
    x = images()
    hidden = output(model, x, "relu")
    assert hidden[..., 5] == pytest.approx(hidden[..., 1], abs=1e-4)
    small = cut(model, "linear", conv1=[0, 1, 2, 3, 4, 6, 7])
    assert output(small, x) == pytest.approx(output(model, x), abs=1e-3)


def test_linear_of_dense_layers():
    inputs = keras.Input((6,))
    y = layers.BatchNormalization(name="bn1")(layers.Dense(8, name="fc1")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="fc2")(y)))
    mix = np.random.default_rng(2).normal(size=(5, 3))
    kernel, mean = weight(model, "fc1", "kernel").copy(), weight(model, "bn1", "moving_mean").copy()
    bias = weight(model, "fc1", "bias")
    kernel[:, 5:] = kernel[:, :5] @ mix
    mean[5:] = bias[5:] + (mean[:5] - bias[:5]) @ mix
    give(model.get_layer("fc1"), kernel=kernel)
    give(model.get_layer("bn1"), moving_mean=mean)
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    assert output(cut(model, "linear", fc1=[0, 1, 2, 3, 4]), x) == pytest.approx(output(model, x), abs=1e-4)


@pytest.mark.parametrize("strides", [1, 2])
def test_linear_of_a_transposed_consumer(strides):
    """Without a constant, which overlapping windows would not add up to the same everywhere."""
    inputs = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 3, use_bias=False, name="conv1")(inputs)
    model = randomise(keras.Model(inputs, layers.Conv2DTranspose(4, 3, strides=strides, name="next")(y)))
    kernel = weight(model, "conv1", "kernel").copy()
    kernel[..., 5:] = kernel[..., :5] @ np.random.default_rng(3).normal(size=(5, 3))
    give(model.get_layer("conv1"), kernel=kernel)
    x = images(shape=(6, 6, 3))
    small, plain = (cut(model, how, conv1=[0, 1, 2, 3, 4]) for how in ("linear", "none"))
    assert output(small, x) == pytest.approx(output(model, x), abs=1e-4)
    assert np.abs(output(plain, x) - output(model, x)).max() > 0.1


@pytest.mark.parametrize(("window", "strides"), [(2, 2), (4, 2), (3, 1)])
def test_linear_adds_a_constant_to_a_transposed_consumer_where_windows_overlap_as_often(window, strides):
    """Channel 2 is the constant beta; away from the borders every output lies in (window / strides)^2 windows."""
    inputs = keras.Input((8, 8, 3))
    y = layers.BatchNormalization(name="bn1")(layers.Conv2D(6, 3, use_bias=False, name="conv1")(inputs))
    model = randomise(keras.Model(inputs, layers.Conv2DTranspose(4, window, strides=strides, name="next")(y)))
    gamma = weight(model, "bn1", "gamma").copy()
    gamma[2] = 0
    give(model.get_layer("bn1"), gamma=gamma)
    x, inside = images(), slice(window, -window)
    wanted, received, without = (
        output(m, x)[:, inside, inside].mean(axis=(0, 1, 2))
        for m in (model, *(cut(model, how, conv1=[0, 1, 3, 4, 5]) for how in ("linear", "none")))
    )
    assert received == pytest.approx(wanted, abs=1e-4)
    assert np.abs(without - wanted).max() > 0.01


def test_linear_of_a_grouped_consumer_adds_the_mean_of_what_is_gone():
    """Channels 1 and 5, one per group, are the constants beta: the bias makes up for them, and the kernels stay."""
    inputs = keras.Input((8, 8, 3))
    y = layers.BatchNormalization(name="bn1")(layers.Conv2D(8, 3, use_bias=False, name="conv1")(inputs))
    model = randomise(keras.Model(inputs, layers.Conv2D(6, 3, groups=2, name="next")(y)))
    gamma = weight(model, "bn1", "gamma").copy()
    gamma[[1, 5]] = 0
    give(model.get_layer("bn1"), gamma=gamma)
    x = images()
    small = cut(model, "linear", conv1=[0, 2, 3])
    assert output(small, x) == pytest.approx(output(model, x), abs=1e-4)
    np.testing.assert_array_equal(weight(small, "next", "kernel"), weight(model, "next", "kernel")[:, :, [0, 2, 3]])


@pytest.mark.parametrize("spelled_out", [True, False])
def test_linear_of_a_separable_consumer_sees_its_depthwise_kernel(spelled_out):
    """Equal channels under opposite depthwise kernels are opposite: what one loses the other makes up for with -1."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, use_bias=False, name="conv1")(inputs)
    if spelled_out:
        y = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(y)
        y = layers.Conv2D(4, 1, name="next")(y)
    else:
        y = layers.SeparableConv2D(4, 3, name="next")(y)
    model = randomise(keras.Model(inputs, y))
    reader = model.get_layer("depthwise" if spelled_out else "next")
    spread = reader.kernel if spelled_out else reader.depthwise_kernel
    kernel, taps = weight(model, "conv1", "kernel").copy(), keras.ops.convert_to_numpy(spread.value).copy()
    kernel[..., 5], taps[:, :, 5] = kernel[..., 2], -taps[:, :, 2]
    give(model.get_layer("conv1"), kernel=kernel)
    spread.assign(taps)
    x = images()
    small = cut(model, "linear", conv1=[0, 1, 2, 3, 4])
    assert output(small, x) == pytest.approx(output(model, x), abs=1e-4)


def channels_of(model: keras.Model, layer: str):
    """What the weights alone say about the input of a layer: a mean and a covariance per channel."""
    return gaussian_inputs(kfp.analyze(model), {layer})[layer]


def test_a_convolution_of_white_noise_behind_a_relu_has_the_moments_of_a_rectified_gaussian():
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(7, 3, activation="relu", name="conv1")(inputs)
    model = randomise(keras.Model(inputs, layers.Conv2D(2, 1, name="next")(y)))
    kernel, bias = weight(model, "conv1", "kernel"), weight(model, "conv1", "bias")
    x = np.random.default_rng(0).normal(size=(200_000, 27)) @ kernel.reshape(27, 7) + bias
    sampled = np.maximum(x, 0)
    found = channels_of(model, "next")
    # Sampling error is 0.3 %, that of the quadrature at the kink a little more.
    assert found.mean == pytest.approx(sampled.mean(axis=0), rel=0.02)
    assert np.diag(found.covariance) == pytest.approx(sampled.var(axis=0), rel=0.03)
    # Between channels: near the truth, of the right sign.
    wanted, off = np.cov(sampled.T), ~np.eye(7, dtype=bool)
    assert np.corrcoef(found.covariance[off], wanted[off])[0, 1] > 0.95


def test_a_linear_layer_carries_the_whole_covariance():
    inputs = keras.Input((5,))
    y = layers.Dense(6, name="fc2")(layers.Dense(4, use_bias=False, name="fc1")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2, name="next")(y)))
    first, second = weight(model, "fc1", "kernel"), weight(model, "fc2", "kernel")
    found = channels_of(model, "next")
    assert found.covariance == pytest.approx((first @ second).T @ (first @ second), abs=1e-5)
    assert found.mean == pytest.approx(weight(model, "fc2", "bias"), abs=1e-6)


def test_batch_normalization_sets_mean_and_size():
    model = planted(behind=one_convolution, bias=True)
    found = channels_of(model, "next")
    assert found.mean == pytest.approx(weight(model, "bn1", "beta"), abs=1e-6)
    assert np.diag(found.covariance).mean() == pytest.approx(np.mean(weight(model, "bn1", "gamma") ** 2))


@pytest.mark.parametrize("join", [layers.Add, layers.Subtract, layers.Multiply], ids=lambda c: c.__name__)
def test_sums_and_products_of_independent_channels(join):
    inputs = keras.Input((6,))
    a, b = layers.Dense(4, name="a")(inputs[:, :3]), layers.Dense(4, name="b")(inputs[:, 3:])
    model = randomise(keras.Model(inputs, layers.Dense(2, name="next")(join()([a, b]))))
    x = np.random.default_rng(0).normal(size=(200_000, 6))
    parts = zip("ab", (x[:, :3], x[:, 3:]), strict=True)
    sides = [part @ weight(model, name, "kernel") + weight(model, name, "bias") for name, part in parts]
    together = {"Add": np.add, "Subtract": np.subtract, "Multiply": np.multiply}[join.__name__](*sides)
    found = channels_of(model, "next")
    assert found.mean == pytest.approx(together.mean(axis=0), abs=0.02)
    assert found.covariance == pytest.approx(np.cov(together.T), abs=0.06)


# ---------------------------------------------------------------------------------------------------- mean shift


def branching(reader) -> keras.Model:
    """conv1 -> relu -> conv2 -> relu -> a layer that does not mix all channels -> output."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
    y = layers.ReLU()(layers.BatchNormalization(name="bn2")(layers.Conv2D(8, 3, use_bias=False, name="conv2")(y)))
    return randomise(keras.Model(inputs, layers.Conv2D(3, 1, name="last")(reader(y))))


READERS = {
    "depthwise": lambda: layers.DepthwiseConv2D(3, name="reader"),
    "depthwise x2": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="reader"),
    "grouped": lambda: layers.Conv2D(8, 3, groups=2, name="reader"),
    "separable": lambda: layers.SeparableConv2D(5, 3, name="reader"),
    "transposed": lambda: layers.Conv2DTranspose(5, 3, strides=2, name="reader"),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_channel_of_a_layer_is_shifted_to_the_originals_mean(reader):
    model, x = branching(READERS[reader]()), images()
    small = cut(model, "mean_shift", x, conv1=[0, 2, 5, 6])
    for layer in ("bn2", "reader", "last"):
        wanted, received = (output(m, x, layer).mean(axis=(0, 1, 2)) for m in (model, small))
        assert received == pytest.approx(wanted, abs=1e-4)
    for layer in ("conv2", "reader", "last"):
        for new in small.get_layer(layer).weights:
            if "kernel" in new.name:
                old = weight(model, layer, new.name)
                old = old[:, :, [0, 2, 5, 6]] if layer == "conv2" else old
                np.testing.assert_array_equal(keras.ops.convert_to_numpy(new.value), old)


@pytest.mark.parametrize("reader", ["depthwise", "depthwise x2", "grouped", "transposed"])
def test_least_squares_shifts_the_mean_of_layers_that_it_cannot_refit(reader):
    model, x = branching(READERS[reader]()), images()
    small = cut(model, "least_squares", x, conv1=[0, 2, 5, 6])
    wanted, received = (output(m, x, "reader").mean(axis=(0, 1, 2)) for m in (model, small))
    assert received == pytest.approx(wanted, abs=1e-4)
    if reader != "transposed":
        np.testing.assert_array_equal(weight(small, "reader", "kernel"), weight(model, "reader", "kernel"))


@pytest.mark.parametrize("behind", [one_convolution, normalized, flattened], ids=lambda f: f.__name__)
def test_mean_shift_makes_up_for_a_constant_channel(behind):
    inputs = keras.Input((8, 8, 3))
    model = randomise(keras.Model(inputs, behind(layers.Conv2D(6, 3, activation="relu", name="conv1")(inputs))))
    kernel, bias = weight(model, "conv1", "kernel").copy(), weight(model, "conv1", "bias").copy()
    kernel[..., 2], bias[2] = 0, 1.5
    give(model.get_layer("conv1"), kernel=kernel, bias=bias)
    x, fresh, kept = images(), images(seed=1), [0, 1, 3, 4, 5]
    assert output(cut(model, "mean_shift", x, conv1=kept), fresh) == pytest.approx(output(model, fresh), abs=1e-4)
    assert np.abs(output(cut(model, "none", conv1=kept), fresh) - output(model, fresh)).max() > 0.1


def test_a_layer_with_room_for_no_constant_keeps_its_weights():
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, activation="relu", name="conv1")(inputs)
    y = layers.Conv2D(5, 3, use_bias=False, activation="relu", name="next")(y)
    model = randomise(keras.Model(inputs, layers.BatchNormalization(name="bn")(y)))
    small, plain = cut(model, "mean_shift", images(), conv1=[0, 1, 2]), cut(model, "none", conv1=[0, 1, 2])
    assert_all_equal(values(small), values(plain))


# ------------------------------------------------------------------------------------------------- least squares


def duplicated(behind) -> keras.Model:
    """conv1, whose channel 6 is channel 2 again -> relu -> what reads it."""
    inputs = keras.Input((8, 8, 3))
    model = randomise(keras.Model(inputs, behind(layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs))))
    arrays = {name: weight(model, "conv1", name).copy() for name in ("kernel", "bias")}
    for array in arrays.values():
        array[..., 6] = array[..., 2]
    give(model.get_layer("conv1"), **arrays)
    return model


TRANSPOSED = {
    "valid": lambda y: layers.Conv2DTranspose(4, 3, name="next")(y),
    "strided": lambda y: layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="next")(y),
    "no bias": lambda y: layers.Conv2DTranspose(4, 2, strides=2, use_bias=False, name="next")(y),
    "normalized": lambda y: normalized_after(layers.Conv2DTranspose(4, 4, strides=2, use_bias=False, name="next")(y)),
}


def normalized_after(y):
    return layers.BatchNormalization(name="after")(y)


@pytest.mark.parametrize("behind", TRANSPOSED)
def test_a_duplicate_before_a_transposed_convolution_leaves_no_trace(behind):
    model, x = duplicated(TRANSPOSED[behind]), images()
    small, plain = (cut(model, how, x, conv1=[0, 1, 2, 3, 4, 5, 7]) for how in (EXACT, "none"))
    fresh = images(seed=1)
    assert output(small, fresh) == pytest.approx(output(model, fresh), abs=1e-3)
    assert np.abs(output(plain, fresh) - output(model, fresh)).max() > 0.05


def test_a_layer_of_too_many_columns_is_refitted_by_channels(monkeypatch):
    """54 columns and more: the regression of the removed channels on the kept ones, the same for every tap."""
    monkeypatch.setattr(least_squares, "LARGEST", 20)
    x, fresh = images(), images(seed=1)
    model = duplicated(one_convolution)
    small, report = kfp.apply_plan(
        model,
        keeping(model, conv1=[0, 1, 2, 3, 4, 5, 7]),
        data=x,
        compensate=EXACT,
        return_report=True,
        progress=False,
    )
    assert report.compensation.startswith("1 layers refitted")
    assert output(small, fresh) == pytest.approx(output(model, fresh), abs=1e-3)
    kept = [0, 1, 3, 4]
    wide, plain = (cut(model, how, x, conv1=kept) for how in (compensators.LeastSquares(), "none"))
    # 0.38 is seen.
    assert error(model, wide, fresh) < 0.6 * error(model, plain, fresh)
    monkeypatch.undo()
    assert error(model, cut(model, compensators.LeastSquares(), x, conv1=kept), fresh) < error(model, wide, fresh)


def test_a_layer_of_too_many_channels_is_shifted(monkeypatch):
    monkeypatch.setattr(least_squares, "LARGEST", 7)
    model, x = duplicated(one_convolution), images()
    small, report = kfp.apply_plan(
        model, keeping(model, conv1=[0, 1, 3, 4]), data=x, compensate=EXACT, return_report=True, progress=False
    )
    assert report.compensation.startswith("0 layers refitted by least squares, the mean of 1 shifted on 64 samples")
    np.testing.assert_array_equal(weight(small, "next", "kernel"), weight(model, "next", "kernel")[:, :, [0, 1, 3, 4]])
    shifted = cut(model, "mean_shift", x, conv1=[0, 1, 3, 4])
    assert weight(small, "next", "bias") == pytest.approx(weight(shifted, "next", "bias"), abs=1e-6)


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "linear"])
@pytest.mark.parametrize("case", ["shared", "read by another layer"])
def test_a_normalization_that_is_not_one_layers_alone_is_not_written_to(case, compensate):
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
    bn = layers.BatchNormalization(name="bn")
    a = layers.Conv2D(4, 3, use_bias=False, name="a")(y)
    if case == "shared":
        joined = layers.Add()([bn(a), bn(layers.Conv2D(4, 3, use_bias=False, name="b")(y))])
    else:
        joined = layers.Concatenate()([bn(a), layers.ReLU()(a)])
    model = randomise(keras.Model(inputs, layers.Conv2D(3, 1, name="last")(joined)))
    small = cut(model, compensate, images(), conv1=[0, 2, 4, 6])
    for name in ("moving_mean", "moving_variance", "gamma", "beta"):
        np.testing.assert_array_equal(weight(small, "bn", name), weight(model, "bn", name))


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "linear", "bn"])
def test_a_bias_that_the_moving_mean_takes_off_again_changes_nothing(compensate):
    """Both models compute the same, so they do when pruned; a ReLU follows, and what it cuts off is not fitted."""
    found, x, fresh = [], images(), images(seed=1)
    for shift in (0.0, 3.0):
        inputs = keras.Input((8, 8, 3))
        y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
        y = layers.ReLU()(layers.BatchNormalization(name="bn2")(layers.Conv2D(6, 3, name="conv2")(y)))
        model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(y))))
        for variable in (model.get_layer("conv2").bias, model.get_layer("bn2").moving_mean):
            variable.assign_add(np.full(6, shift))
        found += [output(m, fresh) for m in (model, cut(model, compensate, x, conv1=[0, 1, 3, 6]))]
    assert found[0] == pytest.approx(found[2], abs=1e-4)
    assert found[1] == pytest.approx(found[3], abs=1e-3)


def test_targets_of_the_original_and_inputs_of_the_pruned_network_beat_both_of_the_original():
    """Layer by layer on what the layers before really give, errors are corrected that would add up."""
    inputs = keras.Input((10,))
    y = inputs
    for number in (1, 2, 3):
        y = layers.Dense(16, activation="relu", name=f"fc{number}")(y)
    model = randomise(keras.Model(inputs, layers.Dense(4, name="fc4")(y)))
    rng = np.random.default_rng(0)
    x, fresh = (rng.normal(size=(2000, 10)).astype("float32") for _ in range(2))
    kept = {f"fc{number}": list(range(9)) for number in (1, 2, 3)}
    asymmetric = cut(model, compensators.LeastSquares(variance=False, ridge=1e-9), x, **kept)
    symmetric = cut(model, "none", **kept)
    for number in (2, 3, 4):
        read = output(model, x, f"fc{number - 1}")
        target = read @ weight(model, f"fc{number}", "kernel") + weight(model, f"fc{number}", "bias")
        left = np.column_stack([read[:, :9], np.ones(len(read))])
        found = np.linalg.lstsq(left, target[:, : 9 if number < 4 else 4], rcond=None)[0]
        give(symmetric.get_layer(f"fc{number}"), kernel=found[:-1], bias=found[-1])
    plain = error(model, cut(model, "none", **kept), fresh)
    assert error(model, symmetric, fresh) < plain
    # 0.84 is seen.
    assert error(model, asymmetric, fresh) < 0.93 * error(model, symmetric, fresh)


# ---------------------------------------------------------------------------------------------------- regression


def test_refit_is_least_squares_with_an_intercept_at_the_targets_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    kernel, kept = rng.normal(size=(1, 7, 3)), np.array([1, 1, 0, 1, 0, 1, 1], bool)
    y = x @ kernel[0]
    found = np.linalg.lstsq(np.column_stack([x[:, kept], np.ones(500)]), y, rcond=None)[0][:-1]
    found *= y.std(axis=0) / (x[:, kept] @ found).std(axis=0)
    covariance = np.cov(x.T, bias=True)
    new, constant = refit(x.mean(axis=0), covariance, kernel, kept, mixed_by_all(covariance, kept, 0.0))
    assert new[0] == pytest.approx(found)
    assert constant == pytest.approx((y - x[:, kept] @ found).mean(axis=0))
    everything = np.ones(7, bool)
    whole, nothing = refit(x.mean(axis=0), covariance, kernel, everything, mixed_by_all(covariance, everything, 0.0))
    assert whole == pytest.approx(kernel)
    assert nothing == pytest.approx(0, abs=1e-9)


def test_refit_of_several_taps_sums_their_constants():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5)) + 1
    kernel, kept = rng.normal(size=(4, 5, 3)), np.array([1, 0, 1, 1, 0], bool)
    covariance = np.cov(x.T, bias=True)
    new, constant = refit(x.mean(axis=0), covariance, kernel, kept, mixed_by_all(covariance, kept, 0.0))
    share = np.linalg.lstsq(np.column_stack([x[:, kept], np.ones(500)]), x, rcond=None)[0][:-1]
    for received, tap in zip(new, kernel, strict=True):
        # Up to the factor that restores the variance, the same for all taps.
        ratio = received / (share @ tap)
        assert ratio == pytest.approx(np.tile(ratio[:1], (3, 1)))
    together = (x @ kernel).sum(axis=0) - (x[:, kept] @ new).sum(axis=0)
    assert constant == pytest.approx(together.mean(axis=0))


def test_regression_is_least_squares_and_ridge_is_relative():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(100, 6)), rng.normal(size=(100, 2))
    assert regression(x.T @ x, x.T @ y, 0.0) == pytest.approx(np.linalg.lstsq(x, y, rcond=None)[0])
    once, scaled = (regression(s * x.T @ x, s * x.T @ y, 0.1) for s in (1.0, 1e4))
    assert once == pytest.approx(scaled)
    stacked = np.vstack([x, np.sqrt(0.1 * (x**2).sum() / 6) * np.eye(6)])
    ridge = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((6, 2))]), rcond=None)[0]
    assert once == pytest.approx(ridge)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_coefficients_are_least_squares_at_any_scale_and_in_any_order(scale):
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(30, 9))
    columns[:, 4] *= scale
    columns[:, 7] = 0
    kept = np.array([5, 0, 4, 8])
    found = coefficients(columns.T @ columns, kept)
    wanted = np.linalg.lstsq(columns[:, kept], columns, rcond=None)[0].T
    wanted[kept] = np.eye(4)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9 * max(scale, 1 / scale))
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(coefficients(columns.T @ columns, kept[order]), found[:, order], atol=1e-9)


def test_coefficients_of_kept_columns_that_depend_on_each_other():
    """Each stands for itself alone; what both can say of a third they share."""
    columns = np.random.default_rng(4).normal(size=(30, 5))
    columns[:, 3] = 2 * columns[:, 1]
    columns[:, 4] = columns[:, 0] - columns[:, 1]
    found = coefficients(columns.T @ columns, np.array([0, 1, 3]))
    assert found[[0, 1, 3]].tolist() == np.eye(3).tolist()
    assert columns[:, [0, 1, 3]] @ found[4] == pytest.approx(columns[:, 4], abs=1e-6)


# ----------------------------------------------------------------------------------------------------- gradients


def sensitivities(model: keras.Model, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    return output_sensitivity(view_model(model), calibration_inputs(x, view_model(model)), names, False)


def test_the_sensitivity_of_a_linear_network_is_the_norm_of_its_jacobian():
    inputs = keras.Input((5,))
    y = inputs
    for number, units in enumerate((7, 6, 4), 1):
        y = layers.Dense(units, name=f"fc{number}")(y)
    model = randomise(keras.Model(inputs, y))
    x = np.random.default_rng(0).normal(size=(512, 5)).astype("float32")
    found = sensitivities(model, x, ["fc1", "fc2", "fc3"])
    tail = np.eye(4)
    variance = predict(model, x)[0].var()
    for name in ("fc3", "fc2", "fc1"):
        # The mean over 512 draws of a squared normal: 6 %, three times over.
        assert found[name] == pytest.approx(np.square(tail).sum(axis=1) / variance, rel=0.2)
        tail = weight(model, name, "kernel") @ tail


def test_small_noise_moves_the_outputs_as_far_as_predicted():
    """Noise of variance s^2 in channel c raises the squared error, in units of the outputs' variance, by s^2 S_c."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, padding="same", name="conv1")(inputs)
    y = layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="conv2")(layers.ReLU()(y))
    model = randomise(keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(y))))
    x, rng = images(512), np.random.default_rng(1)
    found = sensitivities(model, x, ["conv1", "conv2"])
    wanted = output(model, x)
    for name, rest in (("conv1", keras.Model(model.layers[2].input, model.output)), ("conv2", None)):
        hidden = output(model, x, name)
        rest = rest or keras.Model(model.get_layer("conv2").output, model.output)
        for channel in range(hidden.shape[-1]):
            noisy = hidden.copy()
            noisy[..., channel] += 1e-2 * rng.normal(size=hidden.shape[:-1])
            moved = np.square(predict(rest, noisy.astype("float32"))[0] - wanted).sum(axis=1).mean()
            # Both are means over 512 random draws; 0.15 is seen.
            assert moved / wanted.var() == pytest.approx(1e-4 * found[name][channel], rel=0.3)


def test_a_channel_whose_readers_do_not_reach_the_outputs_goes_first():
    """Both branches read conv1 alike, but one of them is multiplied by nothing in the end."""
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="conv1")(inputs)
    a, b = (layers.Conv2D(5, 3, activation="relu", name=name)(y) for name in ("a", "b"))
    a, b = layers.Conv2D(4, 1, name="a2")(a), layers.Conv2D(4, 1, name="b2")(b)
    model = randomise(keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Add()([a, b]))))
    heard, unheard = [0, 3, 4, 6], [1, 2, 5, 7]
    for name, silent in (("a", unheard), ("b", heard)):
        kernel = weight(model, name, "kernel").copy()
        kernel[:, :, silent] = 0
        kernel[:, :, heard] *= 0.3
        give(model.get_layer(name), kernel=kernel)
    give(model.get_layer("b2"), kernel=0 * weight(model, "b2", "kernel"))
    budget = kfp.FiltersBudget({"conv1": 0.5})
    pursuit, cap = (
        kfp.plan_pruning(model, criterion, budget, data=images(), progress=False).kept["conv1"].tolist()
        for criterion in (criteria.OutputPursuit(), criteria.CaP())
    )
    assert pursuit == heard
    assert cap != heard
