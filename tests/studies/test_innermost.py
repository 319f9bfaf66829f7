"""The inner layers of an encoder-decoder are found by their resolution, whatever makes tensors larger."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import conv

import keras_filterprune as kfp
from keras_filterprune.errors import InvalidValueError, UnsupportedModelError
from keras_filterprune.studies import innermost

L = keras.layers


def unet(larger, side=16):
    """Two levels under the full resolution; `larger(x, filters, name)` goes up a level."""
    x = image = keras.Input((side, side, 3))
    x = outer = conv(4, "outer")(x)
    x = middle = conv(8, "middle", strides=2)(x)
    x = conv(12, "inner_in", strides=2)(x)
    x = conv(12, "inner_out")(x)
    x = conv(8, "middle_out")(L.Concatenate()([larger(x, 8, "larger_1"), middle]))
    x = conv(4, "outer_out")(L.Concatenate()([larger(x, 4, "larger_2"), outer]))
    return keras.Model(image, L.Conv2D(2, 1, name="logits")(x))


def shuffled(x, filters, name):
    _, height, width, _ = x.shape
    x = L.Reshape((height, width, 2, 2, filters))(L.Conv2D(4 * filters, 1, name=name)(x))
    return L.Reshape((2 * height, 2 * width, filters))(L.Permute((1, 3, 2, 4, 5))(x))


LARGER = {
    "upsampling": lambda x, filters, name: L.UpSampling2D()(x),
    "resizing": lambda x, filters, name: L.Resizing(2 * x.shape[1], 2 * x.shape[2])(x),
    "transposed": lambda x, filters, name: L.Conv2DTranspose(filters, 2, 2, name=name)(x),
    "repeated": lambda x, filters, name: keras.ops.repeat(keras.ops.repeat(x, 2, axis=1), 2, axis=2),
}


@pytest.mark.parametrize("larger", LARGER.values(), ids=LARGER)
def test_the_lowest_resolutions_come_first(larger):
    model = unet(larger)
    ups = [layer.name for layer in model.layers if layer.name.startswith("larger_")]
    assert innermost(model) == ["inner_in", "inner_out"]
    assert innermost(model, 2) == ["middle", "inner_in", "inner_out", *ups[:1], "middle_out"]
    # The full resolution is none that anything is made larger from.
    assert innermost(model, 9) == innermost(model, 2)


def test_a_space_that_is_made_of_channels_counts_like_any_other():
    assert innermost(unet(shuffled)) == ["inner_in", "inner_out", "larger_1"]


def excited():
    x = image = keras.Input((16, 16, 3))
    x = skip = conv(8, "outer")(x)
    x = conv(8, "inner", strides=2)(x)
    gate = L.GlobalAveragePooling2D(keepdims=True)(x)
    gate = L.Conv2D(8, 1, activation="sigmoid", name="gate")(L.Conv2D(4, 1, activation="relu", name="squeeze")(gate))
    x = L.Concatenate()([L.UpSampling2D()(L.Multiply()([x, gate])), skip])
    return keras.Model(image, L.Conv2D(2, 1, name="logits")(x))


def separable():
    """Depthwise convolutions hand on what is made at another resolution: on the way down, and on the way up."""
    x = image = keras.Input((16, 16, 3))
    x = outer = conv(8, "outer")(x)
    x = conv(12, "deep")(L.DepthwiseConv2D(3, 2, "same", name="down")(x))
    x = conv(12, "inner")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="up")(L.Concatenate()([L.UpSampling2D()(x), outer]))
    return keras.Model(image, L.Conv2D(2, 1, name="logits")(x))


def padded():
    x = image = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 3, name="outer")(L.ZeroPadding2D()(x))
    x = L.Conv2D(8, 3, strides=2, name="inner")(L.ZeroPadding2D()(x))
    return keras.Model(image, L.Conv2D(2, 1, name="logits")(L.UpSampling2D()(x)))


def autoencoder():
    x = values = keras.Input((12,))
    x = L.Dense(6, activation="relu", name="code")(x)
    x = L.Reshape((3, 3, 4))(L.Dense(36, activation="relu", name="spread")(x))
    x = conv(8, "inner")(x)
    return keras.Model(values, L.Conv2D(1, 3, padding="same", name="pixels")(L.UpSampling2D()(x)))


def of_waves():
    x = wave = keras.Input((32, 2))
    x = skip = L.Conv1D(4, 3, padding="same", activation="relu", name="outer")(x)
    x = L.Conv1D(8, 3, 2, "same", activation="relu", name="inner")(x)
    x = L.Concatenate()([L.UpSampling1D()(x), skip])
    return keras.Model(wave, L.Conv1D(1, 3, padding="same", name="out")(x))


def of_tokens():
    x = tokens = keras.Input((32,), dtype="int32")
    x = skip = L.Conv1D(4, 3, padding="same", activation="relu", name="outer")(L.Embedding(9, 8)(x))
    x = L.Conv1D(8, 3, 2, "same", activation="relu", name="inner")(x)
    x = L.Concatenate()([L.UpSampling1D()(x), skip])
    return keras.Model(tokens, L.Conv1D(1, 3, padding="same", name="out")(x))


def joined_grids():
    """As detectors join what they found at two resolutions: more positions, and nothing is larger."""
    x = image = keras.Input((16, 16, 3))
    x = fine = conv(8, "fine")(x)
    x = conv(8, "coarse", strides=2)(x)
    up = conv(8, "neck")(L.Concatenate()([L.UpSampling2D()(x), fine]))
    heads = [L.Reshape((-1, 2))(L.Conv2D(2, 1)(y)) for y in (up, x)]
    return keras.Model(image, L.Concatenate(axis=1)(heads))


def nested():
    inner = unet(LARGER["upsampling"])
    x = keras.Input((16, 16, 3))
    return keras.Model(x, inner(x))


SITUATIONS = [
    (excited, 1, ["inner"]),
    (padded, 2, ["inner"]),
    (separable, 1, ["deep", "inner"]),
    (autoencoder, 1, ["code", "spread"]),
    (autoencoder, 2, ["code", "spread", "inner"]),
    (of_waves, 1, ["inner"]),
    (of_tokens, 1, ["inner"]),
    (joined_grids, 1, ["coarse"]),
]


@pytest.mark.parametrize(("network", "k", "found"), SITUATIONS, ids=[f"{n.__name__} {k}" for n, k, _ in SITUATIONS])
def test_what_makes_no_bottleneck_is_not_taken_for_one(network, k, found):
    assert innermost(network(), k) == found


def test_layers_of_nested_models_are_named_as_budgets_name_them():
    model = nested()
    names = innermost(model)
    assert [name.rpartition("/")[2] for name in names] == ["inner_in", "inner_out"]
    small = kfp.prune_model(model, "l2", kfp.FiltersBudget(dict.fromkeys(names, 0.25)), progress=False)
    whole, left = (kfp.analyze(m).by_name for m in (model, small))
    assert {name: left[name].size / whole[name].size for name in whole} == {
        name: 0.25 if name in names else 1.0 for name in whole
    }


def test_a_budget_of_parameters_falls_on_inner_layers_alone():
    model = unet(LARGER["upsampling"])
    names = innermost(model)
    small = kfp.prune_model(model, "l2", kfp.ParamsBudget(keep=0.6), include=names, progress=False)
    assert small.count_params() <= 0.6 * model.count_params()
    changed = {
        layer.name
        for layer, other in zip(small.layers, model.layers, strict=True)
        if getattr(layer, "filters", None) != getattr(other, "filters", None)
    }
    assert changed and changed <= set(names)


def test_networks_without_a_bottleneck_are_refused():
    model = keras.Sequential([keras.Input((8, 8, 3)), conv(4, "a"), L.GlobalAveragePooling2D(), L.Dense(2)], name="net")
    with pytest.raises(UnsupportedModelError, match="nothing in model 'net' is made larger"):
        innermost(model)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None, "1", np.nan])
def test_the_number_of_resolutions_is_checked(k):
    with pytest.raises(InvalidValueError, match="Received: k="):
        innermost(unet(LARGER["upsampling"]), k)
