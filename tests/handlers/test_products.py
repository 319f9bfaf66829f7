"""Attention written by hand: whole heads go, what is left equals the dense model with zeros in place of the others."""

import keras
import numpy as np
import pytest
from builders import predict
from keras import layers, ops
from oracle import difference
from zoo import random_inputs, randomise

import keras_filterprune as kfp
from keras_filterprune.graph import Kept
from keras_filterprune.graph.keras_view import named_weights

TIME, WIDTH, HEADS, SIZE = 6, 8, 4, 5
SITUATIONS = {}


def situation(*sizes):
    """Units of groups that there are to be, besides others."""

    def register(build):
        SITUATIONS[build.__name__] = build, sizes
        return build

    return register


def around(attention, shape=(TIME, 5), width=WIDTH):
    """The stream of a model, what it attends to beside a shortcut, scores."""
    inputs = keras.Input(shape)
    x = layers.Dense(width, name="stream")(inputs)
    y = layers.Dense(width, name="out")(attention(x))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(layers.Add()([x, y]))))


def split(x, heads=HEADS, size=SIZE):
    return ops.transpose(ops.reshape(x, (-1, x.shape[1], heads, size)), (0, 2, 1, 3))


def joined(x):
    _, heads, length, size = x.shape
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, length, heads * size))


def attend(q, k, v):
    return ops.matmul(ops.softmax(ops.matmul(q * 0.5, ops.swapaxes(k, -1, -2)), axis=-1), v)


def projections(x, width=HEADS * SIZE, names="qkv"):
    return [layers.Dense(width, name=name)(x) for name in names]


@situation(HEADS, WIDTH)
def separate():
    return around(lambda x: joined(attend(*map(split, projections(x)))))


@pytest.mark.parametrize("heads, size", [(2, 6), (4, 4), (5, 2)])
@pytest.mark.parametrize("order", ["3hd", "h3d", "hd3"])
def test_fused_projections(order, heads, size):
    def attention(x):
        sizes = [{"3": 3, "h": heads, "d": size}[letter] for letter in order]
        x = ops.reshape(layers.Dense(3 * heads * size, name="qkv")(x), (-1, TIME, *sizes))
        axes = {letter: n for n, letter in enumerate(order, 2)}
        x = ops.transpose(x, (axes["3"], 0, axes["h"], 1, axes["d"]))
        return joined(attend(x[0], x[1], x[2]))

    assert_heads_go(lambda: around(attention), (heads,))


@situation(HEADS)
def fused_and_unstacked():
    def attention(x):
        x = ops.reshape(layers.Dense(3 * HEADS * SIZE, name="qkv")(x), (-1, TIME, 3, HEADS, SIZE))
        return joined(attend(*(ops.swapaxes(part, 1, 2) for part in ops.unstack(x, 3, axis=2))))

    return around(attention)


@situation(HEADS)
def fused_and_split():
    def attention(x):
        x = ops.reshape(layers.Dense(3 * HEADS * SIZE, name="qkv")(x), (-1, TIME, HEADS, 3 * SIZE))
        return joined(attend(*(ops.swapaxes(part, 1, 2) for part in ops.split(x, 3, axis=-1))))

    return around(attention)


@situation(HEADS)
def by_einsum():
    def attention(x):
        q, k, v = (ops.reshape(y, (-1, TIME, HEADS, SIZE)) for y in projections(x))
        scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k))
        return ops.reshape(ops.einsum("bhqk,bkhd->bqhd", scores, v), (-1, TIME, HEADS * SIZE))

    return around(attention)


@situation(HEADS)
def by_einsum_with_an_ellipsis():
    def attention(x):
        q, k, v = map(split, projections(x))
        return joined(ops.einsum("...qk,...kd->...qd", ops.softmax(ops.einsum("...qd,...kd->...qk", q, k)), v))

    return around(attention)


@situation(HEADS)
def dot_product():
    def attention(x):
        q, k, v = (ops.reshape(y, (-1, TIME, HEADS, SIZE)) for y in projections(x))
        return ops.reshape(ops.dot_product_attention(q, k, v, scale=0.3), (-1, TIME, HEADS * SIZE))

    return around(attention)


def grouped(x):
    """Queries of four heads, keys and values of two."""
    parts = [(layers.Dense(n * SIZE, name=name)(x), n) for name, n in zip("qkv", (HEADS, 2, 2), strict=True)]
    return [ops.reshape(y, (-1, TIME, n, SIZE)) for y, n in parts]


@situation(2)
def two_heads_of_queries_share_one_of_keys():
    def attention(x):
        q, k, v = grouped(x)
        y = ops.dot_product_attention(q, *(ops.repeat(part, 2, axis=2) for part in (k, v)), scale=0.3)
        return ops.reshape(y, (-1, TIME, HEADS * SIZE))

    return around(attention)


@situation(HEADS)
def biases_of_heads():
    def attention(x):
        q, k, v = (ops.reshape(y, (-1, TIME, HEADS, SIZE)) for y in projections(x))
        pairs = ops.expand_dims(x, 1) + ops.expand_dims(x, 2)
        bias = ops.transpose(layers.Dense(HEADS, name="bias")(pairs), (0, 3, 1, 2))
        return ops.reshape(ops.dot_product_attention(q, k, v, bias=bias, scale=0.3), (-1, TIME, HEADS * SIZE))

    return around(attention)


@situation(HEADS)
def to_chosen_neighbours():
    """Three of the positions for each."""

    def attention(x):
        neighbours = np.arange(TIME)[:, None] + np.arange(3) - TIME + 1
        q, k, v = (ops.reshape(y, (-1, TIME, HEADS, SIZE)) for y in projections(x))
        k, v = (ops.take(part, neighbours % TIME, axis=1) for part in (k, v))
        scores = ops.softmax(ops.einsum("bqhd,bqnhd->bhqn", q, k))
        return ops.reshape(ops.einsum("bhqn,bqnhd->bqhd", scores, v), (-1, TIME, HEADS * SIZE))

    return around(attention)


@situation(HEADS)
def values_wider_than_keys():
    def attention(x):
        q, k = projections(x, HEADS * 2, "qk")
        return joined(attend(split(q, size=2), split(k, size=2), split(layers.Dense(HEADS * 5, name="v")(x), size=5)))

    return around(attention)


@situation(HEADS)
def normalised_queries_and_keys():
    def attention(x):
        q, k, v = map(split, projections(x))
        q, k = layers.LayerNormalization(name="norm_q")(q), ops.normalize(k, axis=-1)
        return joined(attend(q, k, v))

    return around(attention)


@situation(HEADS)
def turned_by_position():
    """Rotary embeddings."""

    def attention(x):
        angles = np.random.default_rng(0).normal(size=(TIME, 4)).astype("float32")

        def turn(x):
            first, second = ops.split(x, 2, axis=-1)
            return x * np.cos(angles) + ops.concatenate([-second, first], axis=-1) * np.sin(angles)

        q, k, v = (split(y, size=4) for y in projections(x, HEADS * 4))
        return joined(attend(turn(q), turn(k), v))

    return around(attention)


@situation(HEADS)
def causal():
    def attention(x):
        q, k, v = map(split, projections(x))
        allowed = np.tri(TIME, dtype=bool)[None, None]
        scores = ops.where(allowed, ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))), -1e9)
        return joined(ops.matmul(ops.softmax(scores), v))

    return around(attention)


@situation(HEADS)
def masked_in_windows():
    def attention(x):
        q, k, v = map(split, projections(ops.reshape(x, (-1, 3, WIDTH))))
        scores = ops.reshape(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))), (-1, 2, HEADS, 3, 3))
        scores = scores + np.random.default_rng(0).normal(size=(1, 2, 1, 3, 3)).astype("float32")
        scores = ops.reshape(scores, (-1, HEADS, 3, 3))
        return ops.reshape(joined(ops.matmul(ops.softmax(scores), v)), (-1, TIME, HEADS * SIZE))

    return around(attention)


@situation(HEADS)
def to_another_sequence():
    inputs = [keras.Input((TIME, 5)), keras.Input((4, 5))]
    x, other = (layers.Dense(WIDTH, name=name)(i) for name, i in zip(("stream", "other"), inputs, strict=True))
    q, k, v = (layers.Dense(HEADS * SIZE, name=n)(i) for n, i in (("q", x), ("k", other), ("v", other)))
    y = layers.Dense(WIDTH, name="out")(joined(attend(split(q), split(k), split(v))))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(layers.Add()([x, y]))))


@situation(HEADS)
def of_pixels():
    def attention(x):
        parts = [ops.reshape(layers.Conv2D(HEADS * SIZE, 1, name=name)(x), (-1, 9, HEADS * SIZE)) for name in "qkv"]
        return ops.reshape(joined(attend(*map(split, parts))), (-1, 3, 3, HEADS * SIZE))

    return around(attention, (3, 3, 5))


@situation(HEADS)
def one_projection_for_queries_and_keys():
    def attention(x):
        both = layers.Dense(HEADS * SIZE, name="both")
        return joined(attend(split(both(x)), split(both(x)), split(layers.Dense(HEADS * SIZE, name="v")(x))))

    return around(attention)


@situation(HEADS * SIZE, WIDTH)
def one_head():
    """Numbers of queries and keys end in a product, those of values go on."""
    return around(lambda x: attend(*projections(x)))


@situation(HEADS)
def weighed_by_constants():
    def attention(x):
        scores = np.random.default_rng(0).normal(size=(HEADS, TIME, TIME)).astype("float32")
        return joined(ops.matmul(scores, split(layers.Dense(HEADS * SIZE, name="v")(x))))

    return around(attention)


@situation(HEADS)
def summed_over_heads():
    """What a sum over heads lacks are those that went."""

    def attention(x):
        q, k, v = map(split, projections(x))
        return joined(attend(q, k, v) + ops.sum(q, axis=1, keepdims=True))

    return around(attention)


@situation(HEADS)
def weighed_by_constants_of_a_lower_rank():
    def attention(x):
        scores = np.random.default_rng(0).normal(size=(HEADS, TIME, TIME)).astype("float32")
        return joined(ops.einsum("...qk,...kd->...qd", scores, split(layers.Dense(HEADS * SIZE, name="v")(x))))

    return around(attention)


@situation(HEADS)
def edges_of_a_graph():
    """Scores of heads on the last axis, and an input that lies across."""
    inputs = [keras.Input((TIME, 5)), keras.Input((TIME, TIME))]
    x = layers.Dense(WIDTH, name="stream")(inputs[0])
    v = ops.reshape(layers.Dense(HEADS * SIZE, name="v")(x), (-1, TIME, HEADS, SIZE))
    scores = ops.expand_dims(ops.sum(v, -1), 2) + ops.expand_dims(ops.max(v, -1), 1) + inputs[1][..., None]
    y = ops.einsum("bijh,bjhu->bihu", ops.softmax(scores, axis=2), v)
    y = layers.Dense(WIDTH, name="out")(ops.reshape(y, (-1, TIME, HEADS * SIZE)))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(layers.Add()([x, y]))))


@situation(WIDTH)
def mixed_patches():
    """Dense layers over positions: channels move through."""

    def attention(x):
        y = layers.Dense(9, activation="softmax", name="up")(ops.swapaxes(x, 1, 2))
        return ops.swapaxes(layers.Dense(TIME, name="down")(y), 1, 2)

    return around(attention)


@situation(9)
def mixed_features():
    """Nothing but features of the input lies on the other axis: units go."""
    inputs = keras.Input((TIME, 5))
    x = layers.Dense(9, activation="relu", name="up")(ops.swapaxes(inputs, 1, 2))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(x)))


@situation(9)
def mixed_outputs():
    """Channels on the other axis stay, for they are outputs: units go."""
    inputs = keras.Input((TIME, 5))
    x = layers.Dense(WIDTH, name="stream")(inputs)
    y = layers.Dense(TIME, name="down")(layers.Dense(9, activation="relu", name="up")(ops.swapaxes(x, 1, 2)))
    return keras.Model(inputs, layers.Add()([x, ops.swapaxes(y, 1, 2)]))


@situation(HEADS)
def slopes_of_heads():
    """A constant for each head, times distances of an input."""
    inputs = [keras.Input((TIME, 5)), keras.Input((TIME, TIME, 2))]
    x = layers.Dense(WIDTH, name="stream")(inputs[0])
    q, k, v = map(split, projections(x))
    slopes = np.linspace(0.2, 0.9, HEADS, dtype="float32")[:, None, None]
    biases = ops.expand_dims(ops.sum(inputs[1], axis=-1), 1) * slopes
    y = joined(ops.matmul(ops.softmax(ops.matmul(q, ops.swapaxes(k, -1, -2)) + biases), v))
    y = layers.Dense(WIDTH, name="out")(y)
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(layers.Add()([x, y]))))


@situation(9, WIDTH)
def covariances():
    """Of two axes with channels those of one can go."""
    inputs = keras.Input((TIME, 5))
    x = layers.Dense(WIDTH, name="stream")(inputs)
    left, right = layers.Dense(7, name="left")(x), layers.Dense(9, name="right")(x)
    y = ops.matmul(ops.swapaxes(left, 1, 2), right)
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(ops.relu(y))))


def masked(model, graph, plan):
    """The model, with zeros in weights that make and read what goes: what ends in a product is read by no weight."""
    alive = Kept(graph, {entry["name"]: entry["kept"] for entry in plan.groups}).alive
    for bind in graph.binds:
        variable = named_weights(model.get_layer(bind.layer))[bind.weight]
        value = np.moveaxis(np.array(keras.ops.convert_to_numpy(variable.value)), bind.axis, 0)
        value[~alive[bind.ids]] = 0
        variable.assign(np.moveaxis(value, 0, bind.axis))
    return model


def assert_heads_go(build, sizes):
    model = randomise(build(), 0)
    graph = kfp.analyze(model)
    groups = {group.size: group for group in graph.groups}
    assert set(sizes) <= set(groups)
    plan = kfp.plan_pruning(model, "random", kfp.FiltersBudget(keep=0.5), progress=False)
    small = kfp.apply_plan(model, plan, compensate="none", progress=False)
    x = random_inputs(model, batch=3, seed=1)
    assert small.count_params() < model.count_params()
    assert difference(predict(masked(randomise(build(), 0), graph, plan), x), predict(small, x)) < 1e-5


@pytest.mark.parametrize("name", SITUATIONS)
def test_situations(name):
    assert_heads_go(*SITUATIONS[name])


def shared(queries, keys):
    """Attention whose heads of queries share those of keys and values."""

    def attention(x):
        counts = zip("qkv", (queries, keys, keys), strict=True)
        q, k, v = (ops.reshape(layers.Dense(n * SIZE, name=m)(x), (-1, TIME, n, SIZE)) for m, n in counts)
        return ops.reshape(ops.dot_product_attention(q, k, v), (-1, TIME, queries * SIZE))

    return around(attention)


@pytest.mark.parametrize(("queries", "keys"), [(4, 2), (6, 3), (8, 4), (10, 5), (5, 5)])
def test_heads_of_queries_that_share_one_of_keys(queries, keys):
    """On TensorFlow, Keras computes no attention where all heads share a single one: the first of several stays."""
    stays = int(queries > keys and keras.config.backend() == "tensorflow")
    assert_heads_go(lambda: shared(queries, keys), (keys - stays,))
    graph = kfp.analyze(shared(queries, keys))
    group = next(group for group in graph.groups if group.size == keys - stays)
    positions = {m.layer: m.positions.tolist() for m in group.members if m.weight == "kernel" and m.role == "filter"}
    assert positions["q"] == np.arange(queries * SIZE).reshape(keys, -1).tolist()[stays:]
    assert positions["k"] == positions["v"] == np.arange(keys * SIZE).reshape(keys, -1).tolist()[stays:]
    assert stays == any("two heads or more" in pin.reason for pin in graph.pinned)


def test_a_bias_gives_way_before_the_heads_that_it_meets():
    """The weight of a bias, made of whichever input, lies along positions first; heads are worth more than those."""

    class Biased(layers.Layer):
        def build(self, shape):
            self.bias = self.add_weight((1, HEADS, TIME, TIME), "glorot_uniform", name="bias")
            self.projections = [layers.Dense(HEADS * SIZE) for _ in range(3)]

        def call(self, x):
            bias = 2.0 * self.bias
            q, k, v = (ops.reshape(dense(x), (-1, TIME, HEADS, SIZE)) for dense in self.projections)
            scores = ops.einsum("bqhd,bkhd->bhqk", q, k) + bias
            y = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores, axis=-1), v)
            return ops.reshape(y, (-1, TIME, HEADS * SIZE))

    graph = kfp.analyze(around(Biased()))
    (group,) = (group for group in graph.groups if group.size == HEADS)
    assert {m.axis for m in group.members if "bias" in m.layer and m.weight == "value"} == {1}


def test_macs_are_those_of_products():
    graph = kfp.analyze(separate())
    products = sum(
        term.coefficient * np.prod([len(axis) for axis in term.axes]) for term in graph.terms if "matmul" in term.layer
    )
    assert products == 2 * HEADS * TIME * TIME * SIZE


def swapped(x):
    return ops.swapaxes(x, 1, 2)


# {why heads stay: attention where they meet}
PINNED = {
    "is masked on its own": lambda q, k, v: ops.dot_product_attention(
        swapped(q), swapped(k), swapped(v), mask=np.ones((1, HEADS, TIME, TIME), bool)
    ),
    "is reduced over channels": lambda q, k, v: swapped(attend(q, k, v) + ops.prod(q, axis=(1, 3), keepdims=True)),
}


@pytest.mark.parametrize("why", PINNED)
def test_heads_that_meet_each_other_stay(why):
    def attention(x):
        return ops.reshape(PINNED[why](*map(split, projections(x))), (-1, TIME, HEADS * SIZE))

    graph = kfp.analyze(around(attention))
    assert {pin.layer for pin in graph.pinned if why in pin.reason} >= {"q"}
    assert_heads_go(lambda: around(attention), (WIDTH,))
