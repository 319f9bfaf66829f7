"""CIFAR-10 through tensorflow_datasets, shared by the examples and benchmarks.

Choose and calibrate on the training images; the test images are for the figures that are reported.
"""

from __future__ import annotations

import os

import keras
import numpy as np

import keras_filterprune as kfp


def load_cifar10(data_dir: str | None = None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """((x_train, y_train), (x_test, y_test)): uint8 images (n, 32, 32, 3) and integer labels (n,).

    Args:
        data_dir: folder of tensorflow_datasets; the environment variable KFP_DATA_DIR by default, else TFDS's own
            default, into which it downloads.
    """
    import tensorflow_datasets as tfds

    data_dir = data_dir or os.environ.get("KFP_DATA_DIR")
    splits = tfds.load("cifar10", data_dir=data_dir, download=data_dir is None, batch_size=-1, split=["train", "test"])
    train, test = ((s["image"].numpy(), s["label"].numpy()) for s in splits)
    return train, test


def augmented(x: np.ndarray, y: np.ndarray, batch: int, seed: int):
    """A `tf.data.Dataset` of shuffled float32 batches, flipped and shifted by up to 4 pixels as in the papers."""
    import tensorflow as tf

    def augment(image, label):
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_crop(tf.pad(image, [[4, 4], [4, 4], [0, 0]]), (32, 32, 3))
        return tf.cast(image, tf.float32), label

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    return data.map(augment, num_parallel_calls=2).batch(batch).prefetch(2)


def flipped_and_shifted(seed: int):
    """A function that flips images (n, 32, 32, 3) at random, and shifts them by up to 4 pixels."""
    generator = np.random.default_rng(seed)

    def augment(x: np.ndarray) -> np.ndarray:
        x = np.where(generator.random(len(x))[:, None, None, None] < 0.5, x[:, :, ::-1], x)
        x = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
        down, right = generator.integers(0, 9, (2, len(x), 1, 1))
        pixels = np.arange(32)
        return x[np.arange(len(x))[:, None, None], down + pixels[:, None], right + pixels]

    return augment


def fit(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    epochs: int,
    rate: float = 0.02,
    seed: int = 0,
    teacher: keras.Model | None = None,
    steps: int | None = None,
) -> None:
    """Train with SGD, momentum 0.9 and a cosine schedule, batches of 128, flips and crops.

    With a teacher, 70 % of the loss is the divergence from its logits at temperature 4. Steps are counted in place of
    epochs where they are given.
    """
    keras.utils.set_random_seed(seed)
    data = augmented(x, y, 128, seed)
    if steps is None:
        steps = epochs * -(-len(x) // 128)
    else:
        data, epochs = data.repeat().take(steps), 1
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(rate, steps), momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    student = model if teacher is None else kfp.distill(model, teacher, temperature=4.0, alpha=0.7)
    student.fit(data, epochs=epochs, shuffle=False, verbose=2)


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Share of images whose highest logit is the label."""
    return float(np.mean(model.predict(x.astype("float32"), batch_size=500, verbose=0).argmax(-1) == y))


def resnet20() -> keras.Model:
    """ResNet-20 (16-32-64 channels, 3 blocks a stage, 1x1 projections) on raw images in 0..255, 10 logits."""
    layers = keras.layers

    def unit(x, filters: int, strides: int = 1):
        x = layers.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.ReLU()(unit(x, 16))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            strides = 2 if stage and not block else 1
            shortcut = layers.Conv2D(filters, 1, strides, use_bias=False)(x) if strides == 2 else x
            y = unit(layers.ReLU()(unit(x, filters, strides)), filters)
            x = layers.ReLU()(layers.Add()([shortcut, y]))
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="resnet20")
