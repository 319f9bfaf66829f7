"""A device whose times are known, tables of it, and models whose operators it runs."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import layers
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune.cost import Tiles
from keras_filterprune.latency import operators_to_measure

OTHER = "Cortex-A76"
QUIET = {"progress": False}
FLOOR = 0.5
ONE, EIGHT = Tiles(1), Tiles(8)


def blocks(preactivation: bool = False) -> keras.Model:
    """Three residual blocks on one trunk."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    for name in "abc":
        y = layers.ReLU()(layers.BatchNormalization()(x)) if preactivation else x
        y = layers.ReLU()(layers.Conv2D(24, 3, padding="same", name=f"{name}1")(y))
        x = layers.Add(name=f"{name}_add")([x, layers.Conv2D(16, 3, padding="same", name=f"{name}2")(y)])
        x = x if preactivation else layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)) if preactivation else x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x), name="blocks"))


def sequential(*parts, shape=(8, 8, 3)) -> keras.Model:
    return randomise(keras.Sequential([keras.Input(shape), *parts]))


def sizes(graph) -> np.ndarray:
    return np.array([group.size for group in graph.groups], int)


MODELS = (
    "residual_identity residual_projection bottleneck preactivation_residual inception se_keepdims se_reshape "
    "separable plain_chain bn_before_conv grouped_conv grouped_as_depthwise depthwise flatten_dense dense_concat"
).split()


def work(entry: dict, tiles: Tiles = ONE) -> float:
    """A device whose time is proportional to what it computes, in whole tiles of output channels."""
    kind, (rows, columns) = entry["kind"], entry.get("size", (1, 1))
    if kind in ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
        window = math.prod(entry.get("kernel", (1, 1))) / math.prod(entry.get("strides", (1, 1)))
        return rows * columns * window * entry["channels"] * tiles.ceil(entry["filters"]) / 1e3
    return rows * columns * max(entry["channels"], entry["filters"]) / 1e3


def table_of(*models: keras.Model, tiles=EIGHT, device=OTHER, data_type="float32", noise=0.0) -> kfp.LatencyTable:
    rng = np.random.default_rng(0)
    entries = [entry for model in models for entry in operators_to_measure(kfp.analyze(model), data_type)]
    timed = [{**e, "us": FLOOR + work(e, tiles) * (1 + noise * rng.normal())} for e in entries]
    return kfp.LatencyTable(content(timed, device))


def content(entries: list[dict], device=OTHER) -> dict:
    return {
        "format": 1,
        "machine": {"cpu": device},
        "settings": {"threads": 1},
        "call_floor_us": FLOOR,
        "operators": entries,
    }


def random_keep(graph, rng) -> np.ndarray:
    return np.array([rng.integers(group.least, group.size + 1) for group in graph.groups], int)


CONV = {"kind": "CONV_2D", "size": (8, 8), "kernel": (3, 3), "data_type": "float32"}


def staircase(tiles: Tiles, noise: float = 0.0, seed: int = 0, channels=(16, 32, 48, 64)) -> kfp.LatencyTable:
    rng = np.random.default_rng(seed)
    entries = [CONV | {"channels": c, "filters": f} for c in channels for f in range(8, 129, 8)]
    return kfp.LatencyTable(content([e | {"us": FLOOR + work(e, tiles) * (1 + noise * rng.normal())} for e in entries]))


DATA = np.random.default_rng(0).normal(size=(24, 6, 6, 3)).astype("float32")


def counts(plan: kfp.PruningPlan) -> list[int]:
    """How many units the groups keep, in the order of the model."""
    return [len(group["kept"]) for group in plan.groups]
