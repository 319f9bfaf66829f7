"""A small network whose classes all occur, trials that are counted, and processes that are killed."""

from __future__ import annotations

import json

import keras
import numpy as np
from builders import images, predict
from keras import layers
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria
from keras_filterprune.graph import Kept
from keras_filterprune.probe.trial import Trial

CHAIN = ("conv1", "conv2", "conv3")
NEVER = 1_000


def chain(classes: int = 3, activation: str | None = None, widths=(8, 8, 8), strides: int = 1) -> keras.Model:
    """Three convolutions and a head whose mean on `images()` is taken off, so that all classes occur."""
    y = inputs = keras.Input((8, 8, 3))
    for name, width in zip(CHAIN, widths, strict=True):
        y = layers.Conv2D(width, 3, padding="same", strides=strides, activation="relu", name=name)(y)
    y = layers.Dense(classes, name="head")(layers.GlobalAveragePooling2D()(y))
    y = y if activation is None else layers.Activation(activation)(y)
    model = randomise(keras.Model(inputs, y, name="chain"))
    head = keras.Model(inputs, model.get_layer("head").output)
    model.get_layer("head").bias.assign_sub(predict(head, images())[0].mean(axis=0))
    return model


def without_readers(model: keras.Model, **dead: list[int]) -> keras.Model:
    """Zero the weights that read these channels."""
    for name, channels in dead.items():
        reader = model.get_layer({"conv1": "conv2", "conv2": "conv3", "conv3": "head"}[name])
        kernel = keras.ops.convert_to_numpy(reader.kernel.value).copy()
        kernel[..., channels, :] = 0
        reader.kernel.assign(kernel)
    return model


def labelled(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples with the classes that the model itself finds."""
    return x, predict(model, x)[0].argmax(axis=1)


def trial_of(graph, data, measure: str):
    """A trial that is asked about {group: units}."""
    trial = Trial(graph, data, measure, False)
    return lambda units: trial(Kept(graph, units))


def kept_of(plan: kfp.PruningPlan) -> dict[str, np.ndarray]:
    return {group["name"]: np.array(group["kept"]) for group in plan.groups}


class Killed(BaseException):
    """What a killed process is to a test."""


def rounds_of(path) -> list[tuple[int, int]]:
    return [(group, units) for group, units, _ in json.loads(path.read_text())["rounds"]]


def score(trial: Trial, graph, keep: np.ndarray, weights) -> float:
    chosen = {g.name: criteria.L2().select(g, int(n), weights) for g, n in zip(graph.groups, keep, strict=True)}
    return trial(chosen)


class Hook:
    """Training in its place: shifts the head's bias a little, remembers the models; raises at call number `at`."""

    def __init__(self, at: int = NEVER):
        self.at, self.sizes, self.compiled = at, [], []

    def __call__(self, model: keras.Model) -> None:
        self.sizes.append(model.count_params())
        self.compiled.append(model.compiled)
        if len(self.sizes) >= self.at:
            raise Killed("while training")
        model.get_layer("head").bias.assign_add([0.01, -0.02, 0.01])


def trained(model, data, hook, path=None, keep=0.4, compensate="none", criterion=None):
    method = kfp.Method(criterion or criteria.L2(), allocators.Search(beta=2, checkpoint=path))
    return kfp.prune_model(
        model,
        method,
        keep,
        data=data,
        compensate=compensate,
        finetune=hook,
        verify=False,
        return_report=True,
        progress=False,
    )
