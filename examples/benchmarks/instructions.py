"""Executed instructions of three pruned files on an emulated Cortex-A76: the baseline that new code is held to.

python -m tflite_bench arm setup
python examples/benchmarks/instructions.py [--out FILE]

Run it to store new counts on purpose. A test makes and counts the same files and fails when one needs 1 % more than is
stored (counts vary by less than 0.1 %). No version is pinned, because users have the newest ones: whatever lengthens
the way from a model to its kernels shows, and the stored versions tell whose doing it can be. Only the weights are
fixed, drawn by NumPy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_filterprune as kfp
from tflite_bench.arm import count_instructions

BASELINE = Path(__file__).with_name("results") / "instructions.json"
CORE = "cortex-a76"
PACKAGES = ("keras", "tensorflow", "ai-edge-quantizer", "ai-edge-litert")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(BASELINE), help="where the counts go (%(default)s)")
    report = json.dumps(count(), indent=1)
    Path(parser.parse_args().out).write_text(report + "\n", encoding="utf-8")
    print(report)


def count() -> dict[str, Any]:
    """Prune, export and count the three networks."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{name}.tflite") for name in NETWORKS]
        for path, (build, mode, budget, steps) in zip(paths, NETWORKS.values(), strict=True):
            model = with_weights(build())
            small = kfp.prune_model(model, "l2", budget, channel_multiple=steps, verify=False, progress=False)
            images = np.random.default_rng(0).standard_normal((8, *model.input_shape[1:])).astype("float32")
            data = images if mode == "int8" else None
            kfp.export_tflite(small, path, quantize=mode, data=data, verify=False)
        found = count_instructions(paths, cpu=CORE)
    return {
        "core": CORE,
        "versions": {name: version(name) for name in PACKAGES} | {"emulator": found.machine["emulator"]},
        "instructions": {Path(model.path).stem: model.instructions for model in found.models},
    }


def with_weights(model: keras.Model) -> keras.Model:
    """Weights that no version of Keras draws differently; variances of batch normalisation stay positive."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) * (0.1 if len(weight.shape) > 1 else 1.0))
    return model


def residual_network() -> keras.Model:
    """Convolutions, batch normalisation and sums, as in a ResNet."""
    x = inputs = keras.Input((32, 32, 3))
    x = normalised(layers.Conv2D(16, 3, padding="same", use_bias=False)(x))
    for width, stride in ((16, 1), (32, 2)):
        y = normalised(layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x))
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(y))
        x = layers.ReLU()(layers.Add()([layers.Conv2D(width, 1, stride)(x), y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mobile_network() -> keras.Model:
    """Depthwise convolutions and squeeze-and-excite, as in a MobileNetV3."""
    x = inputs = keras.Input((32, 32, 3))
    x = normalised(layers.Conv2D(16, 3, 2, padding="same", use_bias=False)(x))
    for width in (48, 64):
        x = normalised(layers.Conv2D(width, 1, use_bias=False)(x))
        x = normalised(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
        gate = layers.Conv2D(8, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        x = layers.Multiply()([x, layers.Conv2D(width, 1, activation="hard_sigmoid")(gate)])
        x = layers.Conv2D(24, 1, use_bias=False)(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def segmenting_network() -> keras.Model:
    """Images scaled on the way in, a narrow part, and upsampling back, as in a U-Net."""
    inputs = keras.Input((32, 32, 3))
    scaled = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    wide = layers.Conv2D(16, 3, padding="same", activation="relu")(scaled)
    narrow = layers.Conv2D(32, 3, 2, padding="same", activation="relu")(wide)
    up = layers.Conv2DTranspose(16, 2, 2, activation="relu")(layers.Conv2D(32, 3, padding="same")(narrow))
    bilinear = layers.UpSampling2D(interpolation="bilinear")(layers.Conv2D(8, 1)(narrow))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.Concatenate()([wide, up, bilinear]))
    return keras.Model(inputs, layers.Conv2D(4, 1)(x))


def normalised(x: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization()(x))


Network = tuple[Callable[[], keras.Model], str | None, kfp.budgets.MacsBudget, int | str]
NETWORKS: dict[str, Network] = {
    "residual_float32": (residual_network, None, kfp.MacsBudget(keep=0.5), 1),
    "mobile_int8": (mobile_network, "int8", kfp.MacsBudget(keep=0.6), "arm64-dotprod-int8"),
    "segmenting_dynamic": (segmenting_network, "dynamic", kfp.MacsBudget(keep=0.5), 8),
}

if __name__ == "__main__":
    main()
