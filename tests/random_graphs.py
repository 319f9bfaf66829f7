"""Random functional CNN graphs, always valid: a strategy, so that a graph that fails shrinks to the least that does."""

from collections.abc import Callable
from functools import cached_property

import keras
from hypothesis import strategies as st
from keras import layers, ops
from zoo import randomise

ACTIVATIONS = ["relu", "relu6", "gelu", "sigmoid", "tanh", "leaky_relu", "silu"]
SMALLEST, LARGEST = 3, 12  # sides of the feature maps
STEPS_AT_MOST = 24


class RandomGraph:
    """A model with a 12x12x3 input, at most 24 random steps and one to three outputs, made of choices (bytes)."""

    def __init__(self, choices: bytes):
        self.choices = choices

    @cached_property
    def model(self) -> keras.Model:
        return self.build()

    def build(self) -> keras.Model:
        """The same model anew, but for the automatic names of raw `keras.ops`."""
        return _Draw(self.choices).model()

    def __repr__(self) -> str:
        return "\n".join(f"{type(op).__name__} {op.name} -> {op.output.shape}" for op in self.model.operations)


# One string of bytes, because Hypothesis would spend most examples on copying parts of one another into lists.
random_graphs = st.binary(min_size=200, max_size=200).map(RandomGraph)


class _Draw:
    """Grows one graph: `tensors` are all feature maps so far, `unused` those that nothing consumes yet."""

    def __init__(self, choices: bytes):
        self.choices = iter(choices)
        self.count = 0
        self.tensors: list = []
        self.unused: dict[int, keras.KerasTensor] = {}

    def model(self) -> keras.Model:
        inputs = keras.Input((LARGEST, LARGEST, 3), name="image")
        self.record(self.conv(inputs))
        steps = 0
        while steps < STEPS_AT_MOST and self.chance(0.95):
            self.record(self.any_of(STEPS)(self, self.pick()))
            steps += 1
        return randomise(keras.Model(inputs, self.heads(), name="random"))

    def heads(self):
        """Consume every loose end; sometimes one of them is an output by itself."""
        loose = list(self.unused.values())
        outputs = [loose.pop(0)] if len(loose) > 1 and self.chance(0.2) else []
        if self.chance(0.3):
            outputs.append(layers.Conv2D(2, 1, name=self.fresh("map"))(loose[-1]))
        features = [self.vector(x) for x in loose]
        x = features[0] if len(features) == 1 else layers.Concatenate(name=self.fresh("features"))(features)
        if self.chance(0.5):
            x = layers.Dense(self.width(), activation="relu", name=self.fresh("hidden"))(x)
        outputs.append(layers.Dense(4, name=self.fresh("logits"))(x))
        return outputs if len(outputs) > 1 else outputs[0]

    def vector(self, x):
        kinds = [layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D]
        if max(x.shape[1:3]) <= 6:
            kinds.append(layers.Flatten)
        return self.any_of(kinds)(name=self.fresh("vector"))(x)

    # Small draws: the lower the bytes, the plainer the graph.

    def choose(self, n: int) -> int:
        """An integer below n."""
        return next(self.choices, 0) % n

    def chance(self, probability: float) -> bool:
        return self.choose(20) >= round(20 * (1 - probability))

    def any_of(self, values):
        return values[self.choose(len(values))]

    def between(self, low: int, high: int) -> int:
        return low + self.choose(high - low + 1)

    def width(self, multiple: int = 1) -> int:
        return multiple * self.between(max(1, 5 // multiple), 20 // multiple)

    def activation(self) -> str | None:
        return self.any_of(ACTIVATIONS) if self.chance(0.5) else None

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"  # never "reshape_3", which a raw op may be given automatically

    def record(self, x) -> None:
        self.tensors.append(x)
        self.unused[id(x)] = x

    def pick(self, like=None):
        """A feature map, usually a recent one; with `like`, one of the same height and width if there is another."""
        pool = self.tensors
        if like is not None:
            pool = [t for t in pool if t is not like and t.shape[1:3] == like.shape[1:3]] or [like]
        back = 1
        while back < len(pool) and self.chance(0.5):
            back += 1
        self.unused.pop(id(pool[-back]), None)
        return pool[-back]

    def stride(self, x) -> int:
        return 2 if min(x.shape[1:3]) >= 2 * SMALLEST and self.chance(0.25) else 1

    def partner(self, x):
        """Another tensor of exactly x's shape, projected by a 1x1 convolution where its width differs."""
        y = self.pick(like=x)
        if y is x or y.shape[-1] != x.shape[-1] or self.chance(0.3):
            y = layers.Conv2D(x.shape[-1], 1, name=self.fresh("project"))(y)
        return y

    # Steps: feature map in, feature map out.

    def conv(self, x):
        stride = self.stride(x)
        return layers.Conv2D(
            self.width(),
            self.any_of([1, 2, 3, 5]),
            strides=stride,
            padding="same",
            dilation_rate=2 if stride == 1 and self.chance(0.2) else 1,
            activation=self.activation(),
            use_bias=self.chance(0.6),
            name=self.fresh("conv"),
        )(x)

    def grouped(self, x):
        channels = x.shape[-1]
        groups = self.any_of([g for g in (1, 2, 3, 4, channels) if channels % g == 0])
        filters = groups * self.between(1, max(1, 16 // groups - 1))
        return layers.Conv2D(filters, 3, padding="same", groups=groups, use_bias=False, name=self.fresh("grouped"))(x)

    def depthwise(self, x):
        multiplier = 2 if x.shape[-1] <= 10 and self.chance(0.4) else 1
        return layers.DepthwiseConv2D(
            3, self.stride(x), padding="same", depth_multiplier=multiplier, name=self.fresh("depthwise")
        )(x)

    def separable(self, x):
        multiplier = self.any_of([1, 2])
        return layers.SeparableConv2D(
            self.width(), 3, padding="same", depth_multiplier=multiplier, name=self.fresh("separable")
        )(x)

    def transposed(self, x):
        stride = 2 if max(x.shape[1:3]) * 2 <= LARGEST else 1
        return layers.Conv2DTranspose(
            self.width(), 3, stride, padding="same", activation=self.activation(), name=self.fresh("transposed")
        )(x)

    def batch_norm(self, x):
        return layers.BatchNormalization(scale=self.chance(0.8), center=self.chance(0.8), name=self.fresh("bn"))(x)

    def activate(self, x):
        kind = self.any_of(["layer", "op", "prelu"])
        if kind == "layer":
            return layers.Activation(self.any_of(ACTIVATIONS), name=self.fresh("act"))(x)
        return ops.relu(x) if kind == "op" else layers.PReLU(shared_axes=[1, 2], name=self.fresh("prelu"))(x)

    def merge(self, x):
        y = self.partner(x)
        merge = self.any_of([layers.Add, layers.Add, layers.Maximum, layers.Average, layers.Subtract])
        return merge(name=self.fresh("merge"))([x, y] if self.chance(0.5) else [y, x])

    def multiply(self, x):
        return layers.Multiply(name=self.fresh("product"))([x, ops.tanh(self.partner(x))])

    def concat(self, x):
        others = [self.pick(like=x) for _ in range(self.between(1, 2))]
        joined = layers.Concatenate(name=self.fresh("concat"))([*others, x])
        if joined.shape[-1] <= 24:
            return joined
        return layers.Conv2D(self.width(), 1, use_bias=False, name=self.fresh("squeeze"))(joined)

    def slice_channels(self, x):
        start = self.between(0, x.shape[-1] // 2)
        stop = self.between(start + 1, x.shape[-1])
        return x[..., start:stop]

    def split(self, x):
        """Work on one part and put the parts back in the other order."""
        a, b = ops.split(self.even(x), 2, axis=-1)
        return ops.concatenate([self.conv_same(b), a], axis=-1)

    def shuffle(self, x):
        x = self.even(x)
        height, width, channels = x.shape[1:]
        x = ops.transpose(ops.reshape(x, (-1, height, width, 2, channels // 2)), (0, 1, 2, 4, 3))
        return ops.reshape(x, (-1, height, width, channels))

    def pool(self, x):
        kind = self.any_of([layers.MaxPooling2D, layers.AveragePooling2D])
        return kind(2, strides=self.stride(x), padding="same", name=self.fresh("pool"))(x)

    def upsample(self, x):
        if max(x.shape[1:3]) * 2 > LARGEST:
            return self.pool(x)
        return layers.UpSampling2D(2, name=self.fresh("upsample"))(x)

    def gate(self, x):
        """Squeeze and excitation."""
        channels = x.shape[-1]
        if self.chance(0.5):
            y = layers.GlobalAveragePooling2D(keepdims=True, name=self.fresh("squeeze"))(x)
        else:
            y = layers.GlobalAveragePooling2D(name=self.fresh("squeeze"))(x)
            y = layers.Reshape((1, 1, channels), name=self.fresh("reshape"))(y)
        y = layers.Conv2D(self.width(), 1, activation="relu", name=self.fresh("reduce"))(y)
        y = layers.Conv2D(channels, 1, activation="sigmoid", name=self.fresh("expand"))(y)
        return layers.Multiply(name=self.fresh("scale"))([x, y])

    def shared(self, x):
        """One layer called on its own output, or on two tensors of equal width."""
        layer = layers.Conv2D(x.shape[-1], 3, padding="same", activation="relu", name=self.fresh("shared"))
        if self.chance(0.5):
            return layer(layer(x))
        return layers.Add(name=self.fresh("merge"))([layer(x), layer(self.partner(x))])

    def nested(self, x):
        """A sub-model, called once or twice."""
        channels = x.shape[-1]
        inner = keras.Input(x.shape[1:], name="inner_in")
        y = layers.Conv2D(self.width(), 3, padding="same", use_bias=False, name="inner_conv1")(inner)
        y = layers.ReLU(name="inner_relu")(layers.BatchNormalization(name="inner_bn")(y))
        y = layers.Conv2D(channels, 1, name="inner_conv2")(y)
        if self.chance(0.5):
            y = layers.Add(name="inner_add")([y, inner])
        block = keras.Model(inner, y, name=self.fresh("nested"))
        return block(block(x)) if self.chance(0.3) else block(x)

    def pad_channels(self, x):
        """Zero channels on both sides, added to a convolution of the same width."""
        x = ops.pad(x, [[0, 0], [0, 0], [0, 0], [1, 2]])
        return ops.add(self.conv_same(x), x)

    def even(self, x):
        return x if x.shape[-1] % 2 == 0 else layers.Conv2D(x.shape[-1] + 1, 1, name=self.fresh("even"))(x)

    def conv_same(self, x):
        return layers.Conv2D(x.shape[-1], 3, padding="same", activation=self.activation(), name=self.fresh("conv"))(x)


# The first ones are drawn more often.
STEPS: list[Callable] = [
    *[_Draw.conv] * 5,
    *[_Draw.batch_norm, _Draw.activate, _Draw.merge] * 3,
    *[_Draw.concat] * 2,
    *(_Draw.grouped, _Draw.depthwise, _Draw.separable, _Draw.transposed, _Draw.multiply, _Draw.slice_channels),
    *(_Draw.split, _Draw.shuffle, _Draw.pool, _Draw.upsample, _Draw.gate, _Draw.shared, _Draw.nested),
    _Draw.pad_channels,
]
