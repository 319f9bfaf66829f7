"""Layers and models that are made of layers, one kind of situation each; every function builds a small model."""

import functools
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops

SIDE, WIDTH = 6, 8


class Situation(NamedTuple):
    """A model, and the classes of layers that are to stay closed in it, with a word of the reason."""

    build: callable
    closed: dict


SITUATIONS = {}


def situation(closed=None):
    def register(build):
        SITUATIONS[build.__name__] = Situation(build, closed or {})
        return build

    return register


class Block(layers.Layer):
    """Convolution, normalization, an activation from `keras.ops`."""

    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()

    def call(self, x):
        return ops.relu(self.norm(self.conv(x)))


def around(*steps, width=WIDTH, last=True):
    """A functional model: a convolution, the steps, a convolution and class scores."""
    inputs = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(width, 3, padding="same", name="before")(inputs)
    for step in steps:
        x = step(x)
    if last:
        x = layers.Conv2D(5, 3, activation="relu", name="after")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="scores")(x), name="around")


def sequence(*steps, width=WIDTH):
    """A functional model of tokens."""
    inputs = keras.Input((5, 3), name="tokens")
    x = layers.Dense(width, name="before")(inputs)
    for step in steps:
        x = step(x)
    x = layers.Dense(6, activation="relu", name="after")(x)
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten(name="flat")(x)), name="sequence")


def called(model, *shape, dtype="float32"):
    model(np.zeros((2, *(shape or (SIDE, SIDE, 3))), dtype))
    return model


def not_written(self):
    """The `get_config()` of a class whose constructor has no arguments for what it holds."""
    raise NotImplementedError


def layer(call, **parts):
    """A layer of a class of its own, whose `call(self, x)` is given, with these attributes."""
    kind = type("Made", (layers.Layer,), {"call": call, "get_config": not_written})

    def make():
        made = kind()
        for name, part in parts.items():
            setattr(made, name, part() if callable(part) and not isinstance(part, layers.Layer) else part)
        return made

    return make()


def weighted(call, **shapes):
    """A layer with weights of its own, of these shapes."""

    def build(self, _):
        for name, shape in shapes.items():
            setattr(self, name, self.add_weight(shape, "glorot_uniform", name=name))

    return type("Weighted", (layers.Layer,), {"call": call, "build": build})


# ---------------------------------------------------------------------------------------------------------- structure


@situation()
def block():
    return around(Block(7), Block(9))


@situation()
def strided_block():
    return around(Block(7, 2))


@situation()
def blocks_in_blocks():
    class Stage(layers.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.more = Block(7), [Block(7), Block(6)]

        def call(self, x):
            return functools.reduce(lambda y, inner: inner(y), self.more, self.first(x))

    return around(Stage(), Stage())


@situation()
def blocks_in_tuples_and_dicts():
    class Stage(layers.Layer):
        def __init__(self):
            super().__init__()
            self.pair, self.named = (Block(7), Block(6)), {"a": Block(5), "b": [Block(4)]}

        def call(self, x):
            for inner in (*self.pair, self.named["a"], *self.named["b"]):
                x = inner(x)
            return x

    return around(Stage())


@situation()
def residual():
    class Residual(layers.Layer):
        def __init__(self, filters):
            super().__init__()
            self.blocks, self.project = [Block(filters), Block(filters)], layers.Conv2D(filters, 1)

        def call(self, x):
            return self.project(x) + self.blocks[1](self.blocks[0](x))

    return around(Residual(6), Residual(7))


@situation()
def squeeze_and_excite():
    class Excite(layers.Layer):
        def build(self, shape):
            self.reduce, self.expand = layers.Dense(4, "relu"), layers.Dense(shape[-1], "sigmoid")
            self.reduce.build((None, shape[-1]))
            self.expand.build((None, 4))

        def call(self, x):
            return x * self.expand(self.reduce(ops.mean(x, axis=(1, 2), keepdims=True)))

    return around(Block(7), Excite())


@situation()
def shared_block():
    shared = Block(WIDTH)
    return around(shared, shared)


@situation()
def layer_twice_in_a_block():
    return around(
        layer(lambda self, x: self.conv(ops.relu(self.conv(x))), conv=layers.Conv2D(WIDTH, 3, padding="same"))
    )


@situation()
def sequential_inside():
    inner = keras.Sequential([layers.Conv2D(7, 3, padding="same"), layers.ReLU(), Block(6)])
    return around(layer(lambda self, x: self.inner(x), inner=inner))


@situation()
def functional_inside():
    x = keras.Input((SIDE, SIDE, WIDTH))
    y = layers.Conv2D(7, 3, padding="same")(x)
    inner = keras.Model(x, layers.Concatenate()([x, Block(5)(y)]))
    return around(layer(lambda self, x: ops.relu(self.inner(x)), inner=inner))


@situation()
def block_in_nested_model():
    x = keras.Input((SIDE, SIDE, WIDTH))
    return around(keras.Model(x, Block(7)(x), name="inner"))


@situation()
def block_in_sequential():
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), Block(7), Block(6), layers.Flatten(), layers.Dense(3)])
    return model


@situation()
def helper_functions():
    class Helped(layers.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.other = layers.Conv2D(7, 3, padding="same"), layers.Conv2D(6, 1)
            self.run = lambda x: self.conv(x)
            self.then = functools.partial(self._then, slope=0.1)

        def _then(self, x, slope):
            return ops.leaky_relu(self.other(x), slope)

        def call(self, x):
            return self.then(self.run(x))

    return around(Helped())


@situation()
def inherited_call():
    class Parent(layers.Layer):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(7, 3, padding="same")

        def call(self, x):
            return self.conv(x)

    class Child(Parent):
        def call(self, x):
            return ops.relu(super().call(x))

    return around(Child())


@situation()
def own_functions_as_activations():
    conv = layers.Conv2D(7, 3, padding="same", activation=lambda x: ops.relu(x) - 0.1)
    return around(layer(lambda self, x: self.conv(x), conv=conv))


@situation()
def lambda_layer_inside():
    conv = layers.Conv2D(7, 3, padding="same")
    double = layers.Lambda(lambda x: 2 * x)
    return around(layer(lambda self, x: self.double(self.conv(x)), conv=conv, double=double))


@situation()
def no_configuration():
    class Silent(layers.Layer):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def call(self, x):
            return ops.relu(self.conv(x))

        def get_config(self):
            return {"width": self.no_such_attribute}

    return around(Silent(layers.Conv2D(7, 3, padding="same")))


@situation()
def layer_of_keras_without_configuration():
    return around(Block(7), layers.Identity(dtype=keras.DTypePolicy("float32")))


@situation()
def arguments_that_are_no_tensors():
    class Scaled(layers.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = layers.Conv2D(7, 3, padding="same"), layers.Dropout(0.3)

        def call(self, x, scale=1.0, training=None, shift=0):
            return self.drop(scale * self.conv(x), training=training) + shift

    scaled = Scaled()
    return around(layer(lambda self, x: self.scaled(x, scale=0.5, shift=1), scaled=scaled))


# ------------------------------------------------------------------------------------------------------------ weights


@situation()
def scale_on_the_right():
    return around(Block(7), weighted(lambda self, x: x * self.gamma + self.beta, gamma=(7,), beta=(7,))())


@situation()
def scale_on_the_left():
    return around(Block(7), weighted(lambda self, x: self.beta + self.gamma * x, gamma=(7,), beta=(7,))())


@situation()
def reshaped_scale():
    return around(Block(7), weighted(lambda self, x: x * ops.reshape(ops.exp(self.gamma), (1, 1, 1, -1)), gamma=(7,))())


@situation()
def one_number_for_all():
    return around(Block(7), weighted(lambda self, x: ops.softplus(self.alpha) * x, alpha=(1,))())


@situation()
def product_with_a_weight():
    return sequence(weighted(lambda self, x: ops.relu(ops.matmul(x, self.w) + self.b), w=(WIDTH, 7), b=(7,))())


@situation()
def product_with_an_operator():
    return sequence(weighted(lambda self, x: ops.relu(x @ self.w), w=(WIDTH, 7))())


@situation()
def product_twice_with_one_weight():
    return sequence(weighted(lambda self, x: ops.relu(x @ self.w) @ self.w, w=(WIDTH, WIDTH))())


@situation()
def tied_both_ways():
    def call(self, x):
        return ops.matmul(ops.relu(ops.matmul(x, self.w)), ops.transpose(self.w))

    return sequence(weighted(call, w=(WIDTH, 7))())


@situation()
def position_embedding():
    return sequence(layers.Dense(7, "relu"), weighted(lambda self, x: x + self.places, places=(1, 5, 7))())


@situation()
def class_token():
    class Token(layers.Layer):
        def build(self, shape):
            self.token = self.add_weight((1, 1, shape[-1]), "glorot_uniform", name="token")

        def call(self, x):
            token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
            return ops.concatenate([token, x], axis=1)

    return sequence(Token())


@situation()
def class_token_tiled():
    def call(self, x):
        return ops.concatenate([ops.tile(self.token, (ops.shape(x)[0], 1, 1)), x], axis=1)

    return sequence(weighted(call, token=(1, 1, WIDTH))())


@situation()
def class_token_repeated():
    def call(self, x):
        return ops.concatenate([x, ops.repeat(self.token, ops.shape(x)[0], axis=0)], axis=1)

    return sequence(weighted(call, token=(1, 1, WIDTH))())


@situation()
def embedding_of_a_constant():
    return sequence(layer(lambda self, x: x + self.table(ops.arange(5)), table=layers.Embedding(5, WIDTH)))


@situation()
def weight_that_is_not_trained():
    class Fixed(layers.Layer):
        def build(self, shape):
            self.mean = self.add_weight((shape[-1],), "ones", trainable=False, name="mean")

        def call(self, x):
            return x - self.mean

    return around(Block(7), Fixed())


@situation()
def regularized_weight():
    class Penalised(layers.Layer):
        def build(self, shape):
            self.gamma = self.add_weight((shape[-1],), "ones", regularizer="l2", constraint="non_neg", name="gamma")

        def call(self, x):
            return x * self.gamma

    return around(Block(7), Penalised())


@situation()
def frozen_block():
    frozen = Block(7)
    frozen.trainable = False
    return around(frozen, Block(6))


@situation()
def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        scale = weighted(lambda self, x: x * self.gamma, gamma=(7,))
        return around(Block(7), scale(), Block(6))
    finally:
        keras.config.set_dtype_policy("float32")


# -------------------------------------------------------------------------------------------------------------- batch


@situation()
def reshape_of_a_batch():
    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        return ops.reshape(self.dense(ops.reshape(x, (batch, height * width, channels))), (batch, height, width, 7))

    return around(layer(call, dense=layers.Dense(7, "relu")))


@situation()
def windows():
    def call(self, x):
        batch, channels = ops.shape(x)[0], x.shape[-1]
        x = ops.transpose(ops.reshape(x, (batch, 2, 3, 2, 3, channels)), (0, 1, 3, 2, 4, 5))
        x = self.dense(ops.reshape(x, (batch * 4, 9, channels)))
        x = ops.transpose(ops.reshape(x, (batch, 2, 2, 3, 3, 7)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, 6, 6, 7))

    return around(layer(call, dense=layers.Dense(7, "relu")))


@situation()
def windows_and_a_rest():
    def call(self, x):
        windows, channels = ops.shape(x)[0] * 4, x.shape[-1]
        x = ops.transpose(ops.reshape(x, (-1, 2, 3, 2, 3, channels)), (0, 1, 3, 2, 4, 5))
        x = ops.reshape(self.dense(ops.reshape(x, (windows, 9, channels))), (windows, 9, 2, -1))
        return ops.reshape(ops.max(x, axis=2), (windows // 4, 6, 6, 5))

    return around(layer(call, dense=layers.Dense(10, "relu")))


@situation()
def sides_that_an_equation_takes_over():
    def call(self, x):
        y = self.dense(x)
        return y * ops.cast(ops.reshape(ops.arange(ops.shape(y)[1]), (1, -1, 1)), "float32")

    return sequence(layer(call, dense=layers.EinsumDense("abc,cd->abd", (None, 7), activation="relu")))


@situation()
def operations_of_one_name():
    inputs = keras.Input((SIDE, SIDE, 3))
    x = ops.transpose(inputs, (0, 2, 1, 3))
    x = layer(lambda self, x: ops.transpose(self.conv(x), (0, 2, 1, 3)), conv=layers.Conv2D(7, 1))(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(ops.transpose(Block(5)(x), (0, 2, 1, 3)))))


@situation()
def identity_of_a_policy():
    same = layers.Identity(dtype=keras.DTypePolicy("float32"))
    return around(layer(lambda self, x: self.same(self.conv(x)), conv=layers.Conv2D(7, 3, padding="same"), same=same))


@situation()
def statistics_of_two_calls():
    block = Block(7)
    inputs = [keras.Input((SIDE, SIDE, 3)), keras.Input((SIDE, SIDE, 3))]
    x = ops.abs(block(inputs[0]) - block(inputs[1]))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 3)(x))))


@situation()
def averages_and_draws_of_three_branches():
    class Branches(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = layers.Conv2D(7, 3, padding="same"), layers.BatchNormalization(momentum=0.5)
            self.drop, self.last, self.scores = layers.Dropout(0.4), layers.Conv2D(5, 3), layers.Dense(3)

        def call(self, x, training=None):
            made = [self.drop(ops.relu(self.norm(self.conv(part)))) for part in x]
            return self.scores(ops.reshape(self.last(made[0] + made[1] * made[2]), (ops.shape(x[0])[0], -1)))

    model = Branches()
    model([np.zeros((1, SIDE, SIDE, 3), "float32")] * 3)
    return model


@situation()
def mask_of_a_batch():
    def call(self, x):
        return self.dense(x) * ops.concatenate(
            [ops.ones((ops.shape(x)[0], 3, 1)), ops.zeros((ops.shape(x)[0], 2, 1))], 1
        )

    return sequence(layer(call, dense=layers.Dense(7)))


@situation(closed={"Made": "size of the batch"})
def numbered_samples():
    def call(self, x):
        return self.dense(x) * ops.cast(ops.reshape(ops.arange(ops.shape(x)[0]), (-1, 1, 1)), "float32")

    return sequence(layer(call, dense=layers.Dense(WIDTH)))


@situation()
def slices_and_splits():
    def call(self, x):
        a, b = ops.split(self.conv(x), 2, axis=-1)
        return ops.concatenate([a[:, 1:-1], ops.sigmoid(b)[:, 1:-1]], axis=-1)

    return around(layer(call, conv=layers.Conv2D(12, 3, padding="same")))


@situation()
def resized_images():
    return around(layer(lambda self, x: self.conv(ops.image.resize(x, (12, 12))), conv=layers.Conv2D(7, 3, 2)))


@situation()
def open_sides():
    inputs = keras.Input((None, None, 3))
    x = Block(6)(Block(7)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@situation()
def fixed_batch():
    inputs = keras.Input(batch_shape=(4, SIDE, SIDE, 3))
    x = layer(lambda self, x: ops.reshape(self.conv(x), (4, -1)), conv=layers.Conv2D(7, 3))(inputs)
    return keras.Model(inputs, layers.Dense(3)(x))


# ----------------------------------------------------------------------------------------------------------- training


class Trained(layers.Layer):
    """Hands `training` on."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = (
            layers.Conv2D(7, 3, padding="same"),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
        )

    def call(self, x, training=None):
        return self.drop(self.norm(self.conv(x), training=training), training=training)


@situation()
def training_handed_on():
    return around(Trained())


@situation()
def dropout_in_training_alone():
    def call(self, x, training=False):
        x = self.conv(x)
        if training:
            x = self.drop(x)
        return x

    return around(layer(call, conv=layers.Conv2D(7, 3, padding="same"), drop=layers.Dropout(0.4)))


@situation(closed={"Made": "training"})
def other_layers_in_training():
    def call(self, x, training=False):
        return ops.relu(self.conv(x)) if training else self.conv(x)

    return around(layer(call, conv=layers.Conv2D(WIDTH, 3, padding="same")), Block(7))


@situation(closed={"Made": "training"})
def other_layers_in_training_beside_a_weight():
    class Made(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight((WIDTH,), "ones", name="scale")

        def call(self, x, training=False):
            return x * ops.relu(self.scale) if training else x * self.scale

    return around(Made(), Block(7))


@situation(closed={"Made": "training=False, always"})
def frozen_statistics():
    def call(self, x):
        return self.norm(self.conv(x), training=False)

    return around(layer(call, conv=layers.Conv2D(7, 3, padding="same"), norm=layers.BatchNormalization()))


@situation()
def frozen_layers_in_inference():
    trained = Trained()
    trained.norm.trainable = False
    return around(layer(lambda self, x: self.inner(x, training=False), inner=trained))


@situation(closed={"Made": "training=False, always"})
def trained_as_if_frozen():
    trained = Trained()
    return around(layer(lambda self, x: self.inner(x, training=False), inner=trained))


class DropPath(layers.Layer):
    """Stochastic depth."""

    def __init__(self, rate=0.3, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seeds = rate, keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if not training:
            return x
        keep = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.seeds) > self.rate
        return x * ops.cast(keep, x.dtype) / (1 - self.rate)


@situation()
def stochastic_depth():
    return around(
        layer(
            lambda self, x: x + self.drop(self.conv(x)), conv=layers.Conv2D(WIDTH, 3, padding="same"), drop=DropPath()
        )
    )


class Sampling(layers.Layer):
    """Draws around a mean, in inference as well."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


@situation(closed={"Sampling": "random"})
def random_layer():
    return around(
        Block(7), layer(lambda self, x: self.sampling(self.conv(x)), conv=layers.Conv2D(6, 1), sampling=Sampling())
    )


@situation(closed={"Made": "random"})
def random_numbers_of_its_own():
    def call(self, x):
        return self.conv(x) + keras.random.normal(ops.shape(x), seed=self.seeds)

    return around(layer(call, conv=layers.Conv2D(WIDTH, 1), seeds=keras.random.SeedGenerator(1)))


@situation(closed={"Made": "called as well"})
def kernel_of_a_layer_that_is_called():
    def call(self, x):
        return ops.matmul(ops.relu(self.dense(x)), self.dense.kernel)

    return around(Block(7), layer(call, dense=layers.Dense(7, name="dense")))


@situation(closed={"Made": "random"})
def random_numbers_in_training_alone():
    def call(self, x, training=None):
        y = self.conv(x)
        if training:
            y = y * keras.random.uniform(ops.shape(y), seed=self.seeds)
        return x + y

    made = layer(call, conv=layers.Conv2D(7, 1), seeds=keras.random.SeedGenerator(1))
    return around(Block(7), made)


@situation()
def added_loss():
    def call(self, x):
        x = self.conv(x)
        self.add_loss(ops.mean(ops.square(x)))
        return x

    return around(layer(call, conv=layers.Conv2D(WIDTH, 1)))


@situation(closed={"Made": "assign"})
def weight_written_in_the_call():
    class Made(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight((), "zeros", trainable=False, name="count")
            self.conv = layers.Conv2D(WIDTH, 1)
            self.conv.build(shape)

        def call(self, x):
            self.count.assign(self.count + 1)
            return self.conv(x)

    return around(Made())


@situation(closed={"Kind": "call() of Conv2D"})
def subclass_of_a_layer():
    kind = type("Kind", (layers.Conv2D,), {})
    return around(layer(lambda self, x: self.inner(self.conv(x)), conv=layers.Conv2D(7, 3), inner=kind(6, 1)), Block(7))


# ---------------------------------------------------------------------------------------------- several tensors, models


@situation()
def two_inputs_of_a_layer():
    class Join(layers.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Conv2D(7, 1), layers.Conv2D(7, 1)

        def call(self, x, other, scale=0.5):
            return self.a(x) + scale * self.b(other)

    inputs = keras.Input((SIDE, SIDE, 3))
    x, y = Block(6)(inputs), layers.Conv2D(5, 3, padding="same")(inputs)
    x = layers.Flatten()(Join()(x, other=y, scale=2.0))
    return keras.Model(inputs, layers.Dense(3)(x))


@situation()
def lists_and_dicts_of_tensors():
    class Pyramid(layers.Layer):
        def __init__(self):
            super().__init__()
            self.convs = [layers.Conv2D(7, 1), layers.Conv2D(7, 1)]

        def call(self, maps):
            return {"a": self.convs[0](maps[0]), "b": [self.convs[1](maps[1]), maps[0]]}

    class Merge(layers.Layer):
        def call(self, maps):
            return ops.concatenate([maps["a"] + maps["b"][0], maps["b"][1]], axis=-1)

    inputs = keras.Input((SIDE, SIDE, 3))
    maps = [layers.Conv2D(6, 3, padding="same")(inputs), layers.Conv2D(5, 3, padding="same")(inputs)]
    x = Block(4)(Merge()(Pyramid()(maps)))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


class Classifier(keras.Model):
    """A subclassed model."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = layers.Conv2D(WIDTH, 3), [Block(7), Block(6)]
        self.pool, self.scores = layers.GlobalAveragePooling2D(), layers.Dense(3)

    def call(self, x):
        x = self.stem(x)
        for inner in self.blocks:
            x = inner(x)
        return self.scores(self.pool(x))


@situation()
def subclassed():
    return called(Classifier())


@situation()
def subclassed_and_told():
    class Told(Classifier):
        def call(self, x, training=None):
            return super().call(x)

    return called(Told())


@situation()
def subclassed_in_subclassed():
    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.scores = Classifier(), layers.Dense(4)

        def call(self, x):
            return self.scores(ops.relu(self.inner(x)))

    return called(Outer())


@situation()
def subclassed_with_several_outputs():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.block, self.a, self.b = Block(7), layers.Dense(3), layers.Dense(2)

        def call(self, x, training=False):
            x = ops.mean(self.block(x), axis=(1, 2))
            return {"classes": self.a(x), "box": (self.b(x), 2 * self.b(x))}

    return called(Two())


@situation()
def subclassed_with_named_inputs():
    class Named(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.scores = layers.Dense(7, "relu"), layers.Dense(7), layers.Dense(3)

        def call(self, inputs):
            return self.scores(self.a(inputs["left"]) + self.b(inputs["right"]))

    model = Named()
    model({"left": np.zeros((2, 4), "float32"), "right": np.zeros((2, 5), "float32")})
    return model


@situation()
def functional_with_its_own_call():
    class Doubled(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs, training=training, mask=mask)

    inputs = keras.Input((SIDE, SIDE, 3))
    return Doubled(inputs, layers.Dense(3)(layers.Flatten()(Block(6)(inputs))))


@situation()
def text():
    class Text(keras.Model):
        def __init__(self):
            super().__init__()
            self.words, self.places = layers.Embedding(20, WIDTH), layers.Embedding(5, WIDTH)
            self.hidden, self.scores = layers.Dense(7, "relu"), layers.Dense(3)

        def call(self, words):
            x = self.words(words) + self.places(ops.arange(ops.shape(words)[1]))
            return self.scores(ops.max(self.hidden(x), axis=1))

    return called(Text(), 5, dtype="int32")


@situation()
def masked_text():
    class Encoder(layers.Layer):
        def __init__(self):
            super().__init__()
            self.words, self.recur = layers.Embedding(2, WIDTH, mask_zero=True), layers.LSTM(6)

        def call(self, words):
            return self.recur(self.words(words))

    inputs = keras.Input((5,), dtype="int32")
    x = layers.Dense(7, "relu")(Encoder()(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))
