"""Small networks of images, written the way that code examples are: subclassed models and layers made of layers.

`NETWORKS` maps names to functions that build one each, with random weights; the other files `example_*.py` add theirs.
"""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

SIDE, WIDTH, CLASSES = 32, 16, 5
NETWORKS: dict[str, Callable[[], keras.Model]] = {}


def network(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    NETWORKS[build.__name__] = build
    return build


def called(model: keras.Model, *shapes: tuple[int, ...], dtype: str = "float32") -> keras.Model:
    """A subclassed model, called once on zeros."""
    inputs = [np.zeros((2, *shape), dtype) for shape in shapes or [(SIDE, SIDE, 3)]]
    model(inputs[0] if len(inputs) == 1 else inputs)
    return model


def classifier(*steps: Callable, side: int = SIDE) -> keras.Model:
    """A functional model of images: the steps, then classes."""
    inputs = x = keras.Input((side, side, 3))
    for step in steps:
        x = step(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


class ConvBlock(layers.Layer):
    """Convolution, batch normalization, activation."""

    def __init__(self, filters, size=3, strides=1, activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()
        self.activation = layers.Activation(activation)

    def call(self, x, training=None):
        return self.activation(self.norm(self.conv(x), training=training))


# ------------------------------------------------------------------------------------------------------ convolutions


class UNet(keras.Model):
    """Down, across and up again."""

    def __init__(self, widths=(8, 16, 24)):
        super().__init__()
        self.down = [[ConvBlock(w), ConvBlock(w)] for w in widths]
        self.up = [layers.Conv2DTranspose(w, 2, 2, padding="same") for w in widths[-2::-1]]
        self.merge = [[ConvBlock(w), ConvBlock(w)] for w in widths[-2::-1]]
        self.pool = layers.MaxPooling2D()
        self.masks = layers.Conv2D(1, 1, activation="sigmoid")

    def call(self, x, training=None):
        skips = []
        for number, blocks in enumerate(self.down):
            x = self.pool(x) if number else x
            for block in blocks:
                x = block(x, training=training)
            skips.append(x)
        for grow, blocks, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = ops.concatenate([skip, grow(x)], axis=-1)
            for block in blocks:
                x = block(x, training=training)
        return self.masks(x)


@network
def unet():
    return called(UNet())


class SqueezeExcite(layers.Layer):
    """Gates of channels."""

    def __init__(self, ratio=4, **kwargs):
        super().__init__(**kwargs)
        self.ratio = ratio

    def build(self, shape):
        self.reduce = layers.Dense(shape[-1] // self.ratio, activation="relu")
        self.expand = layers.Dense(shape[-1], activation="sigmoid")
        self.reduce.build((None, shape[-1]))
        self.expand.build((None, shape[-1] // self.ratio))

    def call(self, x):
        gates = self.expand(self.reduce(ops.mean(x, axis=(1, 2))))
        return x * gates[:, None, None, :]


class Residual(layers.Layer):
    """Two convolutions, gates, a shortcut that is projected where the width changes."""

    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = ConvBlock(filters, strides=strides), ConvBlock(filters, activation="linear")
        self.gates = SqueezeExcite()
        self.shortcut = ConvBlock(filters, 1, strides, "linear") if strides > 1 else None

    def call(self, x, training=None):
        y = self.gates(self.second(self.first(x, training=training), training=training))
        return ops.relu(y + (x if self.shortcut is None else self.shortcut(x, training=training)))


@network
def residual_squeeze_excite():
    return classifier(ConvBlock(16), Residual(16), Residual(32, 2), Residual(32), layers.GlobalAveragePooling2D())


class Separable(layers.Layer):
    """A depthwise and a pointwise convolution."""

    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.depthwise = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)
        self.pointwise = layers.Conv2D(filters, 1, use_bias=False)
        self.norms = [layers.BatchNormalization(), layers.BatchNormalization()]

    def call(self, x):
        x = ops.relu6(self.norms[0](self.depthwise(x)))
        return ops.relu6(self.norms[1](self.pointwise(x)))


@network
def depthwise_separable():
    return classifier(ConvBlock(16, strides=2), Separable(24), Separable(32, 2), layers.GlobalMaxPooling2D())


class Mixer(layers.Layer):
    """ConvMixer: depthwise with a shortcut, then pointwise."""

    def __init__(self, filters, size, **kwargs):
        super().__init__(**kwargs)
        self.depthwise, self.pointwise = layers.DepthwiseConv2D(size, padding="same"), layers.Conv2D(filters, 1)
        self.first, self.second = layers.BatchNormalization(), layers.BatchNormalization()

    def call(self, x):
        x = x + self.first(ops.gelu(self.depthwise(x)))
        return self.second(ops.gelu(self.pointwise(x)))


@network
def convmixer():
    stem = layers.Conv2D(WIDTH, 4, 4, activation="gelu")
    return classifier(stem, Mixer(WIDTH, 5), Mixer(WIDTH, 5), layers.GlobalAveragePooling2D())


class SuperResolution(keras.Model):
    """EDSR: residual blocks without normalization, then pixels out of channels."""

    def __init__(self, filters=16, blocks=2):
        super().__init__()
        self.stem = layers.Conv2D(filters, 3, padding="same")
        self.first = [layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(blocks)]
        self.second = [layers.Conv2D(filters, 3, padding="same") for _ in range(blocks)]
        self.grow, self.image = layers.Conv2D(4 * filters, 3, padding="same"), layers.Conv2D(3, 3, padding="same")

    def shuffle(self, x):
        batch, height, width, channels = ops.shape(x)
        x = ops.transpose(ops.reshape(x, (batch, height, width, 2, 2, channels // 4)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, 2 * height, 2 * width, channels // 4))

    def call(self, images):
        x = skip = self.stem(images / 255.0)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + 0.1 * second(first(x))
        return ops.clip(255.0 * self.image(self.shuffle(self.grow(x + skip))), 0.0, 255.0)


@network
def edsr():
    return called(SuperResolution())


class Autoencoder(keras.Model):
    """An encoder and a decoder, models themselves."""

    def __init__(self):
        super().__init__()
        down = [layers.Conv2D(w, 3, 2, padding="same", activation="relu") for w in (12, 16)]
        up = [layers.Conv2DTranspose(w, 3, 2, padding="same", activation="relu") for w in (16, 12)]
        self.encoder = keras.Sequential(down)
        self.decoder = keras.Sequential([*up, layers.Conv2D(3, 3, padding="same", activation="sigmoid")])

    def call(self, x):
        return self.decoder(self.encoder(x))


@network
def autoencoder():
    return called(Autoencoder())


class Sampling(layers.Layer):
    """Draws from the distribution whose mean and logarithm of the variance are given."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        mean, variance = inputs
        return mean + ops.exp(0.5 * variance) * keras.random.normal(ops.shape(mean), seed=self.seeds)


class VariationalAutoencoder(keras.Model):
    """The networks of a VAE, with the training step that its class brings."""

    def __init__(self, latent=4):
        super().__init__()
        self.convs = [layers.Conv2D(w, 3, 2, padding="same", activation="relu") for w in (12, 16)]
        self.flat, self.hidden = layers.Flatten(), layers.Dense(16, activation="relu")
        self.mean, self.variance, self.sampling = layers.Dense(latent), layers.Dense(latent), Sampling()
        self.wide, self.image = layers.Dense(8 * 8 * 16, activation="relu"), layers.Reshape((8, 8, 16))
        self.ups = [layers.Conv2DTranspose(w, 3, 2, padding="same", activation="relu") for w in (16, 12)]
        self.pixels = layers.Conv2DTranspose(3, 3, padding="same", activation="sigmoid")

    def call(self, x):
        for conv in self.convs:
            x = conv(x)
        x = self.hidden(self.flat(x))
        z = self.sampling([self.mean(x), self.variance(x)])
        x = self.image(self.wide(z))
        for up in self.ups:
            x = up(x)
        return self.pixels(x)

    def train_step(self, data):
        raise NotImplementedError("trained by a loss of its own")


@network
def variational_autoencoder():
    return called(VariationalAutoencoder())


class Generator(keras.Model):
    """DCGAN: noise to images."""

    def __init__(self):
        super().__init__()
        self.dense, self.shape = layers.Dense(8 * 8 * 24, use_bias=False), layers.Reshape((8, 8, 24))
        self.ups = [layers.Conv2DTranspose(w, 4, 2, padding="same", use_bias=False) for w in (16, 12)]
        self.norms = [layers.BatchNormalization() for _ in range(3)]
        self.image = layers.Conv2D(3, 5, padding="same", activation="tanh")

    def call(self, noise, training=False):
        x = self.shape(ops.leaky_relu(self.norms[0](self.dense(noise), training=training)))
        for up, norm in zip(self.ups, self.norms[1:], strict=True):
            x = ops.leaky_relu(norm(up(x), training=training), 0.2)
        return self.image(x)


@network
def gan_generator():
    return called(Generator(), (16,))


class Discriminator(keras.Model):
    """Images to a score."""

    def __init__(self):
        super().__init__()
        self.convs = [layers.Conv2D(w, 4, 2, padding="same") for w in (12, 16, 24)]
        self.drop, self.flat, self.score = layers.Dropout(0.3), layers.Flatten(), layers.Dense(1)

    def call(self, x, training=False):
        for conv in self.convs:
            x = self.drop(keras.activations.leaky_relu(conv(x), negative_slope=0.2), training=training)
        return self.score(self.flat(x))


@network
def gan_discriminator():
    return called(Discriminator())


class Siamese(keras.Model):
    """One embedding for two images, and how far apart they are."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.Sequential(
            [ConvBlock(12), layers.MaxPooling2D(), ConvBlock(16), layers.GlobalAveragePooling2D(), layers.Dense(10)]
        )
        self.distance = layers.Lambda(lambda pair: ops.sqrt(ops.sum(ops.square(pair[0] - pair[1]), -1, True) + 1e-7))
        self.score = layers.Dense(1, activation="sigmoid")

    def call(self, pair):
        return self.score(self.distance([self.embedding(pair[0]), self.embedding(pair[1])]))


@network
def siamese():
    return called(Siamese(), (SIDE, SIDE, 3), (SIDE, SIDE, 3))


class Involution(layers.Layer):
    """Kernels that are made at every position."""

    def __init__(self, channels, groups=4, size=3, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.groups, self.size = channels, groups, size
        self.reduce = keras.Sequential([layers.Conv2D(channels // 2, 1), layers.BatchNormalization(), layers.ReLU()])
        self.span = layers.Conv2D(size * size * groups, 1)

    def call(self, x):
        _, height, width, _ = x.shape
        kernels = ops.reshape(self.span(self.reduce(x)), (-1, height, width, self.size**2, 1, self.groups))
        patches = ops.image.extract_patches(x, self.size, strides=1, padding="same")
        shape = (-1, height, width, self.size**2, self.channels // self.groups, self.groups)
        return ops.reshape(ops.sum(kernels * ops.reshape(patches, shape), axis=3), (-1, height, width, self.channels))


@network
def involution():
    pool = layers.GlobalAveragePooling2D()
    return classifier(ConvBlock(16), layers.MaxPooling2D(), Involution(16), layers.ReLU(), ConvBlock(16), pool)
