"""Linear compensation without data: exact where only normalization lies between, means and sizes elsewhere."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import images, predict
from keras import layers
from readers import cut, flattened, give, normalized, one_convolution, output, weight
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune.probe.gaussian import gaussian_inputs


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
