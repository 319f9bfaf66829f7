"""Filter pruning, then quantization-aware training with tfmot, against post-training quantization; one table.

python examples/qat.py [--keep-macs 0.25] [--epochs 10] [--seeds 3]

scikit-learn's digits, a small residual network. Both int8 files come from the same pruned network, and both have had
the same number of epochs after pruning: float32 ones, or the second half of them quantization-aware. About half a
minute per seed. Needs pip install -e ".[all,tfmot]".
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console
from rich.table import Table

TRAIN, BATCH, RATE = 1297, 16, 1e-3


def main() -> None:
    options = _options()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    runs = [one_run(seed, options.keep_macs, options.epochs, out) for seed in range(options.seeds)]
    table = Table(title=f"digits, {100 * options.keep_macs:.0f} % of the MACs, {options.seeds} seeds")
    for column in ("model", "accuracy", "range", "bytes"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name in runs[0]:
        scores = [100 * run[name][0] for run in runs]
        size = f"{runs[0][name][1]:,}"
        table.add_row(name, f"{np.mean(scores):.2f} %", f"{min(scores):.1f}-{max(scores):.1f}", size)
    Console().print(table)


def one_run(seed: int, keep: float, epochs: int, out: Path) -> dict[str, tuple[float, int]]:
    """{name of a file: (accuracy, bytes)} for one seed."""
    import keras

    import keras_filterprune as kfp

    keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = digits(seed)
    found = {}

    def add(name: str, result: Any) -> None:
        score = float(np.mean(kfp.export.predict_tflite(result.path, x_test).argmax(-1) == y_test))
        found[name] = score, result.bytes

    dense = network(keras)
    fit(keras, dense, x, y, 2 * epochs, 2 * RATE)
    add("dense float32", kfp.export_tflite(dense, out / "dense.tflite", overwrite=True))
    half = kfp.prune_model(dense, "pursuit", keep, channel_multiple=8, data=x[:512], progress=False)
    fit(keras, half, x, y, epochs - epochs // 2, RATE)
    whole = keras.models.clone_model(half)
    whole.set_weights(half.get_weights())
    fit(keras, whole, x, y, epochs // 2, RATE)
    add("pruned float32", kfp.export_tflite(whole, out / "pruned.tflite", overwrite=True))
    int8 = kfp.export_tflite(whole, out / "int8.tflite", quantize="int8", data=x[:256], overwrite=True)
    add("pruned int8, post-training", int8)
    qat = kfp.tfmot.export_qat(half, out / "qat.tflite", quantized, x, y, epochs // 2, data=x, overwrite=True)
    add("pruned int8, quantization-aware", qat)
    return found


def quantized(twin: Any, x: np.ndarray, y: np.ndarray, epochs: int) -> Any:
    """Runs in the process of tf_keras, and there alone is tfmot imported."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    model = tfmot.quantization.keras.quantize_model(twin)
    fit(tf_keras, model, x, y, epochs, RATE)
    return model


def network(keras: Any) -> Any:
    """A small residual network for 8 x 8 images: 32, then 64 channels, two blocks."""
    layers = keras.layers

    def unit(x, filters: int, strides: int = 1, relu: bool = True):
        x = layers.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.ReLU()(x) if relu else x

    inputs = keras.Input((8, 8, 1), name="image")
    x = unit(inputs, 32)
    x = layers.ReLU()(layers.Add()([x, unit(unit(x, 32), 32, relu=False)]))
    shortcut = layers.Conv2D(64, 1, 2, use_bias=False)(x)
    x = layers.ReLU()(layers.Add()([shortcut, unit(unit(x, 64, strides=2), 64, relu=False)]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)), name="digits")


def fit(backend: Any, model: Any, x: np.ndarray, y: np.ndarray, epochs: int, rate: float) -> None:
    """Train with a cosine schedule; `backend` is keras or tf_keras."""
    schedule = backend.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // BATCH))
    loss = backend.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(backend.optimizers.Adam(schedule), loss)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)


def digits(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images of 8 x 8 pixels in [0, 1], and their classes: 1 297 to train on, 500 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    x, y = (data.images[order, ..., None] / 16).astype("float32"), data.target[order]
    return (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep-macs", type=float, default=0.25, help="fraction of MACs kept (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs after pruning (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="independent runs (%(default)s)")
    parser.add_argument("--out", default="kfp-qat", help="folder for the files (./%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
