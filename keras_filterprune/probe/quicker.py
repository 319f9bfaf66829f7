"""What operations compute, in inference, by quicker means than their own where Keras' take longer than they need."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.handlers.activation import named
from keras_filterprune.handlers.registry import keras_class, keras_name, linear_of
from keras_filterprune.probe.masks import mask_of

L = keras.layers


def computed(op: Any, args: tuple, kwargs: dict) -> Any:
    """What an operation computes in inference, to rounding; gradients go through it."""
    quick = None
    if args and keras_class(op) is not None and getattr(op, "data_format", "channels_last") == "channels_last":
        quick = _product(op, args[0]) if getattr(op, "groups", 1) > 1 else _by_tensorflow(op, args[0])
    return op(*args, **kwargs) if quick is None else quick


def _product(op: Any, x: Any) -> Any:
    """A grouped convolution by what it multiplies, where that is known."""
    linear = linear_of(op)
    if linear is None or linear.product is None:
        return None
    x, kernel, bias = (
        value if value is None else keras.ops.cast(value, op.compute_dtype)
        for value in (x, linear.summed, linear.weight(linear.bias))
    )
    y = linear.product(x, kernel)
    y = y if bias is None else y + bias
    return y if linear.activation is None else linear.activation(y)


def _by_tensorflow(op: Any, x: Any) -> Any:
    """Outside of `tf.function` Keras' own take two to four times as long on TensorFlow, with gradients as without."""
    quick = _quick(op)
    if quick is None or keras.config.backend() != "tensorflow" or mask_of(x) is not None:
        return None
    dtype = keras.backend.standardize_dtype(x.dtype)
    return quick(op, x) if dtype == getattr(op, "compute_dtype", dtype) == "float32" else None


def _quick(op: Any) -> Any:
    # A class that is registered like Keras' own computes as that does where it has no `call` of its own.
    call = type(op).call
    if call is L.BatchNormalization.call:
        return _normalised
    if call is L.GlobalAveragePooling2D.call:
        return _averaged
    silu = named(op.activation) == "silu" if call is L.Activation.call else keras_name(op) == "Silu"
    return _silu if silu else None


def _normalised(op: Any, x: Any) -> Any:
    import tensorflow as tf

    if len(x.shape) != 4 or op.axis not in (-1, 3):
        return None
    mean, variance = op.moving_mean.value, op.moving_variance.value
    scale, offset = (
        tf.fill(mean.shape, default) if weight is None else weight.value
        for weight, default in ((op.gamma, 1.0), (op.beta, 0.0))
    )
    return tf.compat.v1.nn.fused_batch_norm(x, scale, offset, mean, variance, op.epsilon, is_training=False)[0]


def _averaged(op: Any, x: Any) -> Any:
    y = keras.ops.average_pool(x, x.shape[1:3], 1, "valid", "channels_last")
    return y if op.keepdims else keras.ops.reshape(y, (-1, x.shape[-1]))


def _silu(op: Any, x: Any) -> Any:
    # TensorFlow's has a gradient of its own, for a factor that nobody sets.
    return x * keras.ops.sigmoid(x)
