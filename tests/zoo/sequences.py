"""One-dimensional networks: signals, tokens and recurrent consumers."""

import keras
from keras import layers

from .base import register


def _conv(x, filters: int, name: str, kernel_size: int = 3, **kwargs):
    return layers.Conv1D(filters, kernel_size, padding="same", name=name, **kwargs)(x)


@register
def conv1d_residual():
    """Conv1D with BN, pooling, causal and dilated padding, a residual and a Conv1DTranspose."""
    inputs = keras.Input((16, 3), name="signal")
    x = layers.ReLU(name="act1")(layers.BatchNormalization(name="bn1")(_conv(inputs, 9, "conv1")))
    x = layers.MaxPooling1D(2, name="pool1")(x)
    y = layers.Conv1D(9, 2, padding="causal", dilation_rate=2, activation="relu", name="causal")(x)
    x = layers.AveragePooling1D(2, name="pool2")(layers.Add(name="join")([x, y]))
    x = layers.Conv1DTranspose(7, 3, strides=2, padding="same", activation="relu", name="up")(x)
    x = layers.UpSampling1D(2, name="repeat")(
        layers.Cropping1D((1, 2), name="crop")(layers.ZeroPadding1D(1, name="pad")(x))
    )
    x = layers.GlobalAveragePooling1D(name="gap")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="conv1d_residual")


@register
def conv1d_lstm():
    """A convolution feeds an LSTM that returns sequences, which feeds a GRU."""
    inputs = keras.Input((8, 3), name="signal")
    x = layers.BatchNormalization(name="bn1")(_conv(inputs, 9, "conv1", activation="relu"))
    x = layers.LSTM(7, return_sequences=True, name="lstm")(x)
    x = layers.GRU(6, name="gru")(_conv(x, 8, "conv2"))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="conv1d_lstm")


@register
def conv1d_bidirectional():
    """Bidirectional LSTM and GRU consumers after pooling, and a SimpleRNN."""
    inputs = keras.Input((8, 3), name="signal")
    x = layers.MaxPooling1D(2, name="pool")(_conv(inputs, 9, "conv1", activation="relu"))
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True, name="lstm"), name="bi_lstm")(x)
    a = layers.Bidirectional(layers.GRU(4, name="gru"), merge_mode="sum", name="bi_gru")(_conv(x, 7, "conv2"))
    b = layers.SimpleRNN(6, name="rnn")(_conv(x, 8, "conv3"))
    x = layers.Concatenate(name="cat")([a, b])
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="conv1d_bidirectional")


@register
def embedding_conv1d():
    """Token ids, an Embedding, and parallel convolutions of different widths (TextCNN)."""
    inputs = keras.Input((10,), dtype="int32", name="tokens")
    x = layers.SpatialDropout1D(0.1, name="drop")(layers.Embedding(8, 6, name="embedding")(inputs))
    parts = [_conv(x, 4 + size, f"conv{size}", size, activation="relu") for size in (2, 3, 4)]
    parts = [layers.GlobalMaxPooling1D(name=f"gmp{i}")(part) for i, part in enumerate(parts)]
    return keras.Model(
        inputs, layers.Dense(3, name="logits")(layers.Concatenate(name="cat")(parts)), name="embedding_conv1d"
    )


@register
def gated_tokens():
    """Tokens without recurrence: two Dense branches multiplied (a gated unit), added back to the embedding."""
    inputs = keras.Input((7,), dtype="int32", name="tokens")
    x = layers.Embedding(8, 10, name="embedding")(inputs)
    value = layers.Dense(13, name="value")(x)
    gate = layers.Dense(13, activation="silu", name="gate")(x)
    y = layers.Dense(10, name="down")(layers.Multiply(name="glu")([value, gate]))
    x = layers.GlobalAveragePooling1D(name="gap")(layers.Add(name="join")([x, y]))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="gated_tokens")


@register
def wavenet():
    """Gated dilated convolutions with residual and skip sums."""
    inputs = keras.Input((12, 2), name="signal")
    x, skips = _conv(inputs, 8, "stem"), []
    for i, width in enumerate([5, 7], start=1):
        a = _conv(x, width, f"filter{i}", dilation_rate=2**i, activation="tanh")
        b = _conv(x, width, f"gate{i}", dilation_rate=2**i, activation="sigmoid")
        y = layers.Multiply(name=f"gated{i}")([a, b])
        skips.append(_conv(y, 10, f"skip{i}", 1))
        x = layers.Add(name=f"join{i}")([x, _conv(y, 8, f"back{i}", 1)])
    x = layers.ReLU(name="act")(layers.Add(name="skips")(skips))
    return keras.Model(inputs, _conv(x, 3, "out", 1), name="wavenet")
