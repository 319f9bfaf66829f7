"""Accuracy on CIFAR-10 straight after pruning, without any training, by method and compensator.

python examples/benchmarks/no_training.py --model resnet20.keras [--data-dir DIR] [--keep 0.5 0.3] [--seeds 3]
    [--methods pursuit l2 search] [--compensators none least_squares] [--out DIR]

Calibration sees 2 048 training images, drawn anew for every seed, without labels (the row `search` sees their labels);
accuracy is over all 10 000 test images. Every cell is the mean over seeds, with the range behind it. Cells that depend
on no data are measured once. Results are written after every cell, and a run that was interrupted goes on from there.
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
METHODS = ("random", "l1", "l2", "fpgm", "bn_scale", "lrf", "energy", "cap", "fp_omp", "pursuit", "search")
COMPENSATORS = ("none", "linear", "mean_shift", "bn", "least_squares", "adapter")
NO_DATA = ("none", "linear")


def main() -> None:
    options = _options()
    (x, y), (x_test, y_test) = load_cifar10(options.data_dir)
    model = keras.models.load_model(options.model)
    path = Path(options.out, f"no_training_{model.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {"model": model.name, "cells": {}}
    report.setdefault("dense", 100 * accuracy(model, x_test, y_test))
    for keep in options.keep:
        for method in options.methods:
            for seed in range(options.seeds):
                images = np.sort(np.random.default_rng(seed).choice(len(x), IMAGES, replace=False))
                data = x[images].astype("float32"), y[images]
                plans: dict = {}
                for name in options.compensators:
                    key = f"{keep} {method} {name} {seed}"
                    free = name in NO_DATA and method in ("l1", "l2", "fpgm", "bn_scale", "lrf", "fp_omp")
                    # Between adapters there is no batch normalization to read.
                    impossible = (method, name) == ("bn_scale", "adapter")
                    if key in report["cells"] or (free and seed) or impossible:
                        continue
                    small, seconds = _prune(model, method, keep, name, data, seed, plans)
                    score, share = 100 * accuracy(small, x_test, y_test), _macs(small) / _macs(model)
                    report["cells"][key] = {"accuracy": score, "seconds": seconds, "macs": share}
                    path.write_text(json.dumps(report, indent=1) + "\n")
                    print(key, report["cells"][key], flush=True)
    path.with_suffix(".md").write_text(_table(report))
    print(_table(report))


def _prune(model, method: str, keep: float, name: str, data: tuple, seed: int, plans: dict) -> tuple:
    """The pruned model, and the seconds that choosing and compensating took."""
    recipe = _recipe(method, seed)
    start = time.perf_counter()
    if name == "adapter":
        # Adapters are pruned between themselves: they have a plan of their own.
        pair = _inputs(data, method)
        small = kfp.prune_model(model, recipe, keep, data=pair, compensate="adapter", seed=seed, verify=False)
        return small, time.perf_counter() - start
    if "plan" not in plans:
        plans["plan"] = kfp.plan_pruning(model, recipe, keep, data=_inputs(data, method), seed=seed)
        plans["seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    given = None if name in NO_DATA else data[0]
    small = kfp.apply_plan(model, plans["plan"], data=given, compensate=name, verify=False)
    return small, plans["seconds"] + time.perf_counter() - start


def _recipe(method: str, seed: int):
    return kfp.criteria.Random(seed) if method == "random" else method


def _macs(model) -> int:
    costs = kfp.budgets.CostModel(kfp.analyze(model))
    return costs.macs(costs.sizes)


def _inputs(data: tuple, method: str):
    """Labels are for the search alone."""
    return data if method == "search" else data[0]


def _table(report: dict) -> str:
    lines = [f"{report['model']}, dense {report['dense']:.2f} %: accuracy in % after pruning, no training", ""]
    cells: dict[tuple[str, str], dict[str, list]] = {}
    for key, cell in report["cells"].items():
        keep, method, name, _ = key.split()
        cells.setdefault((keep, method), {}).setdefault(name, []).append(cell)
    names = [name for name in COMPENSATORS if any(name in found for found in cells.values())]
    lines += [f"| MACs kept | method | {' | '.join(names)} | seconds |", "|---|---|" + "--:|" * (len(names) + 1)]
    for (keep, method), found in cells.items():
        scores = " | ".join(_cell(found.get(name, [])) for name in names)
        seconds = np.median([c["seconds"] for c in found.get("least_squares", [{"seconds": np.nan}])])
        lines.append(f"| {keep} | `{method}` | {scores} | {seconds:.0f} |")
    return "\n".join(lines) + "\n\nSeconds: choosing the filters and least squares, median.\n"


def _cell(found: list[dict]) -> str:
    scores = [c["accuracy"] for c in found]
    if not scores:
        return ""
    spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3], help="fractions of MACs kept (0.5 0.3)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows (all)")
    parser.add_argument("--compensators", nargs="+", choices=COMPENSATORS, default=COMPENSATORS, help="columns (all)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration images (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
