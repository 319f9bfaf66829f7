"""The audio networks of Singh and Plumbley (2022, 2023), and a small one of the same family for short clips."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers


def dcase21_net(
    shape: tuple[int, int, int] = (40, 500, 1),
    filters: Sequence[int] = (16, 16, 32),
    kernel: int = 7,
    pools: Sequence[tuple[int, int]] = ((5, 5), (4, 100)),
    classes: int = 10,
    name: str = "dcase21_net",
) -> keras.Model:
    """DCASE 2021 task 1A baseline: three convolutions, two dense layers; by default 46 246 parameters, 286.6 M MACs.

    Args:
        shape: (mel bands, frames, 1) of a log-mel spectrogram.
        filters: of the three convolutions.
        kernel: their size.
        pools: max pooling after the second and the third.
        classes: softmax outputs.
        name: the model's name.
    """
    inputs = keras.Input(shape, name="log_mel")
    x = inputs
    for number, width in enumerate(filters, 1):
        x = layers.Conv2D(width, kernel, padding="same", name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization(name=f"bn{number}")(x))
        if number > 1:
            x = layers.MaxPooling2D(pools[number - 2], name=f"pool{number}")(x)
            x = layers.Dropout(0.3, name=f"dropout{number}")(x)
    x = layers.Dense(100, activation="relu", name="dense1")(layers.Flatten(name="flatten")(x))
    x = layers.Dropout(0.3, name="dropout4")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="dense2")(x), name=name)


def ds_cnn(
    shape: tuple[int, int, int] = (40, 50, 1), filters: int = 64, blocks: int = 4, classes: int = 10
) -> keras.Model:
    """DS-CNN for keyword spotting (Zhang et al. 2017), the small one; logits.

    Args:
        shape: (mel bands, frames, 1) of a log-mel spectrogram.
        filters: of all convolutions.
        blocks: separable convolutions.
        classes: keywords.
    """

    def normalized(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input(shape, name="log_mel")
    x = normalized(layers.Conv2D(filters, (4, 10), 2, "same", use_bias=False)(inputs))
    for _ in range(blocks):
        x = normalized(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
        x = normalized(layers.Conv2D(filters, 1, use_bias=False)(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)), name="ds_cnn")


def vggish_net(classes: int = 10) -> keras.Model:
    """VGGish for scene classification on log-mel patches (96, 64, 1): 55 361 162 parameters, 847.1 M MACs."""
    inputs = keras.Input((96, 64, 1), name="log_mel")
    x, number = inputs, 0
    for stage in ((64,), (128,), (256, 256), (512, 512)):
        for width in stage:
            number += 1
            x = layers.Conv2D(
                width, 3, padding="same", activation="relu", kernel_regularizer="l2", name=f"conv{number}"
            )(x)
        x = layers.MaxPooling2D(2, padding="same", name=f"pool{number}")(x)
    x = layers.Flatten(name="flatten")(x)
    for number, width in enumerate((4096, 128), 1):
        x = layers.Dense(width, activation="relu", name=f"dense{number}")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="dense3")(x), name="vggish_net")
