"""Networks whose channels are tied by additions and other element-wise merges."""

import keras
from keras import layers

from .base import conv, conv_bn, logits, register


@register
def residual_identity():
    """Two identity blocks on one trunk: three convolutions share their output channels."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 10, "stem")
    for i, width in enumerate([7, 12], start=1):
        y = conv_bn(x, width, f"block{i}_a")
        y = conv_bn(y, 10, f"block{i}_b", activation=None)
        x = layers.ReLU(name=f"block{i}_out")(layers.Add(name=f"block{i}_add")([x, y]))
    return keras.Model(inputs, logits(x), name="residual_identity")


@register
def residual_projection():
    """A strided block with a 1x1 projection on its shortcut, then an identity block."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 9, "stem")
    y = conv_bn(x, 7, "a1", strides=2)
    y = conv_bn(y, 14, "a2", activation=None)
    shortcut = conv_bn(x, 14, "proj", kernel_size=1, strides=2, activation=None)
    x = layers.ReLU(name="a_out")(layers.Add(name="a_add")([y, shortcut]))
    y = conv_bn(conv_bn(x, 11, "b1"), 14, "b2", activation=None)
    x = layers.ReLU(name="b_out")(layers.Add(name="b_add")([x, y]))
    return keras.Model(inputs, logits(x), name="residual_projection")


@register
def preactivation_residual():
    """BN + ReLU before each convolution; the trunk itself is never normalised."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv(inputs, 12, "stem")
    for i, width in enumerate([7, 9], start=1):
        y = layers.BatchNormalization(name=f"bn{i}_a")(x)
        y = conv(layers.ReLU(name=f"relu{i}_a")(y), width, f"conv{i}_a", use_bias=False)
        y = layers.BatchNormalization(name=f"bn{i}_b")(y)
        y = conv(layers.ReLU(name=f"relu{i}_b")(y), 12, f"conv{i}_b")
        x = layers.Add(name=f"join{i}")([x, y])
    x = layers.BatchNormalization(name="last_bn")(x)
    return keras.Model(inputs, logits(layers.ReLU(name="last_relu")(x)), name="preactivation_residual")


@register
def bottleneck():
    """ResNet bottleneck 1x1, 3x3, 1x1, twice, with the shortcut listed first in the second addition."""
    inputs = keras.Input((8, 6, 3), name="image")
    x = conv_bn(inputs, 8, "stem")
    shortcut = conv_bn(x, 20, "proj", kernel_size=1, activation=None)
    for i, (a, b) in enumerate([(5, 6), (7, 9)], start=1):
        y = conv_bn(x, a, f"block{i}_1", kernel_size=1)
        y = conv_bn(y, b, f"block{i}_2")
        y = conv_bn(y, 20, f"block{i}_3", kernel_size=1, activation=None)
        x = shortcut = layers.ReLU(name=f"block{i}_out")(layers.Add(name=f"block{i}_add")([shortcut, y][:: (-1) ** i]))
    return keras.Model(inputs, logits(x), name="bottleneck")


@register
def residual_to_input():
    """A residual with the image itself (pinned: "back")."""
    inputs = keras.Input((8, 6, 3), name="image")
    x = conv_bn(inputs, 10, "wide")
    x = layers.Add(name="join")([inputs, conv(x, 3, "back")])
    return keras.Model(inputs, logits(conv_bn(x, 7, "last")), name="residual_to_input")


@register
def merges():
    """Average, Maximum, Minimum, Multiply and Subtract of equal shapes, and an Add of three."""
    inputs = keras.Input((6, 6, 3), name="image")
    merge_types = [layers.Average, layers.Maximum, layers.Minimum, layers.Multiply, layers.Subtract]
    x = inputs
    for width, merge in zip([6, 7, 8, 9, 10], merge_types, strict=True):
        key = merge.__name__.lower()
        x = merge(name=f"merge_{key}")([conv(x, width, f"{key}_a"), conv(x, width, f"{key}_b", activation="tanh")])
    x = layers.Add(name="merge_three")([conv(x, 11, f"three_{i}", kernel_size=i) for i in (1, 2, 3)])
    return keras.Model(inputs, logits(x), name="merges")


@register
def broadcast_merges():
    """Merges of (H, W, C) with (1, 1, C), (H, W, 1) and (1, W, C)."""
    inputs = keras.Input((6, 8, 3), name="image")
    x = conv_bn(inputs, 9, "trunk")
    vector = layers.GlobalAveragePooling2D(keepdims=True, name="vector")(conv(x, 9, "vector_conv"))
    x = layers.Add(name="add_vector")([x, vector])
    plane = conv(x, 1, "plane", activation="sigmoid")
    x = layers.Multiply(name="mul_plane")([plane, x])
    row = layers.AveragePooling2D((6, 1), name="row")(conv(x, 9, "row_conv"))
    x = layers.Maximum(name="max_row")([x, row])
    x = layers.Subtract(name="sub_plane")([conv(x, 7, "last"), conv(x, 1, "plane2")])
    return keras.Model(inputs, logits(x), name="broadcast_merges")
