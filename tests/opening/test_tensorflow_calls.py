"""Functions of TensorFlow in a `call()`: what stands for them computes the same, and is pruned like it."""

import keras
import numpy as np
import pytest
from composites import Block, around, called, layer, sequence, weighted
from keras import layers
from opened import assert_close, assert_pruned_is_masked, batch, outputs, randomised

import keras_filterprune as kfp
from keras_filterprune.opening.tensorflow_calls import counterparts, tensorflow_calls

tf = pytest.importorskip("tensorflow")

X = np.random.default_rng(0).uniform(0.1, 2.0, (2, 4, 6, 8)).astype("float32")
# One for each, with the arguments in which TensorFlow and Keras could differ, by name where people write names.
CALLS = {
    "abs": lambda x: tf.abs(x - 1.0),
    "add": lambda x: tf.add(x, 2.0 * x),
    "argmax": lambda x: tf.argmax(x),
    "broadcast_to": lambda x: tf.broadcast_to(x, [3, *X.shape]),
    "cast": lambda x: tf.cast(x, tf.int32),
    "math.ceil": lambda x: tf.math.ceil(x),
    "clip_by_value": lambda x: tf.clip_by_value(x, clip_value_min=0.5, clip_value_max=1.0),
    "concat": lambda x: tf.concat([x, x], axis=-1),
    "convert_to_tensor": lambda x: tf.convert_to_tensor(x) - 1.0,
    "cos": lambda x: tf.cos(x),
    "cumsum": lambda x: tf.cumsum(x, axis=1),
    "divide": lambda x: tf.divide(x, 3.0),
    "einsum": lambda x: tf.einsum("bhwc,bkwc->bhkc", x, x),
    "equal": lambda x: tf.equal(x, X),
    "exp": lambda x: tf.exp(x),
    "expand_dims": lambda x: tf.expand_dims(x, axis=2),
    "floor": lambda x: tf.floor(x),
    "gather": lambda x: tf.gather(x, [0, 2, 1], axis=-1),
    "greater": lambda x: tf.greater(x, 1.0),
    "greater_equal": lambda x: tf.greater_equal(x, 1.0),
    "identity": lambda x: tf.identity(x) - 1.0,
    "image.resize": lambda x: tf.image.resize(x, tf.shape(x)[1:3] * 2, method="bicubic"),
    "less": lambda x: tf.less(x, 1.0),
    "less_equal": lambda x: tf.less_equal(x, 1.0),
    "logical_and": lambda x: tf.logical_and(x > 0.5, x < 1.5),
    "logical_not": lambda x: tf.logical_not(x > 0.5),
    "logical_or": lambda x: tf.logical_or(x < 0.5, x > 1.5),
    "math.erf": lambda x: tf.math.erf(x),
    "math.log": lambda x: tf.math.log(x),
    "math.log1p": lambda x: tf.math.log1p(x),
    "math.mod": lambda x: tf.math.mod(-x, 0.3),
    "math.negative": lambda x: tf.negative(x),
    "math.pow": lambda x: tf.pow(x, 2.5),
    "math.reciprocal": lambda x: tf.math.reciprocal(x),
    "math.reduce_std": lambda x: tf.math.reduce_std(x, axis=[1, 2]),
    "math.reduce_variance": lambda x: tf.math.reduce_variance(x, keepdims=True),
    "math.rsqrt": lambda x: tf.math.rsqrt(x),
    "math.squared_difference": lambda x: tf.math.squared_difference(x, 1.0),
    "matmul": lambda x: tf.matmul(x, x, transpose_b=True),
    "maximum": lambda x: tf.maximum(x, 1.0),
    "minimum": lambda x: tf.minimum(x, 1.0),
    "multiply": lambda x: tf.multiply(x, X),
    "nn.bias_add": lambda x: tf.nn.bias_add(x, np.arange(8, dtype="float32")),
    "nn.depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
    "nn.elu": lambda x: tf.nn.elu(x - 1.0),
    "nn.gelu": lambda x: tf.nn.gelu(x),
    "nn.leaky_relu": lambda x: tf.nn.leaky_relu(x - 1.0, alpha=0.1),
    "nn.log_softmax": lambda x: tf.nn.log_softmax(x),
    "nn.moments": lambda x: tf.nn.moments(x, axes=[1, 2], keepdims=True),
    "nn.relu": lambda x: tf.nn.relu(x - 1.0),
    "nn.relu6": lambda x: tf.nn.relu6(4.0 * x),
    "nn.selu": lambda x: tf.nn.selu(x - 1.0),
    "nn.silu": lambda x: tf.nn.swish(x),
    "nn.softmax": lambda x: tf.nn.softmax(x, axis=1),
    "nn.softplus": lambda x: tf.nn.softplus(x),
    "nn.softsign": lambda x: tf.nn.softsign(x),
    "nn.space_to_depth": lambda x: tf.nn.space_to_depth(x, 2),
    "norm": lambda x: tf.norm(x, axis=-1, keepdims=True),
    "not_equal": lambda x: tf.not_equal(x, X),
    "one_hot": lambda x: tf.one_hot(tf.cast(x, tf.int32), depth=3),
    "ones_like": lambda x: tf.ones_like(x),
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], constant_values=3.0),
    "reduce_all": lambda x: tf.reduce_all(x > 0.2, axis=-1),
    "reduce_any": lambda x: tf.reduce_any(x > 1.8, axis=-1),
    "reduce_logsumexp": lambda x: tf.reduce_logsumexp(x, axis=-1),
    "reduce_max": lambda x: tf.reduce_max(x, axis=(1, 2)),
    "reduce_mean": lambda x: tf.reduce_mean(x, keepdims=True),
    "reduce_min": lambda x: tf.reduce_min(x, axis=1),
    "reduce_prod": lambda x: tf.reduce_prod(x, axis=1),
    "reduce_sum": lambda x: tf.reduce_sum(x, axis=[1, 2], keepdims=True),
    "repeat": lambda x: tf.repeat(x, 2, axis=1),
    "reshape": lambda x: tf.reshape(x, tf.concat([tf.shape(x)[:1], [-1], [4]], axis=0)),
    "reverse": lambda x: tf.reverse(x, axis=[2]),
    "roll": lambda x: tf.roll(x, shift=[1, -2], axis=[1, 2]),
    "round": lambda x: tf.round(x),
    "shape": lambda x: x * tf.cast(tf.shape(x)[-1], tf.float32),
    "sigmoid": lambda x: tf.sigmoid(x),
    "sign": lambda x: tf.sign(x - 1.0),
    "sin": lambda x: tf.sin(x),
    "split": lambda x: tf.split(x, [2, 5, 1], axis=-1),
    "sqrt": lambda x: tf.sqrt(x),
    "square": lambda x: tf.square(x),
    "squeeze": lambda x: tf.squeeze(x[:, :1], axis=[1]),
    "stack": lambda x: tf.stack([x, 2.0 * x], axis=1),
    "stop_gradient": lambda x: tf.stop_gradient(x),
    "subtract": lambda x: tf.subtract(x, 0.5),
    "tan": lambda x: tf.tan(x),
    "tanh": lambda x: tf.tanh(x),
    "tensordot": lambda x: tf.tensordot(x, np.ones((8, 3), "float32"), axes=1),
    "tile": lambda x: tf.tile(x, [1, 2, 1, 1]),
    "transpose": lambda x: tf.transpose(x, perm=[0, 3, 1, 2]),
    "unstack": lambda x: tf.unstack(x, axis=1),
    "where": lambda x: tf.where(x > 1.0, x, 0.0),
    "zeros_like": lambda x: tf.zeros_like(x),
}
INDICES = np.random.default_rng(1).integers(0, 8, (2, 4, 6, 3))
# Other ways to call them, which go another way.
OTHER_CALLS = {
    "gather, of every row its own": lambda x: tf.gather(x, INDICES, batch_dims=3),
    "image.resize, to the nearest": lambda x: tf.image.resize(x, [8, 12], method="nearest"),
    "matmul, the first turned": lambda x: tf.matmul(x, x, transpose_a=True),
    "nn.gelu, by tanh": lambda x: tf.nn.gelu(x, approximate=True),
    "pad, by reflection": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], mode="REFLECT"),
    "split, evenly": lambda x: tf.split(x, 4, axis=1),
}


def test_every_counterpart_is_tried():
    assert CALLS.keys() == counterparts().keys()


@pytest.mark.parametrize("name", CALLS | OTHER_CALLS)
def test_counterparts_compute_the_same(name):
    symbol, call = keras.KerasTensor(X.shape), (CALLS | OTHER_CALLS)[name]
    with tensorflow_calls():
        found = keras.tree.flatten(keras.Function(symbol, call(symbol))(X))
    wanted = keras.tree.flatten(call(tf.constant(X)))
    assert len(found) == len(wanted)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_symbolic_tensors_are_refused_elsewhere():
    with tensorflow_calls():
        pass
    with pytest.raises(ValueError, match="KerasTensor"):
        tf.reshape(keras.Input((4,)), [-1, 2, 2])


class Attention(layers.Layer):
    """Attention as a tutorial of TensorFlow has it."""

    def __init__(self, width, heads):
        super().__init__()
        self.width, self.heads = width, heads
        self.q, self.k, self.v, self.out = (layers.Dense(width) for _ in range(4))

    def split(self, x, batch):
        x = tf.reshape(x, (batch, -1, self.heads, self.width // self.heads))
        return tf.transpose(x, perm=[0, 2, 1, 3])

    def call(self, x):
        batch = tf.shape(x)[0]
        q, k, v = (self.split(dense(x), batch) for dense in (self.q, self.k, self.v))
        scores = tf.matmul(q, k, transpose_b=True) / tf.math.sqrt(tf.cast(tf.shape(k)[-1], tf.float32))
        length = tf.shape(x)[1]
        scores += (1.0 - tf.linalg.band_part(tf.ones((length, length)), -1, 0)) * -1e9
        x = tf.transpose(tf.matmul(tf.nn.softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
        return self.out(tf.reshape(x, (batch, length, self.width)))


class Decoder(keras.Model):
    """Down, up to the size of what was, and both together."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = layers.Conv2D(7, 3, 2, padding="same"), Block(9)
        self.side, self.scores = layers.Conv2D(6, 1), layers.Dense(3)

    def call(self, images, training=None):
        images = tf.cast(images, tf.float32) / 255.0
        x = tf.image.resize(self.deep(tf.nn.relu(self.down(images))), tf.shape(images)[1:3], method="nearest")
        x = tf.concat([x, tf.nn.leaky_relu(self.side(images), alpha=0.1)], axis=-1)
        return self.scores(tf.reduce_mean(x, axis=[1, 2]))


def excite(self, x):
    gates = self.expand(tf.nn.relu(self.reduce(tf.reduce_mean(x, axis=[1, 2]))))
    return x * tf.reshape(tf.sigmoid(gates), [-1, 1, 1, x.shape[-1]])


# {situation: (model, how many units its groups have)}
SITUATIONS = {
    "attention": (lambda: sequence(Attention(8, 4)), [4, 6]),
    "decoder": (lambda: called(Decoder()), [7, 9, 6]),
    "excite": (lambda: around(Block(7), layer(excite, reduce=layers.Dense(4), expand=layers.Dense(7))), [7, 4]),
    "pixels": (lambda: around(layer(lambda self, x: tf.nn.depth_to_space(x, 2))), [2]),
    "weight": (lambda: around(weighted(lambda self, x: tf.matmul(x, self.kernel), kernel=(8, 7))()), [8, 7]),
    "gathered": (lambda: sequence(layer(lambda self, x: tf.gather(x, [[4, 0], [1, 2]], axis=1)[:, 0])), [8, 6]),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_layers_that_call_tensorflow_are_opened_and_pruned(name):
    build, sizes = SITUATIONS[name]
    model = randomised(build())
    graph = kfp.analyze(model)
    assert not [call.closed for call in graph.view.calls if call.closed]
    x = batch(graph.model)
    assert_close(outputs(model, x), outputs(graph.model, x), 1e-5)
    found = [group.size for group in graph.groups]
    for size in sizes:
        found.remove(size)
    assert_pruned_is_masked(model, graph=graph)


def test_what_has_no_counterpart_is_refused_by_line():
    model = around(layer(lambda self, x: tf.nn.lrn(x)))
    (closed,) = [call.closed for call in kfp.analyze(model).view.calls if call.closed]
    assert "test_tensorflow_calls.py" in closed
    assert "With keras.ops in its place, it would open." in closed
