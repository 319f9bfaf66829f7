"""Small networks of tables, graphs, series and densities, with inputs and outputs in lists and dictionaries."""

import keras
import numpy as np
from example_attention import LENGTH, WORDS
from example_networks import CLASSES, WIDTH, called, network
from keras import layers, ops


class Interactions(keras.Model):
    """A recommender: every feature meets every other, by products of their embeddings."""

    def __init__(self, features=4, width=8):
        super().__init__()
        self.tables = [layers.Embedding(20, width) for _ in range(features)]
        self.numbers = keras.Sequential([layers.Dense(24, activation="relu"), layers.Dense(width, activation="relu")])
        self.top = keras.Sequential([layers.Dense(24, activation="relu"), layers.Dense(1, activation="sigmoid")])
        self.pairs = np.ravel_multi_index(np.tril_indices(features + 1, -1), (features + 1, features + 1))

    def call(self, inputs):
        numbers, categories = inputs
        numbers = self.numbers(numbers)
        found = [table(categories[:, n]) for n, table in enumerate(self.tables)]
        x = ops.stack([numbers, *found], axis=1)
        products = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        products = ops.take(ops.reshape(products, (-1, x.shape[1] ** 2)), self.pairs, axis=1)
        return self.top(ops.concatenate([numbers, products], axis=1))


@network
def interactions():
    model = Interactions()
    model([np.zeros((2, 6), "float32"), np.zeros((2, 4), "int32")])
    return model


class Towers(keras.Model):
    """Users and items, each by a network of its own, compared by the angle between them."""

    def __init__(self):
        super().__init__()
        self.users, self.items = layers.Embedding(50, 12), layers.Embedding(40, 12)
        self.of_users, self.of_items = (
            keras.Sequential([layers.Dense(24, activation="relu"), layers.Dense(8)]) for _ in "ui"
        )

    def call(self, inputs):
        user = ops.normalize(self.of_users(self.users(inputs["user"])), axis=-1)
        item = ops.normalize(self.of_items(self.items(inputs["item"])), axis=-1)
        return ops.sum(user * item, axis=-1, keepdims=True) / 0.1


@network
def towers():
    model = Towers()
    model({name: np.zeros((2,), "int32") for name in ("user", "item")})
    return model


class Convolved(layers.Layer):
    """A layer of a graph: neighbours are summed, then multiplied by weights of the layer itself."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shapes):
        self.kernel = self.add_weight((shapes[0][-1], self.units), name="kernel")
        self.bias = self.add_weight((self.units,), "zeros", name="bias")

    def call(self, inputs):
        nodes, edges = inputs
        return ops.relu(ops.matmul(edges, ops.dot(nodes, self.kernel)) + self.bias)


class GraphClassifier(keras.Model):
    """Edges normalised by how many a node has, two layers, the largest of all nodes."""

    def __init__(self):
        super().__init__()
        self.convs, self.scores = [Convolved(24), Convolved(16)], layers.Dense(CLASSES)

    def call(self, inputs):
        x, edges = inputs["nodes"], inputs["edges"]
        scale = 1.0 / ops.sqrt(ops.sum(edges, axis=-1) + 1.0)
        edges = edges * scale[:, :, None] * scale[:, None, :]
        for conv in self.convs:
            x = conv([x, edges])
        return self.scores(ops.max(x, axis=1))


@network
def graph_convolutions():
    model = GraphClassifier()
    model({"nodes": np.zeros((2, 10, 8), "float32"), "edges": np.zeros((2, 10, 10), "float32")})
    return model


class Experts(keras.Model):
    """Several tasks, each of which weighs the same experts."""

    def __init__(self, experts=3, tasks=2):
        super().__init__()
        self.experts = [
            keras.Sequential([layers.Dense(24, activation="relu"), layers.Dense(16, activation="relu")])
            for _ in range(experts)
        ]
        self.weights_of = [layers.Dense(experts, activation="softmax") for _ in range(tasks)]
        self.heads = [keras.Sequential([layers.Dense(12, activation="relu"), layers.Dense(1)]) for _ in range(tasks)]

    def call(self, x):
        found = ops.stack([expert(x) for expert in self.experts], axis=1)
        mixed = [ops.squeeze(ops.matmul(dense(x)[:, None], found), axis=1) for dense in self.weights_of]
        return [head(y) for head, y in zip(self.heads, mixed, strict=True)]


@network
def experts():
    return called(Experts(), (10,))


class Coupling(layers.Layer):
    """A normalizing flow: one half of the numbers is scaled and shifted by what is made of the other."""

    def __init__(self, width, turned, **kwargs):
        super().__init__(**kwargs)
        self.turned = turned
        self.scale, self.shift = (
            keras.Sequential([layers.Dense(24, activation="relu"), layers.Dense(width // 2, activation=last)])
            for last in ("tanh", None)
        )

    def call(self, x):
        given, changed = ops.split(x, 2, axis=-1)
        if self.turned:
            given, changed = changed, given
        scale = self.scale(given)
        changed = changed * ops.exp(scale) + self.shift(given)
        parts = [changed, given] if self.turned else [given, changed]
        return ops.concatenate(parts, axis=-1), ops.sum(scale, axis=-1)


class Flow(keras.Model):
    """Numbers as those of a simple distribution, and by how much volume changes on the way."""

    def __init__(self):
        super().__init__()
        self.couplings = [Coupling(8, number % 2) for number in range(4)]

    def call(self, x):
        volume = 0.0
        for coupling in self.couplings:
            x, change = coupling(x)
            volume = volume + change
        return x, volume


@network
def normalizing_flow():
    return called(Flow(), (8,))


class Translator(keras.Model):
    """Words read in both directions, written one after the other with a look at all that was read."""

    def __init__(self):
        super().__init__()
        self.source, self.target = (layers.Embedding(WORDS, WIDTH, mask_zero=True) for _ in "st")
        self.encoder = layers.Bidirectional(layers.GRU(WIDTH, return_sequences=True, return_state=True))
        self.decoder = layers.GRU(2 * WIDTH, return_sequences=True)
        self.query, self.key, self.score = layers.Dense(12), layers.Dense(12), layers.Dense(1)
        self.words = layers.Dense(WORDS)

    def call(self, inputs):
        source, target = inputs
        read, forward, backward = self.encoder(self.source(source))
        written = self.decoder(self.target(target), initial_state=ops.concatenate([forward, backward], axis=-1))
        scores = self.score(ops.tanh(self.query(written)[:, :, None] + self.key(read)[:, None]))
        weights = ops.softmax(ops.squeeze(scores, axis=-1), axis=-1)
        return self.words(ops.concatenate([written, ops.matmul(weights, read)], axis=-1))


@network
def translator():
    return called(Translator(), (LENGTH,), (7,), dtype="int32")


class Looked(layers.Layer):
    """Queries look at a sequence of another length; dense layers after."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.up, self.down = layers.Dense(2 * width, activation="gelu"), layers.Dense(width)

    def call(self, x, seen):
        x = x + self.attention(x, self.norms[0](seen))
        return x + self.down(self.up(self.norms[1](x)))


class Perceiver(keras.Model):
    """A few vectors that are learned look at all pixels, and at each other."""

    def __init__(self, count=8, width=WIDTH):
        super().__init__()
        self.count, self.width = count, width
        self.pixels, self.scores = layers.Dense(width), layers.Dense(CLASSES)
        self.looks = [Looked(width, 4) for _ in range(3)]

    def build(self, shape):
        self.places = self.add_weight((shape[1] * shape[2], 4), "random_normal", name="places")
        self.latents = self.add_weight((self.count, self.width), "random_normal", name="latents")

    def call(self, images):
        batch = ops.shape(images)[0]
        pixels = ops.reshape(images, (batch, -1, images.shape[-1]))
        places = ops.broadcast_to(self.places[None], (batch, *self.places.shape))
        pixels = self.pixels(ops.concatenate([pixels, places], axis=-1))
        x = ops.repeat(self.latents[None], batch, axis=0)
        x = self.looks[0](x, pixels)
        for look in self.looks[1:]:
            x = look(x, x)
        return self.scores(ops.mean(x, axis=1))


@network
def perceiver():
    return called(Perceiver(), (8, 8, 3))
