"""What handlers say that layers multiply is what these layers compute."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, assert_same, predict
from keras import layers
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune.handlers.registry import linear_of, statistics_of
from keras_filterprune.probe.consumers import draw_places, rows_at

pytestmark = pytest.mark.portable

LAYERS = {
    "Conv1D": (lambda: layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu"), (9, 5)),
    "Conv2D": (lambda: layers.Conv2D(4, (3, 2), strides=2, padding="same", activation="tanh"), (9, 8, 5)),
    "Conv3D": (lambda: layers.Conv3D(4, 2, use_bias=False), (4, 5, 4, 3)),
    "grouped": (lambda: layers.Conv2D(4, 3, groups=2), (9, 9, 6)),
    "DepthwiseConv1D": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2, dilation_rate=2), (9, 5)),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3, strides=2, padding="same"), (9, 9, 5)),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(4, 3, padding="same"), (9, 5)),
    "SeparableConv2D": (lambda: layers.SeparableConv2D(4, 3, depth_multiplier=2, activation="elu"), (9, 9, 5)),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(4, 3, strides=2, output_padding=1, padding="same"), (9, 5)),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(4, (3, 2), strides=2), (9, 8, 5)),
    "Conv3DTranspose": (lambda: layers.Conv3DTranspose(4, 2), (4, 5, 4, 3)),
    "Dense": (lambda: layers.Dense(4, activation="sigmoid"), (7, 5)),
}
WHOLE = [name for name in LAYERS if name not in ("grouped", "DepthwiseConv1D", "DepthwiseConv2D")]
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name: str):
    """A built layer with random weights, and inputs for it."""
    make, shape = LAYERS[name]
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(1).normal(size=(6, *shape)).astype("float32")
    layer = make()
    randomise(keras.Sequential([keras.Input(shape), layer]), seed=2)
    return layer, x


@every_layer
def test_sums_bias_and_activation_make_the_output(name):
    layer, x = made(name)
    linear = linear_of(layer)
    bias = linear.weight(linear.bias)
    sums = linear(x) if bias is None else linear(x) + bias.value
    np.testing.assert_allclose(array(linear.activation(sums)), array(layer(x)), atol=1e-5)


@every_layer
def test_it_is_said_before_the_layer_is_built(name):
    linear = linear_of(LAYERS[name][0]())
    assert list(linear.kernels) == list(linear_of(made(name)[0]).kernels)


@pytest.mark.parametrize("name", WHOLE)
def test_rows_times_the_matrix_are_the_sums(name):
    layer, x = made(name)
    linear = linear_of(layer)
    places = draw_places(name, linear, x, len(x))
    rows = rows_at(linear, keras.ops.convert_to_tensor(x), places)
    received = rows.reshape(len(rows), -1) @ linear.matrix.reshape(-1, linear.matrix.shape[-1])
    if not linear.transposed:
        np.testing.assert_allclose(received, places.pick(array(linear(x))), atol=1e-5)
        return
    # An image of one pixel shows the window that it is spread over.
    pixel = rows[0, 0].reshape([1] * (x.ndim - 1) + [-1])
    valid = keras.ops.conv_transpose(pixel, linear.weight("kernel").value, linear.window.kernel_size, padding="valid")
    np.testing.assert_allclose(received[0], array(valid).ravel(), atol=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_assigned_is_read_again(name):
    layer, _ = made(name)
    linear = linear_of(layer)
    before, new = linear.matrix, np.random.default_rng(4).normal(size=linear.matrix.shape)
    linear.assign(new)
    np.testing.assert_array_equal(linear.matrix, new.astype("float32"))
    linear.assign(before)
    np.testing.assert_array_equal(linear.matrix, before)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in WHOLE])
def test_layers_whose_channels_do_not_all_meet_have_no_matrix(name):
    assert linear_of(made(name)[0]).matrix is None


@pytest.mark.parametrize("layer", [layers.ReLU(), layers.Add(), layers.BatchNormalization(), layers.Embedding(5, 3)])
def test_other_layers_multiply_nothing(layer):
    assert linear_of(layer) is None


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_statistics_make_the_output_of_batch_normalization(scale, center):
    layer = layers.BatchNormalization(scale=scale, center=center)
    randomise(keras.Sequential([keras.Input((4, 5)), layer]), seed=2)
    x = np.random.default_rng(1).normal(size=(6, 4, 5)).astype("float32")
    statistics = statistics_of(layer)
    mean, variance, gamma, beta = statistics.values("float64")
    expected = (x - mean) / np.sqrt(variance + statistics.epsilon) * gamma + beta
    np.testing.assert_allclose(expected, array(layer(x)), atol=1e-5)


# ------------------------------------------------------------------------------------------- a handler of one's own


@keras.saving.register_keras_serializable(package="rows")
class Rows(layers.Layer):
    """A dense layer that stores its kernel as (outputs, channels), and its bias as an offset."""

    def __init__(self, outputs: int, **kwargs):
        super().__init__(**kwargs)
        self.outputs = outputs

    def build(self, shape):
        self.rows = self.add_weight((self.outputs, shape[-1]), "glorot_uniform", name="rows")
        self.shift = self.add_weight((self.outputs,), "zeros", name="shift")

    def call(self, x):
        return keras.ops.relu(keras.ops.matmul(x, keras.ops.transpose(self.rows)) + self.shift)

    def get_config(self):
        return super().get_config() | {"outputs": self.outputs}


class RowsHandler(kfp.handlers.Handler):
    def trace(self, call, inputs, t):
        ids = t.fresh(call.op.outputs, (call.path, "filters"))
        t.bind(call.path, "rows", 1, inputs[0].ids, "input")
        t.bind(call.path, "rows", 0, ids, "filter")
        t.bind(call.path, "shift", 0, ids)
        t.spend(call.path, 1, inputs[0].ids, ids)
        return [kfp.handlers.Tensor(call.output_shapes[0], 1, ids)]

    def resize(self, config, r):
        return config | {"outputs": r.width(r.outputs[0])}

    def linear(self, op):
        return kfp.handlers.Linear(
            op,
            lambda x, kernel: keras.ops.matmul(x, keras.ops.transpose(kernel)),
            kernel="rows",
            bias="shift",
            activation=keras.activations.relu,
            channels=1,
            filters=0,
        )


def twins() -> tuple[keras.Model, keras.Model]:
    """A net of dense layers, and one that computes the same with `Rows`."""
    keras.utils.set_random_seed(0)
    sizes = {"a": 12, "b": 10, "c": 8}
    inputs = keras.Input((6,), name="input")
    x = y = inputs
    for name, size in sizes.items():
        x, y = layers.Dense(size, activation="relu", name=name)(x), Rows(size, name=name)(y)
    head = layers.Dense(3, name="head")
    dense = randomise(keras.Model(inputs, head(x)), seed=1)
    mine = keras.Model(inputs, layers.Dense(3, name="head")(y))
    mine.set_weights([w.T if i % 2 == 0 and i < 6 else w for i, w in enumerate(dense.get_weights())])
    return dense, mine


X = np.random.default_rng(5).normal(size=(64, 6)).astype("float32")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("compensate", ["none", "least_squares", "mean_shift", "linear", "merge"])
@pytest.mark.parametrize("method", ["cap", "pursuit", "apoz", "energy"])
def test_a_layer_with_a_handler_of_its_own_is_treated_like_its_twin(method, compensate):
    kfp.register_handler(Rows)(RowsHandler)
    dense, mine = twins()
    assert_same(dense, mine, X, 1e-6)
    small, other = (
        kfp.prune_model(m, method, 0.5, data=X, compensate=compensate, return_report=True, progress=False)
        for m in (dense, mine)
    )
    assert small[1].compensation == other[1].compensation
    assert small[1].plan.layers == other[1].plan.layers
    assert_same(small[0], other[0], X, 1e-4)
    if compensate != "none":
        plain = kfp.prune_model(mine, method, 0.5, data=X, compensate="none", progress=False)
        assert np.abs(predict(plain, X)[0] - predict(other[0], X)[0]).max() > 1e-3


@pytest.mark.usefixtures("registry")
def test_bridgeout_perturbs_the_kernel_of_a_handler_of_its_own():
    kfp.register_handler(Rows)(RowsHandler)
    layer = kfp.layers.BatchBridgeout(Rows(4, name="own"), target_fraction=0.5, seed=1)
    layer.build((None, 6))
    found = array(layer._perturbed(layer.layer.rows, 1, 0))
    touched = found != array(layer.layer.rows)
    np.testing.assert_array_equal(touched.sum(axis=1), 3)
    weakest = np.sort(np.abs(array(layer.layer.rows)), axis=1)[:, :3]
    np.testing.assert_allclose(np.sort(np.abs(array(layer.layer.rows)[touched]).reshape(4, 3), axis=1), weakest)
    assert np.abs(array(layer(X, training=True)) - array(layer(X))).max() > 1e-3
