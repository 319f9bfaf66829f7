"""Gates, normalisations over channels, and token mixing."""

import keras
import numpy as np
from keras import layers, ops

from .base import conv, conv_bn, logits, register


@register
def se_reshape():
    """Squeeze-and-excitation with Dense layers and Reshape((1, 1, C))."""
    inputs = keras.Input((8, 6, 3), name="image")
    x = conv_bn(inputs, 12, "conv1")
    gate = layers.GlobalAveragePooling2D(name="squeeze")(x)
    gate = layers.Reshape((1, 1, 12), name="to_map")(gate)
    gate = layers.Dense(5, activation="relu", name="se_reduce")(gate)
    gate = layers.Dense(12, activation="sigmoid", name="se_expand")(gate)
    x = layers.Multiply(name="scale")([x, gate])
    return keras.Model(inputs, logits(conv_bn(x, 9, "conv2")), name="se_reshape")


@register
def se_keepdims():
    """Squeeze-and-excitation with keepdims pooling and 1x1 convolutions, inside a residual block."""
    inputs = keras.Input((8, 6, 3), name="image")
    trunk = conv_bn(inputs, 10, "stem")
    x = conv_bn(trunk, 10, "conv1", activation=None)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = conv(gate, 4, "se_reduce", kernel_size=1, activation="relu")
    gate = conv(gate, 10, "se_expand", kernel_size=1, activation="hard_sigmoid")
    x = layers.Multiply(name="scale")([gate, x])
    x = layers.ReLU(name="out")(layers.Add(name="join")([x, trunk]))
    return keras.Model(inputs, logits(conv_bn(x, 9, "conv2")), name="se_keepdims")


@register
def se_vector():
    """The gate stays a vector up to a broadcasting product, and ends in a flattening classifier."""
    inputs = keras.Input((4, 3, 3), name="image")
    x = conv_bn(inputs, 11, "conv1")
    gate = layers.Dense(11, activation="sigmoid", name="gate")(layers.GlobalMaxPooling2D(name="squeeze")(x))
    x = layers.Flatten(name="flatten")(x * gate[:, None, None, :])
    return keras.Model(inputs, layers.Dense(4, name="logits")(x), name="se_vector")


@register
def spatial_attention():
    """CBAM: mean and max over channels, a convolution, a sigmoid, and a product; removal is inexact."""
    inputs = keras.Input((8, 6, 3), name="image")
    x = conv_bn(inputs, 10, "conv1")
    mean, peak = ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)
    gate = conv(layers.Concatenate(name="cat")([mean, peak]), 1, "attention", kernel_size=5, activation="sigmoid")
    x = layers.Multiply(name="scale")([x, gate])
    return keras.Model(inputs, logits(conv_bn(x, 7, "conv2")), name="spatial_attention")


@register
def convnext():
    """Depthwise 7x7, LayerNormalization, Dense MLP with GELU, a constant layer scale and a residual."""
    scale = np.random.default_rng(0).uniform(0.2, 0.8, 10).astype("float32")
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.LayerNormalization(epsilon=1e-6, name="stem_ln")(conv(inputs, 10, "stem", kernel_size=2, strides=2))
    y = layers.DepthwiseConv2D(7, padding="same", name="depthwise")(x)
    y = layers.LayerNormalization(epsilon=1e-6, name="block_ln")(y)
    y = layers.Dense(17, activation="gelu", name="mlp_up")(y)
    y = layers.Dense(10, name="mlp_down")(y) * scale
    x = conv(layers.Add(name="join")([x, y]), 14, "down", kernel_size=2, strides=2)
    return keras.Model(inputs, logits(x), name="convnext")


@register
def group_norm():
    """GroupNormalization with two groups, with one group, and instance normalisation (groups=-1)."""
    inputs = keras.Input((8, 6, 3), name="image")
    x = layers.ReLU(name="act1")(layers.GroupNormalization(2, name="gn2")(conv(inputs, 12, "conv1")))
    x = layers.ReLU(name="act2")(layers.GroupNormalization(-1, name="instance")(conv(x, 9, "conv2")))
    x = layers.ReLU(name="act3")(layers.GroupNormalization(1, name="gn1")(conv(x, 10, "conv3")))
    return keras.Model(inputs, logits(conv(x, 7, "conv4")), name="group_norm")


@register
def mlp_mixer():
    """Patches to tokens; Dense over tokens between two Permutes, then Dense over channels."""
    inputs = keras.Input((8, 12, 3), name="image")
    x = layers.Reshape((6, 10), name="tokens")(conv(inputs, 10, "patches", kernel_size=4, strides=4))
    y = layers.Permute((2, 1), name="to_ct")(layers.LayerNormalization(name="ln1")(x))
    y = layers.Dense(6, name="token_down")(layers.Dense(9, activation="gelu", name="token_up")(y))
    x = layers.Add(name="join1")([x, layers.Permute((2, 1), name="to_tc")(y)])
    y = layers.Dense(14, activation="gelu", name="channel_up")(layers.LayerNormalization(name="ln2")(x))
    x = layers.Add(name="join2")([x, layers.Dense(10, name="channel_down")(y)])
    x = layers.GlobalAveragePooling1D(name="gap")(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(x), name="mlp_mixer")


@register
def multi_head_attention():
    """Self-attention over the positions of a feature map; "conv1" and whatever is added to the output are one group."""
    inputs = keras.Input((4, 4, 3), name="image")
    x = layers.Reshape((16, 10), name="tokens")(conv_bn(conv_bn(inputs, 7, "conv0"), 10, "conv1"))
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.LayerNormalization(name="ln")(layers.Add(name="join")([x, y]))
    y = layers.Dense(13, activation="relu", name="mlp_up")(x)
    x = layers.Add(name="join2")([x, layers.Dense(10, name="mlp_down")(y)])
    x = layers.GlobalAveragePooling1D(name="gap")(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(x), name="multi_head_attention")


@register
def dense_ranks():
    """Dense on rank-3 and rank-4 tensors, with a BN and a concatenation between."""
    inputs = keras.Input((6, 4, 3), name="image")
    x = layers.BatchNormalization(name="bn")(layers.Dense(9, activation="relu", name="fc4")(inputs))
    x = layers.Reshape((24, 9), name="tokens")(x)
    x = layers.Concatenate(name="cat")([layers.Dense(7, name="fc3_a")(x), layers.Dense(8, name="fc3_b")(x), x])
    x = layers.Dense(5, activation="relu", name="fc3_c")(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(layers.Flatten(name="flatten")(x)), name="dense_ranks")
