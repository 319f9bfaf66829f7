"""Convolutions that do not mix all channels, and the shuffles that go with them."""

import keras
from keras import layers, ops

from .base import conv, conv_bn, logits, register


@register
def depthwise():
    """MobileNet: depthwise convolutions with multiplier 1 and 2 between 1x1 ones, and an inverted residual."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = trunk = conv_bn(inputs, 7, "stem")
    x = conv_bn(x, 12, "expand", kernel_size=1)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise1")(x)
    x = layers.ReLU(6.0, name="act1")(layers.BatchNormalization(name="bn1")(x))
    x = layers.Add(name="join")([trunk, conv_bn(x, 7, "project", kernel_size=1, activation=None)])
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, name="depthwise2")(x)
    x = layers.ReLU(name="act2")(layers.BatchNormalization(name="bn2")(x))
    return keras.Model(inputs, logits(conv_bn(x, 11, "last", kernel_size=1)), name="depthwise")


@register
def depthwise_on_image():
    """The depthwise kernel sees the image, so it cannot lose channels (pinned: "depthwise")."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu", name="depthwise")(inputs)
    return keras.Model(inputs, logits(conv_bn(x, 9, "conv1", kernel_size=1)), name="depthwise_on_image")


@register
def depthwise_chain():
    """Multiplier 2, then 3, with an addition that ties both copies of a channel."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = conv(inputs, 4, "conv1", activation="relu")
    a = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise1")(x)
    x = layers.Add(name="join")([a, layers.Concatenate(name="twice")([x, x])])
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=3, activation="relu", name="depthwise2")(x)
    return keras.Model(inputs, logits(x), name="depthwise_chain")


@register
def separable():
    """Separable 2-D convolutions with depth multiplier 1 and 2."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.SeparableConv2D(7, 3, padding="same", depth_multiplier=2, activation="relu", name="sep1")(inputs)
    x = layers.SeparableConv2D(10, 3, padding="same", depth_multiplier=2, use_bias=False, name="sep2")(x)
    x = layers.ReLU(name="sep2_act")(layers.BatchNormalization(name="sep2_bn")(x))
    x = layers.SeparableConv2D(8, 3, strides=2, padding="same", name="sep3")(x)
    return keras.Model(inputs, logits(x), name="separable")


@register
def separable_1d():
    """Separable and depthwise 1-D convolutions."""
    inputs = keras.Input((14, 4), name="signal")
    x = layers.SeparableConv1D(9, 3, padding="same", depth_multiplier=2, activation="relu", name="sep1")(inputs)
    x = layers.SeparableConv1D(7, 3, padding="same", depth_multiplier=2, name="sep2")(x)
    x = layers.DepthwiseConv1D(3, depth_multiplier=2, name="depthwise")(layers.BatchNormalization(name="bn")(x))
    x = layers.GlobalMaxPooling1D(name="gmp")(layers.ReLU(name="act")(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="separable_1d")


@register
def grouped_conv():
    """ResNeXt block: convolutions with 2 and 4 groups, with BN, on a residual trunk."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = trunk = conv_bn(inputs, 16, "stem")
    x = conv_bn(conv_bn(x, 12, "reduce", kernel_size=1), 8, "grouped4", groups=4)
    x = layers.Add(name="join")([trunk, conv_bn(x, 16, "grouped2", groups=2, activation=None)])
    return keras.Model(inputs, logits(conv_bn(x, 9, "last")), name="grouped_conv")


@register
def grouped_as_depthwise():
    """groups == input channels, once with as many filters and once with twice as many."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 6, "conv1")
    x = conv_bn(x, 6, "grouped1", groups=6)
    x = conv_bn(x, 12, "grouped2", groups=6)
    return keras.Model(inputs, logits(conv_bn(x, 7, "last")), name="grouped_as_depthwise")


@register
def shufflenet_v1():
    """Grouped 1x1 convolution, channel shuffle by reshape-transpose-reshape, depthwise, grouped 1x1."""
    inputs = keras.Input((6, 8, 3), name="image")
    x = trunk = conv_bn(inputs, 18, "stem")
    x = conv_bn(x, 12, "grouped1", kernel_size=1, groups=3)
    x = ops.reshape(x, (-1, 6, 8, 3, 4))
    x = ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 6, 8, 12))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.Add(name="join")([trunk, conv_bn(x, 18, "grouped2", kernel_size=1, groups=3, activation=None)])
    return keras.Model(inputs, logits(layers.ReLU(name="out")(x)), name="shufflenet_v1")


@register
def shufflenet_v2():
    """Two blocks of channel split, one worked half, concatenation and a shuffle made of layers."""
    inputs = keras.Input((6, 8, 3), name="image")
    x = conv_bn(inputs, 12, "stem")
    for i, width in enumerate([7, 9], start=1):
        keep, work = ops.split(x, 2, axis=-1)
        work = conv_bn(work, width, f"a{i}", kernel_size=1)
        work = layers.DepthwiseConv2D(3, padding="same", name=f"depthwise{i}")(work)
        x = layers.Concatenate(name=f"cat{i}")([keep, conv_bn(work, 6, f"b{i}", kernel_size=1)])
        x = layers.Permute((1, 2, 4, 3), name=f"swap{i}")(layers.Reshape((6, 8, 2, 6), name=f"fold{i}")(x))
        x = layers.Reshape((6, 8, 12), name=f"unfold{i}")(x)
    return keras.Model(inputs, logits(conv(x, 10, "last")), name="shufflenet_v2")
