"""Random layers of layers, in functional and subclassed models: opened, pruned, compared with the masked original."""

import keras
from composites import SIDE, Block, around, called
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from opened import assert_pruned_is_masked, randomised

EXAMPLES = 12
DEEPEST, MOST_STEPS = 2, 4


class Drawn(layers.Layer):
    """A layer whose call() does what a string of bytes says: each step makes its parts, and uses them."""

    def __init__(self, choices, channels, depth=0, **kwargs):
        super().__init__(**kwargs)
        self.steps, self.parts, self.channels = [], [], channels
        for _ in range(1 + next(choices) % MOST_STEPS):
            name = STEPS[next(choices) % len(STEPS)]
            width = 2 + next(choices) % 7
            if name == "inner" and depth == DEEPEST:
                name = "block"
            getattr(self, f"make_{name}")(width, choices, depth)
            self.steps.append((name, len(self.parts) - 1))

    def make_block(self, width, choices, depth):
        self.parts.append(Block(width))
        self.channels = width

    def make_inner(self, width, choices, depth):
        self.parts.append(Drawn(choices, self.channels, depth + 1))
        self.channels = self.parts[-1].channels

    def make_residual(self, width, choices, depth):
        self.parts.append([Block(self.channels), layers.Dropout(0.2)])

    def make_scale(self, width, choices, depth):
        weight = self.add_weight((self.channels,), "ones", name=f"scale_{len(self.parts)}")
        self.parts.append(weight)

    def make_product(self, width, choices, depth):
        self.parts.append(self.add_weight((self.channels, width), "glorot_uniform", name=f"product_{len(self.parts)}"))
        self.channels = width

    def make_gate(self, width, choices, depth):
        self.parts.append({"a": layers.Dense(width, "relu"), "b": layers.Dense(self.channels, "sigmoid")})

    def make_tokens(self, width, choices, depth):
        self.parts.append(layers.Dense(width))
        self.channels = width

    def make_halves(self, width, choices, depth):
        self.parts.append((layers.Conv2D(2 * width, 1), layers.Conv2D(width, 3, padding="same")))
        self.channels = 2 * width

    def make_joined(self, width, choices, depth):
        self.parts.append(layers.Conv2D(width, 3, padding="same", activation="relu"))
        self.channels += width

    def make_again(self, width, choices, depth):
        self.parts.append(Block(self.channels))

    def make_attention(self, width, choices, depth):
        """Heads of MultiHeadAttention, or by hand: projected together or apart, the axes of heads in any order."""
        heads, size, form = 1 + next(choices) % 4, 1 + next(choices) % 4, next(choices) % 6
        if form == 0:
            self.parts.append(layers.MultiHeadAttention(heads, size))
            return
        fused = [layers.Dense(3 * heads * size)] if form < 4 else [layers.Dense(heads * size) for _ in "qkv"]
        self.parts.append({"made": fused, "out": layers.Dense(self.channels), "how": [heads, size, form]})

    def call(self, x, training=None):
        for name, number in self.steps:
            x = getattr(self, f"apply_{name}")(x, self.parts[number])
        return x

    def apply_block(self, x, part):
        return part(x)

    apply_inner = apply_block

    def apply_residual(self, x, part):
        return x + part[1](part[0](x))

    def apply_scale(self, x, part):
        return part * x

    def apply_product(self, x, part):
        return ops.gelu(ops.matmul(x, part))

    def apply_gate(self, x, part):
        return x * part["b"](part["a"](ops.mean(x, axis=(1, 2), keepdims=True)))

    def apply_tokens(self, x, part):
        batch, channels = ops.shape(x)[0], x.shape[-1]
        x = part(ops.reshape(x, (batch, SIDE * SIDE, channels)))
        return ops.reshape(x, (batch, SIDE, SIDE, x.shape[-1]))

    def apply_halves(self, x, part):
        first, second = ops.split(part[0](x), 2, axis=-1)
        return ops.concatenate([ops.tanh(first), part[1](second)], axis=-1)

    def apply_joined(self, x, part):
        return ops.concatenate([x, part(x)], axis=-1)

    def apply_again(self, x, part):
        return part(ops.relu(part(x)))

    def apply_attention(self, x, part):
        channels = x.shape[-1]
        x = ops.reshape(x, (-1, SIDE * SIDE, channels))
        y = part(x, x) if not isinstance(part, dict) else part["out"](attended(x, part["made"], *part["how"]))
        return ops.reshape(x + y, (-1, SIDE, SIDE, channels))


def attended(x, projections, heads, size, form):
    """What heads make of tokens, side by side."""
    if len(projections) == 1:
        order = {1: (3, heads, size), 2: (heads, 3, size), 3: (heads, size, 3)}[form]
        axis = 2 + form - 1
        made = ops.moveaxis(ops.reshape(projections[0](x), (-1, x.shape[1], *order)), axis, 0)
        q, k, v = made[0], made[1], made[2]
    else:
        q, k, v = (ops.reshape(projection(x), (-1, x.shape[1], heads, size)) for projection in projections)
    if form == 5:
        y = ops.dot_product_attention(q, k, v, scale=0.5)
    elif form == 4:
        y = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k)), v)
    else:
        q, k, v = (ops.transpose(part, (0, 2, 1, 3)) for part in (q, k, v))
        y = ops.transpose(ops.softmax(q @ ops.swapaxes(k, -1, -2)) @ v, (0, 2, 1, 3))
    return ops.reshape(y, (-1, x.shape[1], heads * size))


STEPS = [name.removeprefix("apply_") for name in vars(Drawn) if name.startswith("apply_")]


class Subclassed(keras.Model):
    def __init__(self, choices):
        super().__init__()
        self.stem, self.drawn = layers.Conv2D(5, 3, padding="same"), Drawn(choices, 5)
        self.last, self.scores = layers.Conv2D(4, 3, activation="relu"), layers.Dense(3)

    def call(self, x, training=None):
        x = self.last(self.drawn(self.stem(x), training=training))
        return self.scores(ops.reshape(x, (ops.shape(x)[0], -1)))


@settings(max_examples=EXAMPLES)
@given(st.binary(min_size=120, max_size=120), st.booleans())
def test_pruned_random_composites_equal_the_masked_original(choices, subclassed):
    numbers = iter(choices)
    model = called(Subclassed(numbers)) if subclassed else around(Drawn(numbers, 5), width=5)
    assert_pruned_is_masked(randomised(model))
