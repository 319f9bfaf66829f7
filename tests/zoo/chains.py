"""Networks where one layer follows another."""

import keras
import numpy as np
from keras import layers

from .base import conv, conv_bn, logits, register


@register
def plain_chain():
    """Three convolutions with bias and activation, then a classifier."""
    inputs = keras.Input((12, 10, 3), name="image")
    x = conv(inputs, 7, "conv1", activation="relu")
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = conv(x, 11, "conv2", strides=2, activation="relu")
    x = conv(x, 13, "conv3", kernel_size=1, activation="tanh")
    return keras.Model(inputs, logits(x), name="plain_chain")


@register
def bare_chain():
    """No batch normalization and no bias anywhere."""
    inputs = keras.Input((9, 8, 3), name="image")
    x = conv(inputs, 8, "conv1", use_bias=False)
    x = layers.ReLU(name="relu1")(x)
    x = conv(x, 6, "conv2", use_bias=False, dilation_rate=2, activation="relu")
    x = layers.GlobalMaxPooling2D(name="gmp")(x)
    return keras.Model(inputs, layers.Dense(4, use_bias=False, name="logits")(x), name="bare_chain")


@register
def conv_bn_relu_chain():
    """Conv + BN + ReLU blocks, one BN without scale and center, one dropout."""
    inputs = keras.Input((12, 12, 3), name="image")
    x = conv_bn(inputs, 9, "conv1")
    x = conv(x, 10, "conv2")
    x = layers.BatchNormalization(scale=False, center=False, name="conv2_bn")(x)
    x = layers.SpatialDropout2D(0.2, name="drop")(layers.ReLU(6.0, name="conv2_act")(x))
    x = conv_bn(x, 14, "conv3", strides=2)
    return keras.Model(inputs, logits(x), name="conv_bn_relu_chain")


@register
def bn_before_conv():
    """Batch normalization on the image itself, and one between ReLU and a zero-padded "valid" convolution."""
    inputs = keras.Input((10, 10, 3), name="image")
    x = layers.BatchNormalization(name="input_bn")(inputs)
    x = conv(x, 8, "conv1", activation="relu")
    x = layers.BatchNormalization(name="mid_bn")(x)
    x = layers.ZeroPadding2D(((1, 0), (0, 1)), name="zero_pad")(x)
    x = layers.Conv2D(11, 3, strides=2, name="conv2")(x)
    x = layers.AveragePooling2D(2, name="avg_pool")(x)
    return keras.Model(inputs, logits(x), name="bn_before_conv")


@register
def flatten_dense():
    """Flatten over 5x3 positions (H != W), then two dense layers with BN between."""
    inputs = keras.Input((10, 6, 3), name="image")
    x = conv(inputs, 7, "conv1", activation="relu", strides=2)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(12, name="fc1")(x)
    x = layers.BatchNormalization(name="fc1_bn")(x)
    x = layers.Dropout(0.3, name="drop")(layers.ReLU(name="fc1_act")(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="probs")(x), name="flatten_dense")


@register
def flatten_after_permute():
    """The channel axis is first, then second, when the tensor is flattened."""
    inputs = keras.Input((10, 6, 3), name="image")
    x = conv(inputs, 7, "conv1", activation="relu", strides=2)
    a = layers.Flatten(name="flatten_chw")(layers.Permute((3, 1, 2), name="to_chw")(x))
    b = layers.Reshape((-1,), name="flatten_wch")(layers.Permute((2, 3, 1), name="to_wch")(x))
    x = layers.Concatenate(name="both")([a, layers.Dense(9, activation="relu", name="fc_b")(b)])
    return keras.Model(inputs, layers.Dense(4, name="logits")(x), name="flatten_after_permute")


@register
def activations():
    """Activation layers with and without per-channel weights."""
    inputs = keras.Input((8, 6, 3), name="image")
    x = layers.PReLU(shared_axes=[1, 2], name="prelu_shared")(conv(inputs, 7, "conv1"))
    x = layers.PReLU(name="prelu_full")(conv(x, 9, "conv2", strides=2))
    x = layers.LeakyReLU(negative_slope=0.2, name="leaky")(conv(x, 6, "conv3"))
    x = layers.Activation("gelu", name="gelu")(conv(x, 10, "conv4"))
    x = layers.ELU(name="elu")(conv(x, 8, "conv5"))
    x = layers.PReLU(shared_axes=[1, 2, 3], name="prelu_scalar")(conv(x, 11, "conv6", activation="silu"))
    return keras.Model(inputs, logits(x), name="activations")


@register
def preprocessing_inside():
    """Rescaling and Normalization layers: on the image, and Normalization on hidden channels."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Rescaling(0.5, offset=0.1, name="rescale")(inputs)
    x = layers.Normalization(mean=[0.1, 0.2, -0.3], variance=[1.0, 0.5, 2.0], name="normalize")(x)
    x = conv_bn(x, 9, "conv1")
    mean, variance = rng.normal(size=9).tolist(), rng.uniform(0.5, 2.0, size=9).tolist()
    x = layers.Normalization(mean=mean, variance=variance, name="normalize_hidden")(x)
    x = layers.Rescaling(2.0, name="rescale_hidden")(conv_bn(x, 7, "conv2"))
    return keras.Model(inputs, logits(x), name="preprocessing_inside")


@register
def mixed_precision():
    """Layers computing in float16 between float32 ones."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv(inputs, 9, "conv1", dtype="mixed_float16", activation="relu")
    x = layers.BatchNormalization(name="bn1", dtype="mixed_float16")(x)
    x = conv(x, 11, "conv2", dtype="mixed_float16")
    x = conv_bn(x, 7, "conv3")
    return keras.Model(inputs, logits(x), name="mixed_precision")


@register
def frozen_layers():
    """Some layers are not trainable; regularizers and constraints are set too."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv(
        inputs, 9, "conv1", kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(9.0), trainable=False
    )
    x = layers.BatchNormalization(name="bn1", trainable=False)(x)
    x = conv(layers.ReLU(name="relu1")(x), 11, "conv2", bias_regularizer="l1")
    x = layers.BatchNormalization(name="bn2")(x)
    return keras.Model(inputs, logits(x), name="frozen_layers")


@register
def dense_mlp():
    """Dense layers on a vector, with a skip; no space at all."""
    inputs = keras.Input((6,), name="features")
    x = layers.Dense(12, activation="relu", name="fc1")(inputs)
    y = layers.Dense(9, name="fc2")(x)
    y = layers.Dense(12, name="fc3")(layers.BatchNormalization(name="fc2_bn")(y))
    x = layers.Add(name="join")([x, y])
    return keras.Model(
        inputs, layers.Dense(3, name="logits")(layers.UnitNormalization(name="unit")(x)), name="dense_mlp"
    )
