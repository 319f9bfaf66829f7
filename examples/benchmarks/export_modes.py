"""Every mode of export_tflite over networks of keras.applications: bytes, difference from Keras, ms, warnings.

    python examples/benchmarks/export_modes.py --nets MobileNetV2 MobileNetV3Small

Weights are random, so the differences say whether a file is right, not how accurate a trained network would be.
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_filterprune as kfp
from tflite_bench import benchmark

NETS = ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ResNet50", "ResNet50V2")
MODES = ("float32", "float16", "dynamic", "int8", "int16x8")


def network(name: str, size: int, images: np.ndarray) -> keras.Model:
    """A network whose batch normalization has seen these images, as after training."""
    keras.utils.set_random_seed(0)
    options = {"weights": None, "input_shape": (size, size, 3), "classes": 10, "classifier_activation": None}
    model = getattr(keras.applications, name)(**options)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(8):
        model(images, training=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (%(default)s)")
    options = parser.parse_args()
    images = np.random.default_rng(0).uniform(0, 255, (16, options.size, options.size, 3)).astype("float32")
    print("| network | mode | kB | difference | p50 ms | warnings |\n|---|---|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.nets:
            model = network(name, options.size, images)
            variants = [(mode, ()) for mode in MODES]
            if any(activation(layer) == "hard_silu" for layer in model.layers):
                variants.append(("int8", ("HARD_SWISH",)))
            rows = []
            for mode, kept in variants:
                path = Path(folder, f"{name}-{mode}-{len(kept)}.tflite")
                rows.append(kfp.export_tflite(model, path, quantize=mode, data=images, keep_float=kept))
            times = benchmark([row.path for row in rows], runs=50).models
            for (mode, kept), row, time in zip(variants, rows, times, strict=True):
                warned = ", ".join(" ".join(warning.operators) for warning in row.warnings) or "none"
                print(
                    f"| {name} | {' without '.join((mode, *kept))} | {row.bytes / 1e3:.0f} | "
                    f"{row.relative_difference:.1e} | {time.p50_ms:.3f} | {warned} |",
                    flush=True,
                )


def activation(layer: keras.layers.Layer) -> str:
    """Name of a layer's activation function (Keras calls hard_swish hard_silu), "" if it has none."""
    return getattr(getattr(layer, "activation", None), "__name__", "")


if __name__ == "__main__":
    main()
