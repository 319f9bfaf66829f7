"""Seconds and memory of pruning on data, on networks and images of the size that people have.

    python examples/benchmarks/real_size.py [--networks ResNet50 ...] [--methods pursuit ...] [--images 64 256 1024]

Every row is a process of its own: a network with random weights and calibrated batch normalization, smooth random
images, half the MACs.

- seconds: of `prune_model(verify=False)`, next to `predict` of the dense network over the same images afterwards;
- memory: the highest resident size while pruning minus that just before, with the images in memory (Linux only);
- error: mean squared difference of the outputs to those of the dense network on 32 other images, over their variance.

Rows that are there already are kept, so that a run can be interrupted. Writes real_size.json and real_size.md.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.progress import track
from speed import environment, resident

import keras_filterprune as kfp
from keras_filterprune import compensators

NETWORKS = [
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "ResNet50",
    "VGG16",
    "ConvNeXtTiny",
    "DenseNet121",
    "InceptionV3",
    "UNet",
]
METHODS = {
    "pursuit": {"method": "pursuit"},
    "cap": {"method": "cap"},
    "genetic": {"method": "genetic"},
    "taylor": {"method": "taylor"},
    "least_squares": {"method": "l2", "compensate": compensators.LeastSquares()},
    "l2": {"method": "l2", "compensate": "none"},
}
SHAPE = (224, 224, 3)
GIB = 2**30
# What the table is held against: seconds over forward passes and a constant, GiB.
PASSES, CONSTANT, MEMORY = 10, 20, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--images", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    file = options.out / "real_size.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    known = {(row["network"], row["method"], row["images"]) for row in rows}
    jobs = [(n, m, i) for n in options.networks for m in options.methods for i in options.images]
    options.out.mkdir(parents=True, exist_ok=True)
    for job in track([job for job in jobs if job not in known], "measuring"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, *job).result())
        file.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
        (options.out / "real_size.md").write_text(markdown(rows))
    print(markdown(rows))


def measure(network: str, method: str, images: int) -> dict:
    """One row of the table."""
    keras.utils.set_random_seed(0)
    model = build(network)
    weights = sum(math.prod(w.shape) * 4 for w in model.weights)
    side = model.input_shape[1]
    x, held_out = smooth(images, side, 1), smooth(32, side, 2)
    data = (x, np.arange(images) % model.output_shape[-1]) if method == "taylor" else x
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    start = time.perf_counter()
    small, report = kfp.prune_model(
        model, budget=0.5, data=data, verify=False, progress=False, return_report=True, **METHODS[method]
    )
    took, peak = time.perf_counter() - start, resident("VmHWM") - before
    dense = model.predict(held_out, batch_size=16, verbose=0)
    start = time.perf_counter()
    model.predict(x, batch_size=16, verbose=0)
    forward = time.perf_counter() - start
    difference = small.predict(held_out, batch_size=16, verbose=0) - dense
    error = float(np.square(difference).mean() / dense.var(axis=0).mean())
    return {
        "network": network,
        "method": method,
        "images": images,
        "seconds": took,
        "predict": forward,
        "bytes": peak,
        "weights": weights,
        "error": error,
        "compensation": report.compensation,
    }


def smooth(count: int, side: int, seed: int) -> np.ndarray:
    """Images (count, side, side, 3) of unit variance and falling spectrum, each with roughness, direction and colours
    of its own: of images that are alike on average, the outputs of a network with random weights hardly differ.
    """
    generator = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    images = np.empty((count, side, side, 3), np.float32)
    for image in images:
        stretch = np.exp(generator.normal(scale=0.7))
        falloff = np.maximum(np.hypot(x * stretch, y / stretch), 1 / side) ** -generator.uniform(0.5, 2.0)
        noise = np.fft.rfft2(generator.normal(size=(side, side, 3)), axes=(0, 1))
        found = np.fft.irfft2(noise * falloff[..., None], s=(side, side), axes=(0, 1)) @ generator.normal(size=(3, 3))
        image[:] = found / found.std()
    return images


def build(network: str) -> keras.Model:
    """A network with random weights whose batch normalization fits its activations."""
    model = unet() if network == "UNet" else getattr(keras.applications, network)(weights=None, input_shape=SHAPE)
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    # Preprocessing inside some of them expects 0 to 255, which batch normalization undoes. No more values than 8 images
    # of 224 x 224 take: TensorFlow keeps the memory, and what is measured later would be found in it.
    side = model.input_shape[1]
    model(smooth(-(-8 * SHAPE[0] ** 2 // side**2), side, 0), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return model


def unet(side: int = 512, width: int = 32, classes: int = 8) -> keras.Model:
    """U-Net (Ronneberger et al. 2015) with batch normalization and padded convolutions, five levels."""

    def block(x, filters):
        for _ in range(2):
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        return x

    x = inputs = keras.Input((side, side, 3))
    skips = []
    for level in range(4):
        skips.append(block(x, width * 2**level))
        x = keras.layers.MaxPooling2D()(skips[-1])
    x = block(x, width * 16)
    for level in reversed(range(4)):
        x = keras.layers.Conv2DTranspose(width * 2**level, 2, strides=2)(x)
        x = block(keras.layers.Concatenate()([skips[level], x]), width * 2**level)
    return keras.Model(inputs, keras.layers.Conv2D(classes, 1, activation="softmax")(x))


def markdown(rows: list[dict]) -> str:
    lines = [
        "| network | method | images | seconds | `predict` | passes | memory, GiB | error | met |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in sorted(rows, key=lambda r: (NETWORKS.index(r["network"]), list(METHODS).index(r["method"]), r["images"])):
        fast = r["seconds"] <= PASSES * r["predict"] + CONSTANT
        met = "yes" if fast and r["bytes"] < MEMORY * GIB else "**no**"
        lines.append(
            f"| {r['network']} | {r['method']} | {r['images']} | {r['seconds']:.1f} | {r['predict']:.1f} | "
            f"{r['seconds'] / r['predict']:.1f} | {r['bytes'] / GIB:.2f} | {r['error']:.3f} | {met} |"
        )
    lines.append(f"\nmet: at most {PASSES} passes and {CONSTANT} s, less than {MEMORY} GiB.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
