"""Composite layers of models of text: positions that turn, slope and are looked up, experts, losses, one kind each.

Every situation says how many units some of its groups have: heads, hidden channels of experts.
"""

import keras
import numpy as np
from composites import called, layer, not_written, sequence, situation
from keras import layers, ops

TIME, WIDTH, HEADS, SIZE = 5, 8, 4, 6
# {situation: sizes of groups that there are}
UNITS = {}


def units(*sizes, closed=None):
    def register(build):
        UNITS[build.__name__] = sizes
        return situation(closed)(build)

    return register


class Attention(layers.Layer):
    """Queries, keys and values of several heads, and what is done to them and their scores."""

    def __init__(self, heads=HEADS, size=SIZE, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.size = heads, size

    def build(self, shape):
        self.projections = [layers.EinsumDense("btc,chd->bthd", (None, self.heads, self.size)) for _ in range(3)]
        self.out = layers.Dense(shape[-1])
        super().build(shape)

    def turned(self, x):
        return x

    def biased(self, scores, x):
        return scores

    def call(self, x):
        q, k, v = (dense(x) for dense in self.projections)
        scores = self.biased(ops.einsum("bqhd,bkhd->bhqk", self.turned(q), self.turned(k)), x)
        y = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores, axis=-1), v)
        return x + self.out(ops.reshape(y, (ops.shape(x)[0], ops.shape(x)[1], self.heads * self.size)))

    get_config = not_written


def attention(**methods):
    """A model around attention with these methods of its own."""
    return sequence(type("Special", (Attention,), methods)())


class Masked(keras.Model):
    """Words, a mask of them, and what attends to them."""

    def __init__(self, attends):
        super().__init__()
        self.words, self.attends = layers.Embedding(9, WIDTH), attends
        self.hidden, self.scores = layers.Dense(7, "relu"), layers.Dense(3)

    def call(self, inputs):
        x = self.attends(self.words(inputs["words"]), inputs["mask"])
        return self.scores(ops.mean(self.hidden(x), axis=1))


def masked(biased):
    """A model whose scores see a mask that is an input."""

    class Special(Attention):
        def call(self, x, mask):
            self.mask = mask
            return super().call(x)

    Special.biased = biased
    model, zeros = Masked(Special()), np.zeros((2, TIME), "int32")
    model({"words": zeros, "mask": zeros})
    return model


# ---------------------------------------------------------------------------------------------------------- positions


@units(HEADS, 7)
def slopes_of_a_mask():
    """Attention with linear biases: a constant per head times a row of positions that padding makes."""

    def biased(self, scores, x):
        mask = ops.cast(self.mask, "float32")
        positions = ((ops.cumsum(mask, axis=-1) - 1) * mask)[:, None, :]
        slopes = ops.convert_to_tensor(2.0 ** -np.arange(1, HEADS + 1, dtype="float32"))
        bias = ops.expand_dims(slopes[:, None] * positions, 0)
        return scores + ops.transpose(bias, (1, 2, 0, 3))

    return masked(biased)


@units(HEADS, 7)
def zeros_for_every_head_and_a_mask():
    def biased(self, scores, x):
        mask = (1.0 - ops.cast(self.mask, "float32")) * -1e9
        return scores + (ops.zeros((1, HEADS, TIME, TIME)) + mask[:, None, None, :])

    return masked(biased)


@units(HEADS, 7)
def mask_of_padding_and_of_the_future():
    def biased(self, scores, x):
        batch = ops.shape(x)[0]
        future = ops.broadcast_to(ops.tril(ops.ones((TIME, TIME), "int32")), (batch, TIME, TIME))
        seen = ops.logical_and(ops.cast(future, "bool"), ops.cast(self.mask, "bool")[:, None, :])
        return ops.where(seen[:, None], scores, -1e9)

    return masked(biased)


@units(HEADS)
def positions_of_a_table():
    class Table(Attention):
        def build(self, shape):
            super().build(shape)
            self.table = self.add_weight((2 * TIME, HEADS), "glorot_uniform", name="table")

        def biased(self, scores, x):
            length = ops.shape(x)[1]
            distance = ops.arange(length)[:, None] - ops.arange(length)[None, :] + TIME
            return scores + ops.transpose(ops.take(self.table, distance, axis=0), (2, 0, 1))

    return sequence(Table())


@units(HEADS)
def positions_that_scores_are_looked_up_by():
    """Disentangled attention: scores against positions, of which each pair takes one."""

    def biased(self, scores, x):
        distance = ops.clip(ops.arange(TIME)[:, None] - ops.arange(TIME)[None, :] + 2, 0, TIME - 1)
        numbers = ops.broadcast_to(distance[None, None], (ops.shape(x)[0], HEADS, TIME, TIME))
        return scores + ops.take_along_axis(scores, numbers, axis=3)

    return attention(biased=biased)


def turns(length, size):
    angles = np.arange(length)[:, None] * 10.0 ** -np.arange(size // 2)[None]
    return [f(np.concatenate([angles, angles], -1)).astype("float32")[None, :, None] for f in (np.cos, np.sin)]


@units(HEADS)
def halves_that_turn():
    def turned(self, x):
        cos, sin = turns(TIME, SIZE)
        first, second = ops.split(x, 2, axis=-1)
        # PyTorch's own product with an array of NumPy warns.
        return ops.multiply(x, cos) + ops.multiply(ops.concatenate([-second, first], axis=-1), sin)

    return attention(turned=turned)


@units(HEADS)
def pairs_that_turn():
    def turned(self, x):
        cos, sin = turns(TIME, SIZE)
        pairs = ops.stack([-x[..., 1::2], x[..., ::2]], axis=-1)
        return x * cos + ops.reshape(pairs, ops.shape(x)) * sin

    return attention(turned=turned)


@units(HEADS, closed={"Turning": "stops in its call()"})
def turns_in_a_layer_that_cannot_be_opened():
    class Turning(layers.Layer):
        def call(self, tensors):
            if ops.ndim(tensors[0]) != 4:
                raise ValueError("four axes")
            cos, sin = turns(TIME, SIZE)
            return [x * cos + ops.roll(x, 1, axis=-1) * sin for x in tensors]

        def compute_output_shape(self, shapes):
            return shapes

    class Turned(Attention):
        def build(self, shape):
            super().build(shape)
            self.turning = Turning()

        def turned(self, x):
            return self.turning([x, x])[0]

    return sequence(Turned())


# -------------------------------------------------------------------------------------------------- mixtures of experts


class Experts(layers.Layer):
    """All experts on all tokens, weighted by a router that picks two."""

    def build(self, shape):
        self.router = layers.Dense(3, use_bias=False)
        self.up = self.add_weight((3, shape[-1], 10), "glorot_uniform", name="up")
        self.down = self.add_weight((3, 10, shape[-1]), "glorot_uniform", name="down")
        super().build(shape)

    def routed(self, tokens):
        chances = ops.softmax(self.router(tokens), axis=-1)
        best, numbers = ops.top_k(chances, 2)
        best = best / ops.sum(best, axis=-1, keepdims=True)
        return ops.sum(ops.one_hot(numbers, 3) * best[..., None], axis=1), chances

    def mixed(self, tokens):
        return ops.einsum("etm,emc->etc", ops.relu(ops.einsum("tc,ecm->etm", tokens, self.up)), self.down)

    def losses_of(self, chances, training):
        """None."""

    def call(self, x, training=None):
        batch, length, width = ops.shape(x)
        tokens = ops.reshape(x, (-1, width))
        weights, chances = self.routed(tokens)
        self.losses_of(chances, training)
        mixed = ops.sum(self.mixed(tokens) * ops.transpose(weights)[:, :, None], axis=0)
        return x + ops.reshape(mixed, (batch, length, width))

    get_config = not_written


def experts(**methods):
    return sequence(type("Special", (Experts,), methods)())


@units(10)
def experts_by_equations():
    return experts()


@units(10)
def experts_with_the_weight_first():
    def mixed(self, tokens):
        hidden = ops.relu(ops.einsum("ecm,tc->etm", self.up, tokens))
        return ops.einsum("emc,etm->etc", self.down, hidden)

    return experts(mixed=mixed)


@units(10)
def experts_by_matrices():
    def mixed(self, tokens):
        tokens = ops.repeat(ops.expand_dims(tokens, 0), 3, axis=0)
        return ops.matmul(ops.relu(ops.matmul(tokens, self.up)), self.down)

    return experts(mixed=mixed)


@units(10)
def experts_with_a_loss():
    def losses_of(self, chances, training):
        self.add_loss(0.1 * ops.sum(ops.square(ops.mean(chances, axis=0))))

    return experts(losses_of=losses_of)


@units(10)
def experts_with_a_loss_in_training():
    def losses_of(self, chances, training):
        if training:
            self.add_loss(0.1 * ops.sum(ops.square(ops.mean(chances, axis=0))))

    return experts(losses_of=losses_of)


@units(SIZE, SIZE)
def matrices_of_every_head():
    class Heads(layers.Layer):
        def build(self, shape):
            self.mix = self.add_weight((HEADS, SIZE, SIZE), "glorot_uniform", name="mix")
            self.before, self.after = layers.Dense(HEADS * SIZE), layers.Dense(shape[-1])
            super().build(shape)

        def call(self, x):
            heads = ops.reshape(self.before(x), (-1, TIME, HEADS, SIZE))
            heads = ops.relu(ops.einsum("bthd,hde->bthe", heads, self.mix))
            return x + self.after(ops.reshape(heads, (-1, TIME, HEADS * SIZE)))

    return sequence(Heads())


# ------------------------------------------------------------------------------------------------------- other mixing


@units(WIDTH)
def transform_over_positions():
    """A Fourier transform along time alone: channels stay apart, whatever carries it out."""

    class Mixing(layers.Layer):
        def call(self, x):
            x = ops.transpose(x, (0, 2, 1))
            real, _ = ops.fft((x, ops.zeros_like(x)))
            return ops.transpose(real, (0, 2, 1))

        get_config = not_written

    return sequence(Mixing(), layers.Dense(7, "relu"))


@units(7)
def slices_of_a_batch():
    def call(self, x):
        batch, length, width = ops.shape(x)
        x = self.hidden(ops.slice(x, [0, 1, 0], [batch, length - 2, width]))
        places = ops.broadcast_to(ops.mean(x, axis=1, keepdims=True), (batch, length, 7))
        return ops.concatenate([x, places[:batch, :]], axis=1)

    return sequence(layer(call, hidden=layers.Dense(7, "relu")))


@units(7)
def loss_of_a_model():
    class Variational(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.mean, self.spread = layers.Dense(7, "relu"), layers.Dense(4), layers.Dense(4)
            self.back, self.scores = layers.Dense(6, "relu"), layers.Dense(5)

        def call(self, x):
            hidden = self.hidden(x)
            mean, spread = self.mean(hidden), self.spread(hidden)
            self.add_loss(-0.5 * ops.mean(1 + spread - ops.square(mean) - ops.exp(spread)))
            return self.scores(self.back(mean))

    return called(Variational(), 5)
