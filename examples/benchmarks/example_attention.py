"""Small networks of images and text with attention: as layers of Keras, and written by hand."""

import keras
import numpy as np
from example_networks import CLASSES, SIDE, WIDTH, ConvBlock, Separable, called, classifier, network
from keras import layers, ops

WORDS, LENGTH = 50, 12


class Mlp(layers.Layer):
    """Two dense layers."""

    def __init__(self, hidden, width, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.up, self.down, self.drop = layers.Dense(hidden), layers.Dense(width), layers.Dropout(rate)

    def call(self, x, training=None):
        return self.drop(self.down(self.drop(ops.gelu(self.up(x)), training=training)), training=training)


class Encoder(layers.Layer):
    """A transformer block around attention of Keras."""

    def __init__(self, width, heads, hidden, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(heads, width // heads, dropout=0.1)
        self.mlp = Mlp(hidden, width)
        self.norms = [layers.LayerNormalization(epsilon=1e-6), layers.LayerNormalization(epsilon=1e-6)]

    def call(self, x, training=None):
        y = self.norms[0](x)
        x = x + self.attention(y, y, training=training)
        return x + self.mlp(self.norms[1](x), training=training)


# ------------------------------------------------------------------------------------------------------------- images


class Patches(layers.Layer):
    """Images cut into squares."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, images):
        batch, height, width, channels = ops.shape(images)
        patches = ops.image.extract_patches(images, size=self.size)
        count = (height // self.size) * (width // self.size)
        return ops.reshape(patches, (batch, count, self.size * self.size * channels))


class PatchEncoder(layers.Layer):
    """A projection, a class token and positions."""

    def __init__(self, count, width, **kwargs):
        super().__init__(**kwargs)
        self.count, self.width = count, width
        self.projection, self.positions = layers.Dense(width), layers.Embedding(count + 1, width)

    def build(self, shape):
        self.token = self.add_weight((1, 1, self.width), "random_normal", name="token")

    def call(self, patches):
        token = ops.broadcast_to(self.token, (ops.shape(patches)[0], 1, self.width))
        x = ops.concatenate([token, self.projection(patches)], axis=1)
        return x + self.positions(ops.expand_dims(ops.arange(self.count + 1), 0))


class VisionTransformer(keras.Model):
    """Patches, blocks, the class token."""

    def __init__(self, width=WIDTH, depth=2):
        super().__init__()
        self.patches, self.encoder = Patches(8), PatchEncoder(16, width)
        self.blocks = [Encoder(width, 4, 32) for _ in range(depth)]
        self.norm, self.scores = layers.LayerNormalization(epsilon=1e-6), layers.Dense(CLASSES)

    def call(self, images, training=None):
        x = self.encoder(self.patches(images))
        for block in self.blocks:
            x = block(x, training=training)
        return self.scores(self.norm(x)[:, 0])


@network
def vision_transformer():
    return called(VisionTransformer())


class StochasticDepth(layers.Layer):
    """Leaves out a block now and then, in training."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seeds = rate, keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if training:
            shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
            keep = ops.floor(1 - self.rate + keras.random.uniform(shape, seed=self.seeds))
            return x / (1 - self.rate) * keep
        return x

    def get_config(self):
        return super().get_config() | {"rate": self.rate}


class CompactTransformer(keras.Model):
    """CCT: tokens by convolutions, pooling over the sequence by weights that are learned."""

    def __init__(self, width=WIDTH, depth=2):
        super().__init__()
        self.tokenizer = [layers.Conv2D(w, 3, padding="same", use_bias=False, activation="relu") for w in (8, width)]
        self.pool = layers.MaxPooling2D(3, 2, padding="same")
        self.attentions = [layers.MultiHeadAttention(2, width // 2) for _ in range(depth)]
        self.mlps = [Mlp(32, width) for _ in range(depth)]
        self.norms = [layers.LayerNormalization() for _ in range(2 * depth + 1)]
        self.drops = [StochasticDepth(rate) for rate in np.linspace(0, 0.1, depth)]
        self.weighing, self.scores = layers.Dense(1), layers.Dense(CLASSES)
        self.positions = layers.Embedding(64, width)

    def call(self, x, training=None):
        for conv in self.tokenizer:
            x = self.pool(conv(x))
        x = ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))
        x = x + self.positions(ops.arange(x.shape[1]))
        for n, (attention, mlp, drop) in enumerate(zip(self.attentions, self.mlps, self.drops, strict=True)):
            y = self.norms[2 * n](x)
            x = x + drop(attention(y, y), training=training)
            x = x + drop(mlp(self.norms[2 * n + 1](x), training=training), training=training)
        x = self.norms[-1](x)
        weights = ops.softmax(self.weighing(x), axis=1)
        return self.scores(ops.squeeze(ops.matmul(ops.transpose(weights, (0, 2, 1)), x), 1))


@network
def compact_transformer():
    return called(CompactTransformer())


class MobileVitBlock(layers.Layer):
    """Convolutions around a transformer over the pixels of equal place in their patches."""

    def __init__(self, filters, width, patch=2, **kwargs):
        super().__init__(**kwargs)
        self.patch, self.width = patch, width
        self.local = [ConvBlock(width, activation="swish"), ConvBlock(width, 1, activation="swish")]
        self.blocks = [Encoder(width, 2, 2 * width) for _ in range(2)]
        self.back, self.merge = ConvBlock(filters, 1, activation="swish"), ConvBlock(filters, activation="swish")

    def call(self, x, training=None):
        y = self.local[1](self.local[0](x))
        _, height, width, _ = y.shape
        count = height * width // self.patch**2
        y = ops.reshape(y, (-1, self.patch**2, count, self.width))
        for block in self.blocks:
            y = block(y, training=training)
        y = self.back(ops.reshape(y, (-1, height, width, self.width)))
        return self.merge(ops.concatenate([x, y], axis=-1))


@network
def mobilevit():
    steps = ConvBlock(8, strides=2), Separable(WIDTH, 2), MobileVitBlock(WIDTH, 24), layers.GlobalAveragePooling2D()
    return classifier(*steps)


class WindowAttention(layers.Layer):
    """Swin: attention in windows, queries, keys and values in one, with a bias by relative position."""

    def __init__(self, width, window, heads, **kwargs):
        super().__init__(**kwargs)
        self.window, self.heads, self.scale = window, heads, (width // heads) ** -0.5
        self.qkv, self.projection, self.drop = layers.Dense(3 * width), layers.Dense(width), layers.Dropout(0.1)

    def build(self, shape):
        w = self.window
        self.table = self.add_weight(((2 * w - 1) ** 2, self.heads), "random_normal", name="table")
        places = np.stack(np.meshgrid(np.arange(w), np.arange(w), indexing="ij")).reshape(2, -1)
        relative = (places[:, :, None] - places[:, None, :]).transpose(1, 2, 0) + w - 1
        self.index = (relative * np.array([2 * w - 1, 1])).sum(-1).reshape(-1)
        self.qkv.build(shape)
        self.projection.build(shape)

    def call(self, x, mask=None):
        _, size, width = x.shape
        qkv = ops.reshape(self.qkv(x), (-1, size, 3, self.heads, width // self.heads))
        q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3, axis=0)
        scores = (q * self.scale) @ ops.transpose(k, (0, 1, 3, 2))
        bias = ops.reshape(ops.take(self.table, self.index, axis=0), (size, size, self.heads))
        scores = scores + ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)
        if mask is not None:
            windows = mask.shape[0]
            mask = ops.cast(mask[None, :, None], scores.dtype)
            scores = ops.reshape(scores, (-1, windows, self.heads, size, size)) + mask
            scores = ops.reshape(scores, (-1, self.heads, size, size))
        x = ops.transpose(self.drop(ops.softmax(scores, axis=-1)) @ v, (0, 2, 1, 3))
        return self.projection(ops.reshape(x, (-1, size, width)))


class SwinBlock(layers.Layer):
    """Attention in windows that are shifted in every other block, and dense layers."""

    def __init__(self, width, side, window, heads, shift, **kwargs):
        super().__init__(**kwargs)
        self.width, self.side, self.window, self.shift = width, side, window, shift
        self.attention, self.mlp = WindowAttention(width, window, heads), Mlp(2 * width, width)
        self.norms, self.drop = [layers.LayerNormalization(), layers.LayerNormalization()], StochasticDepth(0.1)

    def build(self, shape):
        self.mask = None
        if self.shift:
            regions = np.zeros((self.side, self.side))
            parts = slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None)
            for number, (rows, columns) in enumerate((a, b) for a in parts for b in parts):
                regions[rows, columns] = number
            n, w = self.side // self.window, self.window
            regions = regions.reshape(n, w, n, w).transpose(0, 2, 1, 3).reshape(n * n, w * w)
            self.mask = ops.convert_to_tensor(np.where(regions[:, None] == regions[:, :, None], 0.0, -100.0), "float32")

    def call(self, x, training=None):
        side, w, width, n = self.side, self.window, self.width, self.side // self.window
        skip, x = x, ops.reshape(self.norms[0](x), (-1, side, side, width))
        if self.shift:
            x = ops.roll(x, shift=(-self.shift, -self.shift), axis=(1, 2))
        x = ops.transpose(ops.reshape(x, (-1, n, w, n, w, width)), (0, 1, 3, 2, 4, 5))
        x = self.attention(ops.reshape(x, (-1, w * w, width)), mask=self.mask)
        x = ops.transpose(ops.reshape(x, (-1, n, n, w, w, width)), (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, side, side, width))
        if self.shift:
            x = ops.roll(x, shift=(self.shift, self.shift), axis=(1, 2))
        x = skip + self.drop(ops.reshape(x, (-1, side * side, width)), training=training)
        return x + self.drop(self.mlp(self.norms[1](x)), training=training)


class PatchMerging(layers.Layer):
    """Four neighbours into one."""

    def __init__(self, side, width, **kwargs):
        super().__init__(**kwargs)
        self.side, self.width, self.reduction = side, width, layers.Dense(2 * width, use_bias=False)

    def call(self, x):
        x = ops.reshape(x, (-1, self.side, self.side, self.width))
        x = ops.concatenate([x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], axis=-1)
        return self.reduction(ops.reshape(x, (-1, (self.side // 2) ** 2, 4 * self.width)))


@network
def swin():
    flat = layers.Reshape((64, WIDTH))
    blocks = [SwinBlock(WIDTH, 8, 4, 2, shift) for shift in (0, 2)]
    merged = [PatchMerging(8, WIDTH), SwinBlock(2 * WIDTH, 4, 4, 4, 0)]
    return classifier(layers.Conv2D(WIDTH, 4, 4), flat, *blocks, *merged, layers.GlobalAveragePooling1D())


class ExternalAttention(layers.Layer):
    """EANet: keys and values are dense layers, the scores are normalised twice."""

    def __init__(self, width, heads, memory=8, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.width = heads, width
        self.queries, self.out = layers.Dense(width), layers.Dense(width)
        self.keys, self.values = layers.Dense(memory), layers.Dense(width // heads)

    def call(self, x):
        _, count, _ = x.shape
        x = ops.reshape(self.queries(x), (-1, count, self.heads, self.width // self.heads))
        scores = ops.softmax(self.keys(ops.transpose(x, (0, 2, 1, 3))), axis=2)
        scores = scores / (1e-9 + ops.sum(scores, axis=-1, keepdims=True))
        x = ops.transpose(self.values(scores), (0, 2, 1, 3))
        return self.out(ops.reshape(x, (-1, count, self.width)))


class ExternalBlock(layers.Layer):
    """External attention and dense layers."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.attention, self.mlp = ExternalAttention(width, heads), Mlp(32, width)
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]

    def call(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


@network
def external_attention():
    blocks = ExternalBlock(WIDTH, 2), ExternalBlock(WIDTH, 2)
    return classifier(Patches(8), layers.Dense(WIDTH), *blocks, layers.GlobalAveragePooling1D())


class SpatialAttention(layers.Layer):
    """The attention of denoising U-Nets: every pixel looks at every other, by `einsum`."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width, self.norm = width, layers.GroupNormalization(4)
        self.q, self.k, self.v, self.out = (layers.Dense(width) for _ in range(4))

    def call(self, x):
        batch, height, width, _ = ops.shape(x)
        y = self.norm(x)
        scores = ops.einsum("bhwc,bxyc->bhwxy", self.q(y), self.k(y)) * self.width**-0.5
        scores = ops.softmax(ops.reshape(scores, (batch, height, width, height * width)), -1)
        scores = ops.reshape(scores, (batch, height, width, height, width))
        return x + self.out(ops.einsum("bhwxy,bxyc->bhwc", scores, self.v(y)))


@network
def denoising():
    down, up = layers.Conv2D(24, 3, 2, padding="same"), layers.UpSampling2D()
    inputs = keras.Input((SIDE, SIDE, 3))
    first = ConvBlock(16, activation="swish")(inputs)
    x = SpatialAttention(24)(ConvBlock(24, strides=2, activation="swish")(down(first)))
    x = layers.Concatenate()([first, up(ConvBlock(16)(up(x)))])
    return keras.Model(inputs, layers.Conv2D(3, 1)(ConvBlock(16)(x)))


class TokenMixing(layers.Layer):
    """MLP-Mixer: dense layers over patches, then over channels."""

    def __init__(self, count, width, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.channels = Mlp(24, count), Mlp(32, width)
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]

    def call(self, x):
        y = ops.transpose(self.norms[0](x), (0, 2, 1))
        x = x + ops.transpose(self.tokens(y), (0, 2, 1))
        return x + self.channels(self.norms[1](x))


@network
def mlp_mixer():
    blocks = TokenMixing(16, WIDTH), TokenMixing(16, WIDTH)
    return classifier(Patches(8), layers.Dense(WIDTH), *blocks, layers.GlobalAveragePooling1D())


class SpatialGating(layers.Layer):
    """gMLP: one half of the channels, mixed over patches, gates the other."""

    def __init__(self, count, width, **kwargs):
        super().__init__(**kwargs)
        self.up, self.down, self.mix = layers.Dense(4 * width), layers.Dense(width), layers.Dense(count)
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]

    def call(self, x):
        u, v = ops.split(ops.gelu(self.up(self.norms[0](x))), 2, axis=-1)
        v = ops.transpose(self.mix(ops.transpose(self.norms[1](v), (0, 2, 1))), (0, 2, 1))
        return x + self.down(u * v)


@network
def gated_mlp():
    blocks = SpatialGating(16, WIDTH), SpatialGating(16, WIDTH)
    return classifier(Patches(8), layers.Dense(WIDTH), *blocks, layers.GlobalAveragePooling1D())
