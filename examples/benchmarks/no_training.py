"""Accuracy on CIFAR-10 straight after pruning, without any training, by criterion and compensator.

python examples/benchmarks/no_training.py --model resnet20.keras [--data-dir DIR] [--keep 0.5 0.3] [--seeds 3]
    [--methods cap l2] [--out DIR]

Calibration sees at most 2 048 unlabelled training images, drawn anew for every seed; accuracy is over all 10 000 test
images. Every cell is the mean over seeds, with the range behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from cifar10 import accuracy, load_cifar10

import keras_filterprune as kfp

IMAGES = 2048
COMPENSATORS = {"none": "none", "bn": kfp.BNRecalibration(), "least squares": kfp.LeastSquares()}


def main() -> None:
    options = _options()
    (x, _), (x_test, y_test) = load_cifar10(options.data_dir)
    model = keras.models.load_model(options.model)
    rows = []
    for keep in options.keep:
        for method in options.methods:
            for name, compensator in COMPENSATORS.items():
                scores, seconds = [], []
                for seed in range(options.seeds):
                    images = np.random.default_rng(seed).choice(len(x), IMAGES, replace=False)
                    data = x[np.sort(images)].astype("float32")
                    start = time.perf_counter()
                    small = kfp.prune_model(model, method, keep, data=data, compensate=compensator, seed=seed)
                    seconds.append(time.perf_counter() - start)
                    scores.append(100 * accuracy(small, x_test, y_test))
                row = {"keep": keep, "method": method, "compensator": name, "accuracy": scores, "seconds": seconds}
                rows.append(row)
                print(_line(row), flush=True)
    report = {"model": model.name, "dense": 100 * accuracy(model, x_test, y_test), "rows": rows}
    Path(options.out).mkdir(parents=True, exist_ok=True)
    name = f"no_training_{model.name}"
    Path(options.out, f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    Path(options.out, f"{name}.md").write_text(_table(report))
    print(_table(report))


def _cell(scores: list[float]) -> str:
    spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread}"


def _line(row: dict) -> str:
    cell = _cell(row["accuracy"])
    return f"{row['keep']} {row['method']} {row['compensator']}: {cell} in {np.median(row['seconds']):.1f} s"


def _table(report: dict) -> str:
    lines = [f"{report['model']}, dense {report['dense']:.2f} %, accuracy in % after pruning, no training", ""]
    lines += ["| MACs kept | method | none | bn | least squares | seconds |", "|---|---|--:|--:|--:|--:|"]
    cells: dict[tuple, dict] = {}
    for row in report["rows"]:
        cells.setdefault((row["keep"], row["method"]), {})[row["compensator"]] = row
    for (keep, method), found in cells.items():
        scores = " | ".join(_cell(found[name]["accuracy"]) for name in COMPENSATORS)
        lines.append(f"| {keep} | `{method}` | {scores} | {np.median(found['least squares']['seconds']):.0f} |")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    methods = [name for name, _, _ in kfp.list_methods()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5], help="fractions of MACs kept (0.5)")
    parser.add_argument("--methods", nargs="+", default=methods, help="methods (all)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration images (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
