"""The main job in one run, offline: train, prune to half the MACs, fine-tune, export, benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.table import Table

from keras_filterprune.checks import check_packages
from keras_filterprune.errors import FileError
from keras_filterprune.export import export_tflite
from keras_filterprune.export.runtime import predict_tflite
from keras_filterprune.files import save_keras, write_json
from keras_filterprune.measuring import measure_latency
from keras_filterprune.progress import track
from keras_filterprune.pruning import prune_model
from tflite_bench import benchmark

_TRAIN = 1297
_EPOCHS, _FINE_TUNE_EPOCHS = 20, 8


def run_demo(folder: Path) -> tuple[dict[str, Any], Table]:
    """Run the demo on scikit-learn's bundled digits (1 797 images of 8 x 8 pixels).

    Args:
        folder: where the files go; created if missing, earlier demo files in it are replaced.

    Returns:
        The content of report.json, and the table that shows it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot create the folder {folder}: {error}.") from error
    keras.utils.set_random_seed(0)
    (x, y), test = _digits()
    dense = residual_net()
    _fit(dense, x, y, _EPOCHS, 2e-3, "training")
    pruned, report = prune_model(dense, "auto", 0.5, channel_multiple=16, data=x[:512], return_report=True)
    tuned = keras.models.clone_model(pruned)
    tuned.set_weights(pruned.get_weights())
    _fit(tuned, x, y, _FINE_TUNE_EPOCHS, 1e-3, "fine-tuning")
    report.plan.save(folder / "plan.json")
    rows, files = [], []
    for name, model, quantize in (
        ("dense", dense, None),
        ("pruned", pruned, None),
        ("fine-tuned", tuned, None),
        ("int8", tuned, "int8"),
    ):
        if quantize is None:
            save_keras(model, folder / f"{name}.keras", overwrite=True)
        result = export_tflite(model, folder / f"{name}.tflite", quantize=quantize, data=x[:256], overwrite=True)
        files.append(result)
        accuracy = float(np.mean(predict_tflite(result.path, test[0]).argmax(-1) == test[1]))
        macs = report.plan.cost["macs"][name != "dense"]
        rows.append(
            {"model": name, "accuracy": accuracy, "params": model.count_params(), "macs": macs, "bytes": result.bytes}
        )
    timing = benchmark([folder / f"{row['model']}.tflite" for row in rows], runs=500)
    for row, timed in zip(rows, timing.models, strict=True):
        row |= {"p50_ms": timed.p50_ms, "p90_ms": timed.p90_ms, "ratio_to_dense": timed.ratio_to_first}
    content = {"rows": rows, "pruning": report.to_dict(), "benchmark": timing.to_dict()}
    write_json(folder / "report.json", content)
    accuracies = {row["model"]: row["accuracy"] for row in rows}
    table = measure_latency(dense)
    report.save(folder / "report.html", accuracy=accuracies, benchmark=timing, exports=files, latency=table)
    return content, _table(rows)


def residual_net() -> keras.Model:
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
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="digits")


def _digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    check_packages("the demo", "examples", "sklearn.datasets")
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.images[order, ..., None] / 16).astype("float32"), digits.target[order]
    return (x[:_TRAIN], y[:_TRAIN]), (x[_TRAIN:], y[_TRAIN:])


def _fit(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int, rate: float, what: str) -> None:
    """Train with a cosine schedule, one progress step per epoch."""
    steps = epochs * -(-len(x) // 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)), loss)
    for _ in track(range(epochs), what, epochs):
        model.fit(x, y, batch_size=64, epochs=1, verbose=0)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="digits, one thread, this computer")
    for name in ("model", "accuracy", "params", "MACs", "bytes", "p50 ms", "p90 ms", "ratio"):
        table.add_column(name, no_wrap=True, justify="left" if name == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{100 * row['accuracy']:.1f} %",
            f"{row['params'] / 1e3:.1f} k",
            f"{row['macs'] / 1e6:.2f} M",
            f"{row['bytes'] / 1e3:.1f} k",
            f"{row['p50_ms']:.4f}",
            f"{row['p90_ms']:.4f}",
            f"{row['ratio_to_dense']:.2f}",
        )
    return table
