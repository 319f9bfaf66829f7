"""Small networks around blocks that mix, gate and fuse channels: of classifiers, detectors, generators."""

import keras
import numpy as np
from example_networks import ConvBlock, called, classifier, network
from keras import layers, ops


def pooled(*steps):
    return classifier(*steps, layers.GlobalAveragePooling2D())


class ResponseNormalization(layers.Layer):
    """ConvNeXt V2: how strong a channel is against the others."""

    def build(self, shape):
        self.gamma = self.add_weight((1, 1, 1, shape[-1]), "zeros", name="gamma")
        self.beta = self.add_weight((1, 1, 1, shape[-1]), "zeros", name="beta")

    def call(self, x):
        strength = ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True) + 1e-6)
        relative = strength / (ops.mean(strength, axis=-1, keepdims=True) + 1e-6)
        return self.gamma * (x * relative) + self.beta + x


class ConvNextV2Block(layers.Layer):
    """Depthwise, wide, narrow."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.depthwise, self.norm = layers.DepthwiseConv2D(7, padding="same"), layers.LayerNormalization(epsilon=1e-6)
        self.up, self.response, self.down = layers.Dense(4 * width), ResponseNormalization(), layers.Dense(width)

    def call(self, x):
        y = ops.gelu(self.up(self.norm(self.depthwise(x))))
        return x + self.down(self.response(y))


@network
def convnext_v2():
    return pooled(layers.Conv2D(16, 4, 4), layers.LayerNormalization(), ConvNextV2Block(16), ConvNextV2Block(16))


class ChannelAndSpace(layers.Layer):
    """CBAM: gates of channels out of means and maxima, then gates of pixels out of both over channels."""

    def __init__(self, width, ratio=4, **kwargs):
        super().__init__(**kwargs)
        self.mlp = keras.Sequential([layers.Dense(width // ratio, activation="relu"), layers.Dense(width)])
        self.conv = layers.Conv2D(1, 7, padding="same", activation="sigmoid")

    def call(self, x):
        gates = ops.sigmoid(self.mlp(ops.mean(x, axis=(1, 2))) + self.mlp(ops.max(x, axis=(1, 2))))
        x = x * gates[:, None, None, :]
        both = [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)]
        return x * self.conv(ops.concatenate(both, axis=-1))


@network
def channel_and_space():
    return pooled(ConvBlock(16), ChannelAndSpace(16), ConvBlock(24, strides=2), ChannelAndSpace(24), ConvBlock(24))


class CoordinateAttention(layers.Layer):
    """Gates of rows and of columns, made together."""

    def __init__(self, width, hidden=8, **kwargs):
        super().__init__(**kwargs)
        self.reduce, self.norm = layers.Conv2D(hidden, 1), layers.BatchNormalization()
        self.rows, self.columns = layers.Conv2D(width, 1), layers.Conv2D(width, 1)

    def call(self, x):
        rows, columns = ops.mean(x, axis=2, keepdims=True), ops.mean(x, axis=1, keepdims=True)
        y = ops.concatenate([rows, ops.transpose(columns, (0, 2, 1, 3))], axis=1)
        rows, columns = ops.split(ops.hard_silu(self.norm(self.reduce(y))), [x.shape[1]], axis=1)
        columns = ops.transpose(columns, (0, 2, 1, 3))
        return x * ops.sigmoid(self.rows(rows)) * ops.sigmoid(self.columns(columns))


@network
def coordinate_attention():
    return pooled(ConvBlock(16), CoordinateAttention(16), ConvBlock(24, strides=2), CoordinateAttention(24))


class ShuffleUnit(layers.Layer):
    """ShuffleNet V2: one half of the channels is convolved, then both are interleaved."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        half = width // 2
        first, last = (layers.Conv2D(half, 1, activation="relu") for _ in range(2))
        middle = [layers.DepthwiseConv2D(3, padding="same"), layers.BatchNormalization()]
        self.branch = keras.Sequential([first, *middle, last])

    def call(self, x):
        left, right = ops.split(x, 2, axis=-1)
        y = ops.concatenate([left, self.branch(right)], axis=-1)
        _, height, width, channels = y.shape
        y = ops.transpose(ops.reshape(y, (-1, height, width, 2, channels // 2)), (0, 1, 2, 4, 3))
        return ops.reshape(y, (-1, height, width, channels))


@network
def shuffle():
    return pooled(ConvBlock(16), ShuffleUnit(16), ShuffleUnit(16), ConvBlock(24, strides=2), ShuffleUnit(24))


class Scales(layers.Layer):
    """Res2Net: every part of the channels also sees what was made of the part before."""

    def __init__(self, width, parts=4, **kwargs):
        super().__init__(**kwargs)
        self.parts, self.enter, self.leave = parts, ConvBlock(width, 1), ConvBlock(width, 1, activation="linear")
        self.convs = [ConvBlock(width // parts) for _ in range(parts - 1)]

    def call(self, x):
        first, *others = ops.split(self.enter(x), self.parts, axis=-1)
        made, before = [first], 0.0
        for part, conv in zip(others, self.convs, strict=True):
            before = conv(part + before)
            made.append(before)
        return ops.relu(x + self.leave(ops.concatenate(made, axis=-1)))


@network
def scales():
    return pooled(ConvBlock(16), Scales(16), Scales(16), ConvBlock(32, strides=2), Scales(32))


class SplitAttention(layers.Layer):
    """ResNeSt: groups of a convolution, weighed against each other."""

    def __init__(self, width, parts=2, **kwargs):
        super().__init__(**kwargs)
        self.width, self.parts = width, parts
        self.conv = layers.Conv2D(width * parts, 3, padding="same", groups=parts, activation="relu")
        self.reduce, self.expand = layers.Dense(width // 2, activation="relu"), layers.Dense(width * parts)

    def call(self, x):
        found = ops.split(self.conv(x), self.parts, axis=-1)
        weights = self.expand(self.reduce(ops.mean(sum(found), axis=(1, 2))))
        weights = ops.softmax(ops.reshape(weights, (-1, self.parts, self.width)), axis=1)
        return sum(y * weights[:, n, None, None, :] for n, y in enumerate(found))


@network
def split_attention():
    return pooled(ConvBlock(16), SplitAttention(16), ConvBlock(24, strides=2), SplitAttention(24), ConvBlock(24))


class Fusion(layers.Layer):
    """BiFPN: feature maps, weighed by numbers that are learned."""

    def build(self, shapes):
        self.weights_of_maps = self.add_weight((len(shapes),), "ones", name="weights")

    def call(self, maps):
        weights = ops.relu(self.weights_of_maps)
        return sum(weights[n] * x for n, x in enumerate(maps)) / (ops.sum(weights) + 1e-4)


class Detector(keras.Model):
    """A pyramid up and down again, and the same heads on every level."""

    def __init__(self, width=16):
        super().__init__()
        self.down = [ConvBlock(12), ConvBlock(16, strides=2), ConvBlock(24, strides=2)]
        self.lateral = [layers.Conv2D(width, 1) for _ in self.down]
        self.fuse, self.convs = (
            [Fusion() for _ in range(4)],
            [layers.SeparableConv2D(width, 3, padding="same") for _ in "abcd"],
        )
        self.up, self.pool = layers.UpSampling2D(), layers.MaxPooling2D(3, 2, "same")
        self.classes = [layers.Conv2D(width, 3, padding="same", activation="relu"), layers.Conv2D(9, 1)]
        self.boxes = [layers.Conv2D(width, 3, padding="same", activation="relu"), layers.Conv2D(12, 1)]

    def fused(self, step, maps):
        return self.convs[step](ops.silu(self.fuse[step](maps)))

    def call(self, x, training=None):
        maps = []
        for block, lateral in zip(self.down, self.lateral, strict=True):
            x = block(x, training=training)
            maps.append(lateral(x))
        low, middle, high = maps
        between = self.fused(0, [middle, self.up(high)])
        low = self.fused(1, [low, self.up(between)])
        middle = self.fused(2, [middle, between, self.pool(low)])
        levels = [low, middle, self.fused(3, [high, self.pool(middle)])]
        heads = {"classes": (self.classes, 3), "boxes": (self.boxes, 4)}
        return {name: self.of_all(levels, *head) for name, head in heads.items()}

    def of_all(self, levels, convs, size):
        made = [ops.reshape(convs[1](convs[0](x)), (ops.shape(x)[0], -1, size)) for x in levels]
        return ops.concatenate(made, axis=1)


@network
def detector():
    return called(Detector())


class Pyramid(layers.Layer):
    """DeepLab: convolutions of several reaches, and the mean of the image."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.convs = [layers.Conv2D(width, 3, dilation_rate=rate, padding="same") for rate in (1, 2, 4)]
        self.whole, self.out = layers.Conv2D(width, 1), ConvBlock(width, 1)

    def call(self, x):
        whole = ops.relu(self.whole(ops.average_pool(x, x.shape[1:3], padding="valid")))
        whole = ops.image.resize(whole, x.shape[1:3], interpolation="bilinear")
        return self.out(ops.concatenate([*(ops.relu(conv(x)) for conv in self.convs), whole], axis=-1))


class Gate(layers.Layer):
    """Attention U-Net: what comes from below says which pixels of a skip are looked at."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.below, self.skip, self.pixels = layers.Conv2D(width, 1), layers.Conv2D(width, 1, 2), layers.Conv2D(1, 1)
        self.up = layers.UpSampling2D()

    def call(self, x, below):
        pixels = ops.sigmoid(self.pixels(ops.relu(self.below(below) + self.skip(x))))
        return x * ops.repeat(self.up(pixels), x.shape[-1], axis=-1)


@network
def segmentation():
    inputs = keras.Input((32, 32, 3))
    first = ConvBlock(12)(inputs)
    below = Pyramid(16)(ConvBlock(24, strides=2)(first))
    x = layers.Concatenate()([layers.UpSampling2D(interpolation="bilinear")(below), Gate(8)(first, below)])
    return keras.Model(inputs, layers.Conv2D(4, 1)(ConvBlock(16)(x)))


class RestorationBlock(layers.Layer):
    """Restormer: channels attend to channels, then halves gate each other."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.qkv, self.up = layers.Conv2D(3 * width, 1), layers.Conv2D(4 * width, 1)
        self.depthwise = [layers.DepthwiseConv2D(3, padding="same") for _ in range(2)]
        self.out, self.down = layers.Conv2D(width, 1), layers.Conv2D(width, 1)

    def build(self, shape):
        self.temperature = self.add_weight((self.heads, 1, 1), "ones", name="temperature")

    def attended(self, x):
        _, height, width, channels = x.shape
        parts = ops.split(self.depthwise[0](self.qkv(x)), 3, axis=-1)
        shape = -1, height * width, self.heads, channels // self.heads
        q, k, v = (ops.transpose(ops.reshape(part, shape), (0, 2, 3, 1)) for part in parts)
        scores = ops.matmul(ops.normalize(q, axis=-1), ops.transpose(ops.normalize(k, axis=-1), (0, 1, 3, 2)))
        x = ops.matmul(ops.softmax(scores * self.temperature, axis=-1), v)
        return self.out(ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (-1, height, width, channels)))

    def call(self, x):
        x = x + self.attended(self.norms[0](x))
        left, right = ops.split(self.depthwise[1](self.up(self.norms[1](x))), 2, axis=-1)
        return x + self.down(ops.gelu(left) * right)


@network
def restoration():
    inputs = keras.Input((16, 16, 3))
    x = RestorationBlock(16, 4)(RestorationBlock(16, 2)(layers.Conv2D(16, 3, padding="same")(inputs)))
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same")(x) + inputs)


class Styled(layers.Layer):
    """StyleGAN: statistics of every channel are replaced by those of a style."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.style = layers.Conv2D(width, 3, padding="same"), layers.Dense(2 * width)

    def call(self, x, style):
        x = ops.leaky_relu(self.conv(x), 0.2)
        mean, variance = ops.moments(x, axes=(1, 2), keepdims=True)
        scale, shift = ops.split(self.style(style)[:, None, None, :], 2, axis=-1)
        return (x - mean) / ops.sqrt(variance + 1e-5) * (1 + scale) + shift


class StyledGenerator(keras.Model):
    """A constant, grown and styled by noise; pixels out of channels at the end."""

    def __init__(self):
        super().__init__()
        self.mapping = [layers.Dense(16, activation="leaky_relu") for _ in range(2)]
        self.blocks, self.up = [Styled(24), Styled(16), Styled(16)], layers.UpSampling2D()
        self.pixels = layers.Conv2D(12, 1, activation="tanh")

    def build(self, shape):
        self.first = self.add_weight((1, 4, 4, 24), "random_normal", name="first")

    def call(self, noise):
        style = noise
        for dense in self.mapping:
            style = dense(style)
        x = ops.tile(self.first, (ops.shape(noise)[0], 1, 1, 1))
        for number, block in enumerate(self.blocks):
            x = block(self.up(x) if number else x, style)
        x = ops.reshape(self.pixels(x), (-1, 16, 16, 2, 2, 3))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 32, 32, 3))


@network
def styled_generator():
    return called(StyledGenerator(), (16,))


class Conditioned(keras.Model):
    """FiLM: a second input scales and shifts the channels of the first; both come in a dictionary."""

    def __init__(self):
        super().__init__()
        self.convs, self.modulate = [ConvBlock(16), ConvBlock(24, strides=2)], [layers.Dense(32), layers.Dense(48)]
        self.hidden, self.scores = layers.Dense(12, activation="relu"), layers.Dense(5)

    def call(self, inputs, training=None):
        x, condition = inputs["image"], self.hidden(inputs["condition"])
        for conv, dense in zip(self.convs, self.modulate, strict=True):
            scale, shift = ops.split(dense(condition), 2, axis=-1)
            x = conv(x, training=training) * (1 + scale[:, None, None, :]) + shift[:, None, None, :]
        return {"scores": self.scores(ops.mean(ops.relu(x), (1, 2)))}


@network
def conditioned():
    model = Conditioned()
    model({"image": np.zeros((2, 32, 32, 3), "float32"), "condition": np.zeros((2, 6), "float32")})
    return model
