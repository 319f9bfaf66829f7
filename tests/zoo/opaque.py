"""Networks with operations through which channels must not be removed; other layers still can be pruned."""

import keras
from keras import layers, ops

from .base import conv, conv_bn, logits, register


@keras.saving.register_keras_serializable(package="zoo")
def neighbour_sum(x):
    """An activation that mixes neighbouring channels."""
    return x + ops.roll(x, 1, axis=-1)


@register
def lambda_layer():
    """A Lambda layer, whose function is known by what it does to numbers: nothing is pinned by it."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = conv_bn(conv_bn(inputs, 9, "conv1"), 7, "conv2")
    x = layers.Lambda(lambda t: t * t, output_shape=(6, 6, 7), name="square")(x)
    return keras.Model(inputs, logits(conv_bn(x, 8, "conv3")), name="lambda_layer")


@register
def hidden_softmax():
    """Softmax over hidden channels: as a layer, an activation and an op (pinned: "conv1", "conv3", "conv4")."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = 5.0 * layers.Softmax(name="softmax_layer")(conv_bn(inputs, 9, "conv1"))
    x = 5.0 * conv(conv_bn(x, 7, "conv2"), 8, "conv3", activation="softmax")
    x = 5.0 * ops.softmax(conv_bn(x, 10, "conv4"), axis=-1)
    return keras.Model(inputs, logits(conv_bn(x, 6, "conv5")), name="hidden_softmax")


@register
def spatial_softmax():
    """Softmax over space leaves channels independent: nothing is pinned by it."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = 20.0 * layers.Softmax(axis=[1, 2], name="softmax_layer")(conv_bn(inputs, 9, "conv1"))
    return keras.Model(inputs, logits(conv_bn(x, 8, "conv2")), name="spatial_softmax")


@register
def custom_activation():
    """Activation functions of the user's own that mix channels (pinned: "conv2", "conv3")."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = conv(conv_bn(inputs, 9, "conv1"), 7, "conv2", activation=neighbour_sum)
    x = layers.Activation(neighbour_sum, name="mix")(conv(x, 8, "conv3"))
    return keras.Model(inputs, logits(conv_bn(x, 10, "conv4")), name="custom_activation")


@register
def channel_recurrence():
    """Space and channels swap roles: an LSTM and a Dense run over the channel axis (pinned: "conv2")."""
    inputs = keras.Input((6, 4, 3), name="image")
    x = conv_bn(conv_bn(inputs, 9, "conv1"), 7, "conv2")
    x = layers.Permute((2, 1), name="to_ct")(layers.Reshape((24, 7), name="tokens")(x))
    x = layers.LSTM(6, name="lstm")(layers.Dense(5, activation="relu", name="fc")(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="channel_recurrence")


@register
def channel_sort():
    """Sorting and cumulating over channels; taking the norm over them is inexact (pinned: "conv2", "conv3")."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = conv_bn(inputs, 9, "conv1")
    a, b, c = ops.sort(conv(x, 7, "conv2"), axis=-1), ops.cumsum(conv(x, 8, "conv3"), axis=-1), conv(x, 10, "conv4")
    x = ops.concatenate([a, b, ops.normalize(c, axis=-1)], axis=-1)
    return keras.Model(inputs, logits(conv_bn(x, 6, "conv5")), name="channel_sort")


@register
def unusual_axes():
    """A BN whose weights are indexed by rows, and a LayerNormalization over all axes at once."""
    inputs = keras.Input((6, 4, 3), name="image")
    x = layers.BatchNormalization(axis=1, name="row_bn")(conv(inputs, 9, "conv1"))
    x = layers.LayerNormalization(axis=[1, 2, 3], name="full_ln")(conv(x, 7, "conv2"))
    return keras.Model(inputs, logits(conv_bn(x, 8, "conv3")), name="unusual_axes")
