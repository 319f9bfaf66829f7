"""Small chains of layers that are pruned by a fixed fraction, and why layers of them stay."""

import keras
from keras import layers
from zoo import randomise

import keras_filterprune as kfp


def image(shape=(6, 6, 3), name="image"):
    return keras.Input(shape, name=name)


def head(x, units: int = 3):
    return layers.Dense(units, name="logits")(layers.GlobalAveragePooling2D(name="gap")(x))


def prune(model: keras.Model, keep: float = 0.5, **kwargs):
    """Remove filters of every group by a fixed fraction; verified."""
    return kfp.prune_model(model, "l2", kfp.FiltersBudget(keep=keep), progress=False, **kwargs)


def reason(model: keras.Model, layer: str) -> str:
    """Why `layer` cannot be pruned."""
    return " | ".join(pin.reason for pin in kfp.analyze(model).pinned if pin.layer == layer)


def chain(*steps, x=None) -> keras.Model:
    x = image() if x is None else x
    y = x
    for step in steps:
        y = step(y)
    return randomise(keras.Model(x, head(y), name="chain"))
