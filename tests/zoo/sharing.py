"""Layers used more than once, and models used as layers."""

import keras
from keras import layers

from .base import conv, conv_bn, logits, register


def _block(shape: tuple[int, ...], widths: tuple[int, int], name: str) -> keras.Model:
    inputs = keras.Input(shape, name="block_in")
    x = conv_bn(inputs, widths[0], "conv1")
    return keras.Model(inputs, conv_bn(x, widths[1], "conv2"), name=name)


@register
def shared_conv():
    """One convolution called twice in a row: its output channels are tied to its input channels."""
    inputs = keras.Input((8, 8, 3), name="image")
    shared = layers.Conv2D(9, 3, padding="same", activation="relu", name="shared")
    x = shared(conv_bn(inputs, 9, "conv1"))
    x = layers.BatchNormalization(name="between")(x)
    return keras.Model(inputs, logits(conv_bn(shared(x), 7, "conv2")), name="shared_conv")


@register
def shared_head():
    """RetinaNet: one head convolution and one BN over two scales; two heads share their last layer."""
    inputs = keras.Input((8, 8, 3), name="image")
    a = conv_bn(inputs, 10, "fine")
    b = conv_bn(a, 10, "coarse", strides=2)
    tower, bn = layers.Conv2D(7, 3, padding="same", name="tower"), layers.BatchNormalization(name="tower_bn")
    predict = layers.Conv2D(4, 1, name="predict")
    return keras.Model(inputs, [predict(layers.ReLU(name=f"act_{i}")(bn(tower(x)))) for i, x in enumerate([a, b])])


@register
def siamese():
    """Shared Conv + BN + Dense on two inputs, compared by subtraction."""
    left, right = keras.Input((6, 8, 3), name="left"), keras.Input((6, 8, 3), name="right")
    steps = [
        layers.Conv2D(9, 3, padding="same", name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(name="relu"),
        layers.GlobalAveragePooling2D(name="gap"),
        layers.Dense(11, name="embed"),
    ]
    a, b = left, right
    for step in steps:
        a, b = step(a), step(b)
    x = layers.Subtract(name="difference")([a, b])
    return keras.Model([left, right], layers.Dense(1, activation="sigmoid", name="same")(x), name="siamese")


@register
def nested_functional():
    """Two nested models, with the same inner layer names as each other and as the outer model."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 6, "conv1")
    x = _block((8, 8, 6), (7, 9), "block_a")(x)
    y = _block((8, 8, 9), (8, 9), "block_b")(x)
    x = layers.Add(name="join")([x, y])
    return keras.Model(inputs, logits(conv_bn(x, 10, "conv2")), name="nested_functional")


@register
def nested_sequential():
    """A Sequential inside a Sequential inside a functional model, the inner one never told its input shape."""
    inner = keras.Sequential(
        [layers.Conv2D(7, 3, name="inner1"), layers.BatchNormalization(name="inner_bn")], name="inner"
    )
    middle = keras.Sequential([inner, layers.ReLU(name="relu"), layers.Conv2D(11, 1, name="middle1")], name="middle")
    inputs = keras.Input((8, 8, 3), name="image")
    x = middle(conv_bn(inputs, 9, "conv1"))
    return keras.Model(inputs, logits(conv_bn(x, 8, "conv2")), name="nested_sequential")


@register
def nested_called_twice():
    """A nested model called twice on the trunk, and once more on the pooled trunk."""
    inputs = keras.Input((8, 8, 3), name="image")
    block = _block((None, None, 10), (7, 10), "block")
    x = conv_bn(inputs, 10, "stem")
    x = layers.Add(name="join1")([x, block(x)])
    x = layers.Add(name="join2")([x, block(x)])
    small = block(layers.MaxPooling2D(2, name="pool")(x))
    x = layers.Concatenate(name="cat")([logits(x, 6, "fc1"), logits(small, 8, "fc2")])
    return keras.Model(inputs, layers.Dense(3, name="fc3")(x), name="nested_called_twice")


@register
def nested_multi_io():
    """A nested model with two inputs and three outputs, one of them unused, and a frozen nested model."""
    a, b = keras.Input((6, 6, 7), name="a"), keras.Input((6, 6, 8), name="b")
    c = conv_bn(layers.Concatenate(name="cat")([a, b]), 10, "conv1")
    exchange = keras.Model(
        [a, b], [conv(c, 9, "conv2"), c, layers.Add(name="skip")([conv(c, 8, "conv3"), b])], name="exchange"
    )
    frozen = _block((6, 6, 9), (5, 6), "frozen")
    frozen.trainable = False
    inputs = keras.Input((6, 6, 3), name="image")
    x, _, y = exchange([conv(inputs, 7, "left"), conv(inputs, 8, "right", activation="relu")])
    return keras.Model(inputs, [logits(frozen(x), 4, "fc1"), logits(y, 3, "fc2")], name="nested_multi_io")


@register
def nested_as_output():
    """Both the backbone and the head are models, and the head's output is the model's output."""
    features = keras.Input((9,), name="features")
    head = keras.Model(
        features, layers.Dense(4, name="fc2")(layers.Dense(11, activation="relu", name="fc1")(features)), name="head"
    )
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="gap")(_block((8, 8, 3), (7, 9), "backbone")(inputs))
    return keras.Model(inputs, head(x), name="nested_as_output")


@register
def sequential():
    """A top-level Sequential with an Input."""
    steps = [
        keras.Input((10, 6, 3), name="image"),
        layers.Conv2D(7, 3, name="conv1"),
        layers.BatchNormalization(name="bn1"),
        layers.ReLU(name="relu1"),
        layers.MaxPooling2D(2, name="pool1"),
        layers.Conv2D(9, 1, activation="relu", name="conv2"),
        layers.Flatten(name="flatten"),
        layers.Dense(10, activation="relu", name="fc1"),
        layers.Dense(4, name="logits"),
    ]
    return keras.Sequential(steps, name="sequential")


@register
def functional_in_sequential():
    """A Sequential whose first layer is a functional model, built without an Input of its own."""
    model = keras.Sequential(name="functional_in_sequential")
    model.add(_block((8, 8, 3), (7, 9), "backbone"))
    model.add(layers.Conv2D(11, 3, activation="relu", name="conv1"))
    model.add(layers.GlobalAveragePooling2D(name="gap"))
    model.add(layers.Dense(4, name="logits"))
    return model
