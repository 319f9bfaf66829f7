"""Networks with concatenations, long skips, several inputs or several outputs."""

import keras
from keras import layers

from .base import conv, conv_bn, logits, register


@register
def dense_concat():
    """DenseNet: BN over the growing concatenation, then a compressing transition."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv(inputs, 8, "stem")
    for i, growth in enumerate([4, 5, 6], start=1):
        y = layers.ReLU(name=f"relu{i}")(layers.BatchNormalization(name=f"bn{i}")(x))
        y = conv(conv_bn(y, 9 + i, f"squeeze{i}", kernel_size=1), growth, f"grow{i}", use_bias=False)
        x = layers.Concatenate(name=f"cat{i}")([x, y])
    x = layers.AveragePooling2D(2, name="pool")(conv_bn(x, 11, "transition", kernel_size=1))
    return keras.Model(inputs, logits(x), name="dense_concat")


@register
def concat_with_image():
    """The image is concatenated in front of hidden channels, so only some inputs of the next layers may go."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Concatenate(name="cat1")([inputs, conv_bn(inputs, 7, "conv1")])
    x = layers.BatchNormalization(name="cat1_bn")(x)
    x = layers.Concatenate(name="cat2")([conv_bn(x, 9, "conv2"), inputs, x])
    return keras.Model(inputs, logits(conv_bn(x, 8, "conv3")), name="concat_with_image")


@register
def inception():
    """Four parallel branches joined by concatenation, and an addition across two such joins."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 8, "stem")
    a = conv_bn(x, 5, "b1", kernel_size=1)
    b = conv_bn(conv_bn(x, 4, "b2_a", kernel_size=1), 6, "b2_b")
    c = conv(conv(conv(x, 7, "b3_a", kernel_size=1), 9, "b3_b", kernel_size=(1, 3)), 4, "b3_c", kernel_size=(3, 1))
    d = conv_bn(layers.MaxPooling2D(3, strides=1, padding="same", name="b4_pool")(x), 3, "b4", kernel_size=1)
    x = layers.Concatenate(name="cat1")([a, b, c, d])
    y = layers.Concatenate(name="cat2")([conv(x, 10, "e1"), conv(x, 8, "e2", activation="relu")])
    return keras.Model(inputs, logits(layers.Add(name="join")([x, y])), name="inception")


@register
def concat_then_split_use():
    """One tensor concatenated with itself, and the same tensor also used alone."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = conv_bn(inputs, 7, "conv1")
    twice = layers.Concatenate(name="twice")([x, layers.ReLU(name="again")(x)])
    y = layers.Add(name="join")([conv(twice, 9, "conv2"), conv(x, 9, "conv3")])
    return keras.Model(inputs, logits(y), name="concat_then_split_use")


@register
def unet():
    """Two levels, Conv2DTranspose and UpSampling2D, Cropping2D, concat skips and a skip from the image."""
    inputs = keras.Input((12, 8, 3), name="image")
    d1 = conv_bn(inputs, 6, "down1")
    d2 = conv_bn(layers.MaxPooling2D(2, name="pool1")(d1), 9, "down2")
    x = conv_bn(layers.MaxPooling2D(2, name="pool2")(d2), 14, "middle")
    x = layers.Conv2DTranspose(10, 3, strides=2, padding="same", name="up2")(x)
    x = layers.BatchNormalization(name="up2_bn")(x)
    x = conv_bn(layers.Concatenate(name="skip2")([d2, x]), 8, "decode2")
    x = layers.UpSampling2D(2, interpolation="bilinear", name="up1")(x)
    x = conv(layers.Concatenate(name="skip1")([x, d1, inputs]), 7, "decode1", activation="relu")
    x = layers.Cropping2D(((1, 0), (2, 1)), name="crop")(x)
    return keras.Model(inputs, conv(x, 2, "mask", kernel_size=1, activation="sigmoid"), name="unet")


@register
def decoder():
    """Dense + Reshape to an image, then transposed convolutions with and without bias (a GAN generator)."""
    inputs = keras.Input((5,), name="latent")
    x = layers.Dense(3 * 2 * 8, activation="relu", name="project")(inputs)
    x = layers.Reshape((3, 2, 8), name="to_image")(x)
    x = layers.Conv2DTranspose(11, 4, strides=2, padding="same", use_bias=False, name="up1")(x)
    x = layers.ReLU(name="up1_act")(layers.BatchNormalization(name="up1_bn")(x))
    x = layers.Conv2DTranspose(7, 3, strides=1, activation="relu", name="up2")(x)
    return keras.Model(inputs, layers.Conv2DTranspose(3, 2, strides=2, name="rgb")(x), name="decoder")


@register
def yolo_head():
    """Two scales, three anchors of seven values each, reshaped and concatenated; raw maps are outputs too."""
    inputs = keras.Input((12, 12, 3), name="image")
    fine = conv_bn(inputs, 9, "stem", strides=2, activation="leaky_relu")
    coarse = conv_bn(fine, 14, "deep", strides=2, activation="leaky_relu")
    up = layers.UpSampling2D(2, name="up")(conv_bn(coarse, 6, "lateral", kernel_size=1))
    fine = conv_bn(layers.Concatenate(name="cat")([up, fine]), 11, "fuse")
    map_fine, map_coarse = conv(fine, 21, "head_fine", kernel_size=1), conv(coarse, 21, "head_coarse", kernel_size=1)
    flat = [layers.Reshape((-1, 7), name=f"anchors{i}")(m) for i, m in enumerate([map_fine, map_coarse])]
    boxes = layers.Concatenate(axis=1, name="boxes")(flat)
    return keras.Model(inputs, [boxes, map_fine, map_coarse], name="yolo_head")


@register
def ssd_head():
    """Hidden channels are split into anchors by a Reshape and concatenated over positions before a shared Dense."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = conv_bn(inputs, 7, "stem", strides=2)
    a = layers.Reshape((32, 5), name="anchors_a")(conv(x, 10, "head_a"))
    b = layers.Reshape((8, 5), name="anchors_b")(conv(x, 10, "head_b", strides=2))
    x = layers.Concatenate(axis=1, name="positions")([a, b])
    return keras.Model(inputs, layers.Dense(4, name="boxes")(x), name="ssd_head")


@register
def multi_input_output():
    """An image and a vector come in, a class and a small map go out."""
    image, vector = keras.Input((8, 6, 3), name="image"), keras.Input((4,), name="vector")
    x = conv_bn(image, 9, "conv1")
    v = layers.Dense(9, activation="relu", name="fc1")(vector)
    x = layers.Multiply(name="film")([x, layers.Reshape((1, 1, 9), name="to_map")(v)])
    x = conv_bn(x, 11, "conv2")
    pooled = layers.Concatenate(name="cat")([layers.GlobalMaxPooling2D(name="gmp")(x), v])
    outputs = [layers.Dense(5, name="classes")(pooled), conv(x, 2, "heatmap", kernel_size=1)]
    return keras.Model([image, vector], outputs, name="multi_input_output")


@register
def dict_input_output():
    """Nested dict outputs and dict inputs whose keys are not in alphabetical order."""
    inputs = {"right": keras.Input((6, 6, 3), name="right"), "left": keras.Input((6, 6, 2), name="left")}
    a, b = conv_bn(inputs["right"], 8, "conv_right"), conv_bn(inputs["left"], 8, "conv_left")
    x = conv_bn(layers.Add(name="join")([a, b]), 10, "conv_join")
    outputs = {
        "map": conv(x, 3, "map", kernel_size=1),
        "classes": {"a": logits(x, 4, "fc_a"), "b": logits(x, 2, "fc_b")},
    }
    return keras.Model(inputs, outputs, name="dict_input_output")


@register
def hidden_output():
    """A hidden feature map is an output as well (pinned: "conv2")."""
    inputs = keras.Input((8, 6, 3), name="image")
    x = conv_bn(inputs, 7, "conv1")
    hidden = conv_bn(x, 9, "conv2")
    x = conv_bn(hidden, 11, "conv3")
    return keras.Model(inputs, [logits(x), hidden], name="hidden_output")
