"""Composite layers that compute with kernels, arrays and indices of their own, one kind each.

Every situation says how many units some of its groups have.
"""

import numpy as np
from composites import WIDTH, Block, around, sequence, situation, weighted
from keras import layers, ops

# {situation: sizes of groups that there are}
KERNELS = {}


def kernels(*sizes, closed=None):
    def register(build):
        KERNELS[build.__name__] = sizes
        return situation(closed)(build)

    return register


@kernels(7, WIDTH)
def convolution():
    def call(self, x):
        return ops.relu(ops.conv(x, self.kernel, strides=2, padding="same") + self.bias)

    return around(weighted(call, kernel=(3, 3, WIDTH, 7), bias=(7,))())


@kernels(7, WIDTH)
def convolution_over_time():
    def call(self, x):
        return ops.conv(x, self.kernel, padding="valid", dilation_rate=2)

    return sequence(weighted(call, kernel=(2, WIDTH, 7))())


@kernels(WIDTH)
def depthwise_convolution():
    def call(self, x):
        return ops.depthwise_conv(x, self.kernel, padding="same")

    return around(weighted(call, kernel=(3, 3, WIDTH, 2))())


@kernels(7, WIDTH)
def transposed_convolution():
    def call(self, x):
        return ops.conv_transpose(x, self.kernel, strides=2, padding="same")

    return around(weighted(call, kernel=(3, 3, 7, WIDTH))())


@kernels(WIDTH)
def convolution_twice_with_one_kernel():
    def call(self, x):
        x = ops.relu(ops.conv(x, self.kernel, padding="same"))
        return ops.conv(x, self.kernel, padding="same")

    return around(weighted(call, kernel=(3, 3, WIDTH, WIDTH))())


@kernels()
def one_kernel_at_two_strides():
    def call(self, x):
        near, far = (ops.conv(x, self.kernel, padding="same", dilation_rate=rate) for rate in (1, 2))
        return near + far

    return around(Block(7), weighted(call, kernel=(3, 3, 7, 6))())


@kernels(7, WIDTH)
def dot_product():
    return sequence(weighted(lambda self, x: ops.relu(ops.dot(x, self.w) + self.b), w=(WIDTH, 7), b=(7,))())


@kernels(7, 6)
def product_over_named_axes():
    def call(self, x):
        return ops.tensordot(ops.tensordot(x, self.w, axes=[[2], [0]]), self.v, axes=1)

    return sequence(weighted(call, w=(WIDTH, 7), v=(7, 6))())


@kernels(2, 5)
def indices_that_are_no_tuples():
    def call(self, x):
        return ops.concatenate([x * self.scales[1:] + self.shift[None], x[..., :2]], axis=-1)

    return sequence(layers.Dense(7), weighted(call, scales=(6, 7), shift=(7,))())


@kernels(7)
def numbers_of_numpy():
    class Halved(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense, self.halves = layers.Dense(7), np.array([[1.0], [0.5], [0.25], [0.0], [1.0]], "float32")

        def call(self, x):
            x = np.sqrt(WIDTH) * self.dense(x)
            x = self.halves * x + (1 - self.halves) * ops.relu(x)[:, : np.int64(5)]
            return x - x[:, np.int64(1)][:, None]

    return sequence(Halved())


@kernels(5, 3)
def functions_that_cut_and_shuffle():
    def cut(x, start):
        return x[..., start:]

    def shuffle(x):
        _, height, width, channels = x.shape
        x = ops.transpose(ops.reshape(x, (-1, height, width, 2, 2, channels // 4)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, 2 * height, 2 * width, channels // 4))

    steps = layers.Lambda(cut, arguments={"start": 2}), layers.Conv2D(12, 3), layers.Lambda(shuffle)
    return around(layers.Conv2D(7, 3), *steps)


@kernels(7)
def function_of_a_pair():
    class Distance(layers.Layer):
        def __init__(self):
            super().__init__()
            self.left, self.right = layers.Dense(7), layers.Dense(7)
            self.distance = layers.Lambda(lambda pair: ops.sum(ops.square(pair[0] - pair[1]), axis=-1, keepdims=True))

        def call(self, x):
            return ops.concatenate([self.distance([self.left(x), self.right(x)]), x], axis=-1)

    return sequence(Distance())


@kernels(4)
def weight_of_each_head():
    """Channels attend to channels, by scores that every head scales."""

    class Attention(layers.Layer):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = layers.Dense(72), layers.Dense(6)

        def build(self, shape):
            self.scales = self.add_weight((4, 1, 1), "ones", name="scales")

        def call(self, x):
            parts = ops.split(self.qkv(x), 3, axis=-1)
            q, k, v = (ops.transpose(ops.reshape(part, (-1, 5, 4, 6)), (0, 2, 3, 1)) for part in parts)
            scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * self.scales, axis=-1)
            return self.out(ops.reshape(ops.transpose(ops.matmul(scores, v), (0, 3, 1, 2)), (-1, 5, 24)))

    return sequence(Attention())


@kernels(WIDTH)
def table_of_words_that_scores_them():
    class Language(layers.Layer):
        def __init__(self):
            super().__init__()
            self.words, self.dense = layers.Embedding(9, WIDTH), layers.Dense(WIDTH)

        def call(self, x):
            x = self.words(ops.cast(ops.abs(x[..., 0]), "int32")) + self.dense(x)
            return ops.matmul(x, ops.transpose(self.words.embeddings))

    return sequence(Language())


@kernels(closed={"Tied": "reads a weight of layer"})
def kernel_that_is_used_twice():
    class Tied(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(7)

        def call(self, x):
            return ops.matmul(ops.relu(self.dense(x)), ops.transpose(self.dense.kernel))

    return sequence(Tied())
