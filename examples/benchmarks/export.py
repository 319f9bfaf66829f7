"""Bytes, accuracy and latency of every export mode, before and after pruning.

python examples/benchmarks/export.py --model resnet20.keras [--data-dir DIR] [--method pursuit] [--out DIR]

The network is pruned to half of its MACs, and to half of its parameters, without training; training images choose,
refit and calibrate, all 10 000 test images are for the accuracies. Files run interleaved, on one thread; int16x8 is
left out, which takes LiteRT's slow reference kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from cifar10 import load_cifar10

import keras_filterprune as kfp
import tflite_bench

MODES = ("float32", "float16", "dynamic", "int8")
IMAGES, CALIBRATION = 2048, 256


def main() -> None:
    options = _options()
    (x, _), (x_test, y_test) = load_cifar10(options.data_dir)
    dense = keras.models.load_model(options.model)
    images = np.sort(np.random.default_rng(0).choice(len(x), IMAGES, replace=False))
    data = x[images].astype("float32")
    common = {"data": data, "channel_multiple": options.channel_multiple}
    networks = {
        "dense": dense,
        "half the MACs": kfp.prune_model(dense, options.method, kfp.MacsBudget(keep=0.5), **common),
        "half the parameters": kfp.prune_model(dense, options.method, kfp.ParamsBudget(keep=0.5), **common),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, model) in enumerate(networks.items()):
            for mode in MODES:
                path = Path(folder, f"{number}-{mode}.tflite")
                result = kfp.export_tflite(model, path, quantize=mode, data=data[:CALIBRATION])
                score = 100 * float(np.mean(kfp.export.predict_tflite(path, x_test).argmax(-1) == y_test))
                rows.append({"network": name, "mode": mode, "bytes": result.bytes, "accuracy": score, "path": path})
                print(name, mode, result.bytes, score, flush=True)
        timed = tflite_bench.benchmark([row.pop("path") for row in rows], runs=options.runs, rounds=20, progress=True)
    for row, timing in zip(rows, timed.models, strict=True):
        row |= {"min_ms": timing.min_ms, "p50_ms": timing.p50_ms, "peak_rss_kb": timing.peak_rss_kb}
    report = {"model": dense.name, "method": options.method, "machine": timed.machine, "rows": rows}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"export_{dense.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / f"export_{dense.name}.md").write_text(table(report))
    print(table(report))


def table(report: dict) -> str:
    first = report["rows"][0]
    lines = [
        f"{report['model']}, {report['method']}, {report['machine']['cpu']}, one thread",
        "",
        "| network | mode | bytes | of dense | accuracy | ms | of dense | peak MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        memory = "-" if row["peak_rss_kb"] is None else f"{row['peak_rss_kb'] / 1024:.1f}"
        lines.append(
            f"| {row['network']} | {row['mode']} | {row['bytes']:,} | {row['bytes'] / first['bytes']:.3f} | "
            f"{row['accuracy']:.2f} % | {row['min_ms']:.3f} | {row['min_ms'] / first['min_ms']:.2f} | {memory} |"
        )
    return "\n".join([*lines, ""])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--method", default="pursuit", help="pruning method (%(default)s)")
    parser.add_argument("--channel-multiple", default="arm64", help="target whose steps widths fit (%(default)s)")
    parser.add_argument("--runs", type=int, default=1000, help="timed runs of each file (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the results (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
