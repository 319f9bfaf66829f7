"""Accuracy on CIFAR-10 after pruning and recovery without labels: choosing, refitting and a few hundred steps.

python examples/benchmarks/recovery.py --model resnet20.keras [--data-dir DIR] [--keep 0.5 0.3] [--seeds 3]
    [--rows "least squares" recovery "recovery, flips and shifts"] [--out DIR]

Calibration sees 2 048 training images, drawn anew for every seed, and no label; accuracy is over all 10 000 test
images. All rows are `pursuit`; recovery are 600 steps. Seconds are those of choosing, refitting and recovery together.
Results are written after every run, and a benchmark that was interrupted goes on from there.
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
from cifar10 import accuracy, flipped_and_shifted, load_cifar10

import keras_filterprune as kfp

IMAGES = 2048


def compensators(seed: int) -> dict[str, kfp.compensators.Compensator]:
    """{row: what compensates}."""
    augment = flipped_and_shifted(seed)
    return {
        "least squares": kfp.compensators.LeastSquares(),
        "recovery": kfp.compensators.Reconstruct(seed=seed),
        "recovery, flips and shifts": kfp.compensators.Reconstruct(seed=seed, augment=augment),
    }


def main() -> None:
    options = _options()
    (x, _), (x_test, y_test) = load_cifar10(options.data_dir)
    model = keras.models.load_model(options.model)
    path = Path(options.out, f"recovery_{model.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {"model": model.name, "runs": {}}
    report.setdefault("dense", 100 * accuracy(model, x_test, y_test))
    for seed in range(options.seeds):
        images = np.sort(np.random.default_rng(seed).choice(len(x), IMAGES, replace=False))
        data = x[images].astype("float32")
        for keep in options.keep:
            for row in options.rows:
                key = f"{keep}|{row}|{seed}"
                if key in report["runs"]:
                    continue
                start = time.perf_counter()
                compensator = compensators(seed)[row]
                small = kfp.prune_model(
                    model, "pursuit", keep, data=data, compensate=compensator, seed=seed, verify=False
                )
                seconds = time.perf_counter() - start
                report["runs"][key] = {"accuracy": 100 * accuracy(small, x_test, y_test), "seconds": seconds}
                path.write_text(json.dumps(report, indent=1) + "\n")
                print(key, report["runs"][key], flush=True)
    path.with_suffix(".md").write_text(_table(report))
    print(_table(report))


def _table(report: dict) -> str:
    lines = [f"{report['model']}, dense {report['dense']:.2f} %: accuracy in % without labels", ""]
    lines += ["| MACs kept | after choosing by `pursuit` | accuracy | seconds |", "|---|---|--:|--:|"]
    rows: dict[tuple[str, str], list] = {}
    for key, run in report["runs"].items():
        keep, row, _ = key.split("|")
        rows.setdefault((keep, row), []).append(run)
    for (keep, row), runs in sorted(rows.items(), reverse=True):
        scores = [run["accuracy"] for run in runs]
        spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
        seconds = np.median([run["seconds"] for run in runs])
        lines.append(f"| {keep} | {row} | {np.mean(scores):.1f}{spread} | {seconds:.0f} |")
    return "\n".join(lines) + "\n\nSeconds: choosing, refitting and recovery, median.\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3], help="fractions of MACs kept (0.5 0.3)")
    rows = list(compensators(0))
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, help="what to measure (all)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration images (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
