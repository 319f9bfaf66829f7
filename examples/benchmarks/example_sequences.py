"""Small networks of text, sound, signals, points and graphs, written the way that code examples are."""

import keras
from example_attention import LENGTH, WORDS, Encoder, Mlp
from example_networks import CLASSES, WIDTH, ConvBlock, called, network
from keras import layers, ops

# --------------------------------------------------------------------------------------------------------------- text


class TokenAndPosition(layers.Layer):
    """Embeddings of words and of their places."""

    def __init__(self, length, words, width, **kwargs):
        super().__init__(**kwargs)
        self.words, self.places = layers.Embedding(words, width), layers.Embedding(length, width)

    def call(self, x):
        return self.words(x) + self.places(ops.arange(0, ops.shape(x)[-1], 1))


class TextClassifier(keras.Model):
    """A transformer block over words."""

    def __init__(self):
        super().__init__()
        self.embedding, self.block = TokenAndPosition(LENGTH, WORDS, WIDTH), Encoder(WIDTH, 2, 32)
        self.pool, self.hidden = layers.GlobalAveragePooling1D(), layers.Dense(20, activation="relu")
        self.scores = layers.Dense(2, activation="softmax")

    def call(self, x, training=None):
        return self.scores(self.hidden(self.pool(self.block(self.embedding(x), training=training))))


@network
def text_transformer():
    return called(TextClassifier(), (LENGTH,), dtype="int32")


class CausalAttention(layers.Layer):
    """A language model's block: attention by hand, with a mask of the length and the batch."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.q, self.k, self.v, self.out = (layers.Dense(width) for _ in range(4))

    def split(self, x):
        batch, length, _ = ops.shape(x)
        return ops.transpose(ops.reshape(x, (batch, length, self.heads, self.width // self.heads)), (0, 2, 1, 3))

    def call(self, x):
        batch, length, _ = ops.shape(x)
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / ops.sqrt(float(self.width // self.heads))
        places = ops.arange(length)
        allowed = ops.reshape(places[:, None] >= places[None, :], (1, 1, length, length))
        allowed = ops.tile(allowed, (batch, 1, 1, 1))
        weights = ops.softmax(ops.where(allowed, scores, -1e9), axis=-1)
        x = ops.reshape(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)), (batch, length, self.width))
        return self.out(x)


class LanguageModel(keras.Model):
    """Words to the words that follow."""

    def __init__(self, depth=2):
        super().__init__()
        self.embedding = TokenAndPosition(LENGTH, WORDS, WIDTH)
        self.attentions = [CausalAttention(WIDTH, 4) for _ in range(depth)]
        self.mlps = [Mlp(32, WIDTH) for _ in range(depth)]
        self.norms = [layers.LayerNormalization() for _ in range(2 * depth)]
        self.words = layers.Dense(WORDS)

    def call(self, x, training=None):
        x = self.embedding(x)
        for n, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * n](x))
            x = x + mlp(self.norms[2 * n + 1](x), training=training)
        return self.words(x)


@network
def language_model():
    return called(LanguageModel(), (LENGTH,), dtype="int32")


class FourierBlock(layers.Layer):
    """FNet: Fourier transforms in the place of attention."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.mlp, self.norms = Mlp(32, width), [layers.LayerNormalization(), layers.LayerNormalization()]

    def call(self, x):
        real, _ = ops.fft2((x, ops.zeros_like(x)))
        x = self.norms[0](x + real)
        return self.norms[1](x + self.mlp(x))


@network
def fourier_text():
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = TokenAndPosition(LENGTH, WORDS, WIDTH)(inputs)
    x = layers.GlobalAveragePooling1D()(FourierBlock(WIDTH)(FourierBlock(WIDTH)(x)))
    return keras.Model(inputs, layers.Dense(2)(x))


# ------------------------------------------------------------------------------------------------------------- signals


class TimeSeriesTransformer(keras.Model):
    """Attention over time, convolutions of one step between."""

    def __init__(self, depth=2):
        super().__init__()
        self.attentions = [layers.MultiHeadAttention(2, 8, dropout=0.1) for _ in range(depth)]
        self.convs = [(layers.Conv1D(8, 1, activation="relu"), layers.Conv1D(1, 1)) for _ in range(depth)]
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2 * depth)]
        self.hidden, self.scores = layers.Dense(24, activation="relu"), layers.Dense(CLASSES)

    def call(self, x):
        for n, (attention, (up, down)) in enumerate(zip(self.attentions, self.convs, strict=True)):
            x = x + self.norms[2 * n](attention(x, x))
            x = x + down(up(self.norms[2 * n + 1](x)))
        return self.scores(self.hidden(ops.mean(x, axis=-1)))


@network
def time_series_transformer():
    return called(TimeSeriesTransformer(), (40, 1))


class Dilated(layers.Layer):
    """TCN: two causal convolutions with a shortcut."""

    def __init__(self, filters, dilation, **kwargs):
        super().__init__(**kwargs)
        causal = {"padding": "causal", "dilation_rate": dilation}
        self.convs = [layers.Conv1D(filters, 3, **causal), layers.Conv1D(filters, 3, **causal)]
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.drop, self.shortcut = layers.SpatialDropout1D(0.1), layers.Conv1D(filters, 1)

    def call(self, x, training=None):
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = self.drop(ops.relu(norm(conv(y))), training=training)
        return ops.relu(self.shortcut(x) + y)


@network
def temporal_convolutions():
    inputs = keras.Input((40, 3))
    x = Dilated(16, 4)(Dilated(16, 2)(Dilated(12, 1)(inputs)))
    return keras.Model(inputs, layers.Dense(CLASSES)(x[:, -1]))


class Gated(layers.Layer):
    """WaveNet: a gated convolution gives to the stream and to the outputs."""

    def __init__(self, filters, dilation, **kwargs):
        super().__init__(**kwargs)
        causal = {"padding": "causal", "dilation_rate": dilation}
        self.filter, self.gate = layers.Conv1D(filters, 2, **causal), layers.Conv1D(filters, 2, **causal)
        self.stream, self.skip = layers.Conv1D(filters, 1), layers.Conv1D(filters, 1)

    def call(self, x):
        y = ops.tanh(self.filter(x)) * ops.sigmoid(self.gate(x))
        return x + self.stream(y), self.skip(y)


class WaveNet(keras.Model):
    """A sound, one sample after the other."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = layers.Conv1D(12, 2, padding="causal"), [Gated(12, 2**n) for n in range(4)]
        self.hidden, self.samples = layers.Conv1D(16, 1, activation="relu"), layers.Conv1D(8, 1)

    def call(self, x):
        x, skips = self.stem(x), []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.samples(self.hidden(ops.relu(sum(skips))))


@network
def wavenet():
    return called(WaveNet(), (64, 1))


class EegNet(keras.Model):
    """Electrodes by time: a filter in time, one over the electrodes, a separable one."""

    def __init__(self, electrodes=8, samples=64):
        super().__init__()
        self.image = layers.Reshape((electrodes, samples, 1))
        self.time = layers.Conv2D(8, (1, 32), padding="same", use_bias=False)
        rule = keras.constraints.MaxNorm(1.0)
        depth = {"depth_multiplier": 2, "use_bias": False, "depthwise_constraint": rule}
        self.space = layers.DepthwiseConv2D((electrodes, 1), **depth)
        self.separable = layers.SeparableConv2D(16, (1, 16), padding="same", use_bias=False)
        self.norms = [layers.BatchNormalization() for _ in range(3)]
        self.pools = [layers.AveragePooling2D((1, 4)), layers.AveragePooling2D((1, 8))]
        self.drop, self.flat, self.scores = layers.Dropout(0.5), layers.Flatten(), layers.Dense(4)

    def call(self, x, training=None):
        x = self.norms[0](self.time(self.image(x)), training=training)
        x = ops.elu(self.norms[1](self.space(x), training=training))
        x = self.drop(self.pools[0](x), training=training)
        x = ops.elu(self.norms[2](self.separable(x), training=training))
        return self.scores(self.flat(self.drop(self.pools[1](x), training=training)))


@network
def eegnet():
    return called(EegNet(), (8, 64))


class Keywords(keras.Model):
    """Waveforms to spectrograms to words."""

    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(16, (10, 4), (2, 2), padding="same", activation="relu")
        self.depthwise = [layers.DepthwiseConv2D(3, padding="same") for _ in range(2)]
        self.pointwise = [layers.Conv2D(16, 1, activation="relu") for _ in range(2)]
        self.norms = [layers.BatchNormalization() for _ in range(2)]
        self.pool, self.scores = layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)

    def call(self, waves):
        real, imaginary = ops.stft(waves, 64, 32, 64)
        x = ops.log(real**2 + imaginary**2 + 1e-6)[..., None]
        x = self.stem(x)
        for depthwise, norm, pointwise in zip(self.depthwise, self.norms, self.pointwise, strict=True):
            x = pointwise(ops.relu(norm(depthwise(x))))
        return self.scores(self.pool(x))


@network
def keyword_spotting():
    return called(Keywords(), (1024,))


class Ocr(keras.Model):
    """CRNN: columns of an image, read in both directions."""

    def __init__(self):
        super().__init__()
        self.convs, self.pool = [ConvBlock(12), ConvBlock(16)], layers.MaxPooling2D()
        self.dense, self.drop = layers.Dense(24, activation="relu"), layers.Dropout(0.2)
        self.recurrent = [layers.Bidirectional(layers.LSTM(n, return_sequences=True)) for n in (16, 8)]
        self.letters = layers.Dense(12, activation="softmax")

    def call(self, x, training=None):
        for conv in self.convs:
            x = self.pool(conv(x, training=training))
        x = ops.transpose(x, (0, 2, 1, 3))
        x = ops.reshape(x, (-1, x.shape[1], x.shape[2] * x.shape[3]))
        x = self.drop(self.dense(x), training=training)
        for recurrent in self.recurrent:
            x = recurrent(x)
        return self.letters(x)


@network
def ocr():
    return called(Ocr(), (16, 48, 1))


# --------------------------------------------------------------------------------------------------- points and graphs


class PointBlock(layers.Layer):
    """The same dense layer for every point."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = layers.Conv1D(filters, 1), layers.BatchNormalization(momentum=0.0)

    def call(self, x):
        return ops.relu(self.norm(self.conv(x)))


class Transform(layers.Layer):
    """T-net: a matrix that is made of all points, and applied to each."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size, self.blocks = size, [PointBlock(12), PointBlock(16)]
        self.hidden, self.matrix = layers.Dense(16, activation="relu"), layers.Dense(size * size)

    def call(self, points):
        x = points
        for block in self.blocks:
            x = block(x)
        matrix = ops.reshape(self.matrix(self.hidden(ops.max(x, axis=1))), (-1, self.size, self.size))
        return ops.matmul(points, matrix)


@network
def pointnet():
    inputs = keras.Input((32, 3))
    x = PointBlock(12)(Transform(3)(inputs))
    x = PointBlock(24)(PointBlock(16)(Transform(12)(x)))
    x = layers.Dropout(0.3)(layers.Dense(16, activation="relu")(layers.GlobalMaxPooling1D()(x)))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


class GraphAttention(layers.Layer):
    """Nodes look at their neighbours, with several heads, all of it weights of the layer itself."""

    def __init__(self, units, heads, **kwargs):
        super().__init__(**kwargs)
        self.units, self.heads = units, heads

    def build(self, shapes):
        self.kernel = self.add_weight((shapes[0][-1], self.heads * self.units), name="kernel")
        self.source = self.add_weight((self.heads, self.units), name="source")
        self.target = self.add_weight((self.heads, self.units), name="target")

    def call(self, inputs):
        nodes, edges = inputs
        _, count, _ = nodes.shape
        x = ops.reshape(ops.matmul(nodes, self.kernel), (-1, count, self.heads, self.units))
        source, target = ops.sum(x * self.source, axis=-1), ops.sum(x * self.target, axis=-1)
        scores = ops.leaky_relu(ops.expand_dims(source, 2) + ops.expand_dims(target, 1), 0.2)
        scores = ops.softmax(scores + (1.0 - edges[..., None]) * -1e9, axis=2)
        x = ops.einsum("bijh,bjhu->bihu", scores, x)
        return ops.relu(ops.reshape(x, (-1, count, self.heads * self.units)))


class GraphNetwork(keras.Model):
    """Two layers of attention over a graph, and classes of its nodes."""

    def __init__(self):
        super().__init__()
        self.stem, self.layers_of_attention = layers.Dense(16, activation="relu"), [GraphAttention(6, 3) for _ in "ab"]
        self.scores = layers.Dense(CLASSES)

    def call(self, inputs):
        nodes, edges = inputs
        x = self.stem(nodes)
        for layer in self.layers_of_attention:
            x = layer([x, edges])
        return self.scores(x)


@network
def graph_attention():
    return called(GraphNetwork(), (10, 8), (10, 10))
