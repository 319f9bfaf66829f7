"""Networks that call `keras.ops` (and Python operators) on symbolic tensors."""

import keras
import numpy as np
from keras import layers, ops

from .base import conv, conv_bn, logits, register


@register
def ops_arithmetic():
    """Operators, scalar constants, unary functions and means over space."""
    inputs = keras.Input((6, 8, 3), name="image")
    a, b = conv(inputs, 9, "conv_a"), conv(inputs, 9, "conv_b")
    x = ops.relu(0.5 * a + b - 0.1) / 2.0
    x = ops.tanh(ops.maximum(x, a) * ops.sigmoid(-b))
    x = x - ops.mean(x, axis=(1, 2), keepdims=True)
    x = conv(x, 7, "conv_c")
    x = ops.sqrt(ops.abs(x) + 0.01) + ops.square(ops.clip(x, -1.0, 1.0))
    return keras.Model(inputs, layers.Dense(4, name="logits")(ops.mean(x, axis=[1, 2])), name="ops_arithmetic")


@register
def ops_slices():
    """Channel slices by `getitem`: a prefix, a suffix, every second channel and one single channel."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = conv_bn(inputs, 12, "conv1")
    head, tail = x[..., :5], x[:, 1:-1, ::2, 5:]
    strided = conv_bn(x[..., ::2], 7, "conv2")
    single = x[..., 3:4] * strided
    out = [logits(part, 3, f"fc{i}") for i, part in enumerate([conv_bn(head, 9, "conv3"), tail, single])]
    return keras.Model(inputs, layers.Concatenate(name="cat")(out), name="ops_slices")


@register
def ops_split_concat():
    """`split` in equal parts and at indices, parts reordered and concatenated, one part dropped."""
    inputs = keras.Input((6, 6, 3), name="image")
    a, b, c = ops.split(conv_bn(inputs, 12, "conv1"), 3, axis=-1)
    x = ops.concatenate([c, conv_bn(b, 7, "conv2"), a], axis=-1)
    a, b, _ = ops.split(x, [4, 9], axis=3)
    x = ops.concatenate([b, a], axis=-1)
    return keras.Model(inputs, logits(conv_bn(x, 8, "conv3")), name="ops_split_concat")


@register
def ops_stack_select():
    """Selective-kernel style: branches stacked on a new axis, weighted, and summed over it."""
    inputs = keras.Input((6, 8, 3), name="image")
    a, b = conv_bn(inputs, 9, "conv1"), conv_bn(inputs, 9, "conv2", kernel_size=5)
    x = ops.sum(ops.stack([a, b], axis=1) * np.array([0.3, 0.7], "float32").reshape(1, 2, 1, 1, 1), axis=1)
    y = ops.max(ops.stack([conv(x, 7, "conv3"), conv(x, 7, "conv4")], axis=-1), axis=-1)
    return keras.Model(inputs, logits(y), name="ops_stack_select")


@register
def ops_layout():
    """Transpose to channels-first and back, expand_dims, squeeze, flip and moveaxis."""
    inputs = keras.Input((6, 4, 3), name="image")
    x = ops.transpose(conv_bn(inputs, 9, "conv1"), (0, 3, 1, 2))
    x = ops.relu(ops.squeeze(ops.expand_dims(x, 2), 2))
    x = conv_bn(ops.moveaxis(x, 1, -1), 7, "conv2")
    x = ops.flip(x, axis=-1) + ops.swapaxes(ops.swapaxes(conv(x, 7, "conv3"), 1, 3), 3, 1)
    x = ops.reshape(x, (-1, 24, 7))
    return keras.Model(inputs, layers.Dense(4, name="logits")(ops.mean(x, axis=1)), name="ops_layout")


@register
def depth_to_space():
    """Pixel shuffle of 12 channels into 3 at twice the resolution, by reshape and transpose."""
    inputs = keras.Input((4, 6, 3), name="image")
    x = ops.reshape(conv(inputs, 12, "conv1"), (-1, 4, 6, 2, 2, 3))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 8, 12, 3))
    return keras.Model(inputs, logits(conv_bn(x, 7, "conv2")), name="depth_to_space")


@register
def space_to_depth():
    """Focus stem: a 2x2 neighbourhood becomes channels, once by reshape and once by slices + concat."""
    inputs = keras.Input((8, 12, 3), name="image")
    x = ops.reshape(conv_bn(inputs, 5, "conv1"), (-1, 4, 2, 6, 2, 5))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 4, 6, 20))
    x = conv_bn(x, 7, "conv2")
    x = ops.concatenate([x[:, i::2, j::2, :] for i in (0, 1) for j in (0, 1)], axis=-1)
    return keras.Model(inputs, logits(conv_bn(x, 9, "conv3")), name="space_to_depth")


@register
def numpy_constants():
    """Per-channel NumPy constants in a product, a sum and a maximum, and one per-row constant."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((6, 4, 3), name="image")
    x = conv(inputs, 9, "conv1") * rng.uniform(0.5, 1.5, 9).astype("float32")
    x = ops.maximum(ops.add(rng.normal(size=(1, 1, 1, 9)).astype("float32"), x), rng.normal(size=9).astype("float32"))
    x = conv(x, 7, "conv2") + rng.normal(size=(6, 1, 1)).astype("float32")
    return keras.Model(inputs, logits(x), name="numpy_constants")


@register
def option_a_shortcut():
    """Shortcut without weights: spatial stride, then zero channels on both sides."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 6, "stem")
    y = conv_bn(conv_bn(x, 9, "conv1", strides=2), 14, "conv2", activation=None)
    shortcut = ops.pad(x[:, ::2, ::2, :], [[0, 0], [0, 0], [0, 0], [4, 4]])
    x = ops.relu(y + shortcut)
    return keras.Model(inputs, logits(conv_bn(x, 11, "last")), name="option_a_shortcut")


@register
def option_a_one_sided():
    """Shortcut padded after its last channel, by average pooling and `ops.pad`."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 7, "stem")
    shortcut = ops.pad(layers.AveragePooling2D(2, name="pool")(x), ((0, 0), (0, 0), (0, 0), (0, 3)))
    y = conv_bn(x, 10, "conv1", strides=2, activation=None)
    x = layers.ReLU(name="out")(layers.Add(name="join")([shortcut, y]))
    return keras.Model(inputs, logits(conv_bn(x, 9, "last")), name="option_a_one_sided")


@register
def ops_resize_tile():
    """Resampling and repeating that leaves channels alone, and a tile of the channels themselves."""
    inputs = keras.Input((6, 4, 3), name="image")
    x = ops.image.resize(conv_bn(inputs, 7, "conv1"), (4, 4), interpolation="nearest")
    x = conv_bn(ops.repeat(x, 2, axis=1), 5, "conv2")
    x = conv_bn(ops.tile(x, (1, 1, 1, 2)), 9, "conv3")
    return keras.Model(inputs, logits(ops.repeat(x, 2, axis=-1)), name="ops_resize_tile")


@register
def ops_weights_free():
    """Functional forms of pooling, padding, softmax over positions, and matmul with a constant."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = ops.max_pool(conv_bn(inputs, 8, "conv1"), 2, strides=2, padding="same")
    x = ops.pad(ops.average_pool(x, 2, strides=1, padding="same"), [[0, 0], [1, 0], [0, 1], [0, 0]])
    x = ops.softmax(ops.reshape(conv_bn(x, 7, "conv2"), (-1, 16, 7)), axis=1)
    x = layers.Conv1D(6, 1, name="conv3")(x)
    mix = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    x = ops.matmul(x, mix)
    return keras.Model(inputs, layers.Dense(3, name="logits")(ops.max(x, axis=1)), name="ops_weights_free")
