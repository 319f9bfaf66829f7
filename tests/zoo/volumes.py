"""Three-dimensional networks, and two-dimensional ones spread over time."""

import keras
from keras import layers

from .base import register


@register
def conv3d():
    """Conv3D with BN, pooling, a residual and Conv3DTranspose, ending in a flattening classifier."""
    inputs = keras.Input((4, 6, 4, 2), name="volume")
    x = layers.Conv3D(7, 3, padding="same", use_bias=False, name="conv1")(inputs)
    x = layers.ReLU(name="act1")(layers.BatchNormalization(name="bn1")(x))
    y = layers.Conv3D(7, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.AveragePooling3D(2, name="pool")(layers.Add(name="join")([x, y]))
    x = layers.Conv3DTranspose(5, 2, strides=(1, 1, 2), activation="relu", name="up")(x)
    x = layers.Flatten(name="flatten")(layers.MaxPooling3D((2, 1, 1), name="pool2")(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="conv3d")


@register
def time_distributed():
    """TimeDistributed Conv2D, BatchNormalization, pooling and Dense, then an LSTM."""
    inputs = keras.Input((3, 6, 4, 2), name="clip")
    x = layers.TimeDistributed(layers.Conv2D(7, 3, padding="same", name="conv"), name="td_conv")(inputs)
    x = layers.TimeDistributed(layers.BatchNormalization(name="bn"), name="td_bn")(x)
    x = layers.ReLU(name="act")(x)
    x = layers.TimeDistributed(layers.Conv2D(9, 3, strides=2, activation="relu", name="conv"), name="td_conv2")(x)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D(name="gap"), name="td_gap")(x)
    x = layers.TimeDistributed(layers.Dense(8, activation="relu", name="fc"), name="td_fc")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.LSTM(6, name="lstm")(x)), name="time_distributed")


@register
def conv_lstm():
    """A ConvLSTM2D between convolutions over time."""
    inputs = keras.Input((3, 6, 4, 2), name="clip")
    x = layers.TimeDistributed(layers.Conv2D(7, 1, activation="relu", name="conv"), name="td_conv")(inputs)
    x = layers.ConvLSTM2D(5, 3, padding="same", name="conv_lstm")(x)
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="conv_lstm")
