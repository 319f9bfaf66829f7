"""A ResNet on CIFAR-10: prune to half the MACs, distil, export to float32 and int8, benchmark; one table.

python examples/cifar10_resnet.py [--model resnet20.keras] [--data-dir DIR] [--method pursuit] [--keep-macs 0.5]

Without --model it trains a ResNet-20 itself first (--train-epochs, about 2 minutes an epoch on two cores).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from cifar10 import accuracy, fit, load_cifar10, resnet20
from rich.console import Console
from rich.table import Table

import keras_filterprune as kfp
from tflite_bench import benchmark

CALIBRATION = 1024


def main() -> None:
    options = _options()
    (x, y), (x_test, y_test) = load_cifar10(options.data_dir)
    if options.model:
        dense = keras.models.load_model(options.model)
    else:
        dense = resnet20()
        fit(dense, x, y, options.train_epochs, rate=0.1)
    calibration = x[:CALIBRATION].astype("float32")
    pruned, report = kfp.prune_model(
        dense,
        options.method,
        options.keep_macs,
        channel_multiple=options.channel_multiple,
        data=calibration,
        return_report=True,
    )
    print(report.summary())
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []

    def add(name: str, model: keras.Model, quantize: str | None = None) -> None:
        path = out / f"{name}.tflite"
        size = kfp.export_tflite(model, path, quantize=quantize, data=calibration[:256], overwrite=True).bytes
        score = accuracy(model, x_test, y_test)
        if quantize:
            score = float(np.mean(kfp.export.predict_tflite(path, x_test).argmax(-1) == y_test))
        macs = report.plan.cost["macs"][name != "dense"]
        rows.append((name, score, model.count_params(), macs, size, path))

    add("dense", dense)
    add("pruned", pruned)
    fit(pruned, x, y, options.epochs, teacher=dense)
    pruned.save(out / "fine-tuned.keras")
    add("fine-tuned", pruned)
    add("int8", pruned, "int8")
    timing = benchmark([row[-1] for row in rows], runs=200, progress=True)
    table = Table(title=f"{dense.name}: {options.method}, {100 * options.keep_macs:.0f} % of the MACs, one thread")
    for column in ("model", "accuracy", "params", "MACs", "bytes", "p50 ms", "p90 ms", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for (name, score, params, macs, size, _), timed in zip(rows, timing.models, strict=True):
        cells = f"{100 * score:.2f} %", f"{params / 1e3:.1f} k", f"{macs / 1e6:.2f} M", f"{size / 1e3:.0f} k"
        table.add_row(name, *cells, f"{timed.p50_ms:.3f}", f"{timed.p90_ms:.3f}", f"{timed.ratio_to_first:.2f}")
    Console().print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a trained .keras file that takes raw images; trains its own by default")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--train-epochs", type=int, default=20, help="epochs for its own network (%(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="fine-tuning epochs (%(default)s)")
    parser.add_argument("--method", default="pursuit", help="pruning method (%(default)s)")
    parser.add_argument("--keep-macs", type=float, default=0.5, help="fraction of MACs kept (%(default)s)")
    parser.add_argument("--channel-multiple", default="arm64", help="target whose steps widths fit (%(default)s)")
    parser.add_argument("--out", default="kfp-cifar10", help="folder for the results (./%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
