"""Narrower or shallower? Accuracy against milliseconds on CIFAR-10, after equal fine-tuning; table and plot.

python examples/latency_vs_accuracy.py --model resnet56.keras [--data-dir DIR] [--keeps 0.8 0.6] [--steps 150]
    [--seeds 1] [--out DIR]

Every network is pruned to the same shares of the dense one's milliseconds, by a table that is measured first: its
filters (l2, pursuit), its blocks (by every criterion of LayerPrune), or both, half of the way each. Then all train for
the same number of steps, in as many orders as there are seeds, and all files are timed together. Runs that are in the
results already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np
from cifar10 import accuracy, fit, load_cifar10

import keras_filterprune as kfp
import tflite_bench

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CALIBRATION = 1024
LAYERS = ("l2", "bn_scale", "taylor", "taylor_gate", "ensemble", "imprinting")


def main() -> None:
    options = _options()
    (x, y), (x_test, y_test) = load_cifar10(options.data_dir)
    dense = keras.models.load_model(options.model)
    data = x[:CALIBRATION].astype("float32"), y[:CALIBRATION]
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    table = kfp.measure_latency(dense, out / f"latency_table_{dense.name}.json")
    results = out / f"latency_vs_accuracy_{dense.name}.json"
    runs = json.loads(results.read_text()) if results.exists() else {}
    for keep in options.keeps:
        for name in variants(dense, table, keep, data):
            key, file = f"{name} {keep}", out / f"{dense.name} {name} {keep}.keras"
            if key not in runs:
                try:
                    small = variants(dense, table, keep, data)[name]()
                except kfp.errors.InfeasibleBudgetError as error:
                    runs[key] = {"infeasible": str(error)}
                else:
                    small.save(file)
                    pruned = accuracy(small, x_test, y_test)
                    runs[key] = {"pruned": pruned, "trained": [], "file": os.fspath(file)}
            for seed in range(len(runs[key].get("trained", range(options.seeds))), options.seeds):
                small = keras.models.load_model(file)
                fit(small, x, y, 1, seed=seed, steps=options.steps)
                runs[key]["trained"].append(accuracy(small, x_test, y_test))
                results.write_text(json.dumps(runs, indent=1) + "\n")
    runs["dense"] = {"trained": [accuracy(dense, x_test, y_test)], "file": options.model}
    timed(runs)
    results.write_text(json.dumps(runs, indent=1) + "\n")
    (out / f"latency_vs_accuracy_{dense.name}.md").write_text(as_table(runs))
    draw(runs, out / f"latency_vs_accuracy_{dense.name}.png")
    print(as_table(runs))


def variants(dense: keras.Model, table: kfp.LatencyTable, keep: float, data: tuple) -> dict:
    """{name: function that prunes the dense network to a share of its milliseconds}."""
    quiet = {"verify": False, "progress": False}

    def filters(model: keras.Model, method: str, ms: float) -> keras.Model:
        return kfp.prune_model(model, method, kfp.LatencyBudget(ms=ms, table=table), data=data, **quiet)

    def layers(criterion: str, share: float) -> keras.Model:
        budget = kfp.LatencyBudget(keep=share, table=table)
        return kfp.prune_layers(dense, budget=budget, method=criterion, data=data, **quiet)

    whole = table.predict(dense)
    return (
        {
            f"filters {method}": lambda method=method: filters(dense, method, keep * whole)
            for method in ("l2", "pursuit")
        }
        | {f"layers {criterion}": lambda criterion=criterion: layers(criterion, keep) for criterion in LAYERS}
        | {"both": lambda: filters(layers("bn_scale", keep**0.5), "pursuit", keep * whole)}
    )


def timed(runs: dict) -> None:
    """Enter the milliseconds of every run, measured in one interleaved benchmark."""
    found = [run for run in runs.values() if "file" in run]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.tflite") for number in range(len(found))]
        for run, file in zip(found, files, strict=True):
            kfp.export_tflite(keras.models.load_model(run["file"]), file, verify=False)
        for run, timing in zip(found, tflite_bench.benchmark(files, runs=500, rounds=10).models, strict=True):
            run["ms"] = timing.p50_ms


def as_table(runs: dict) -> str:
    lines = ["| network | ms | of dense | straight after pruning | trained |", "|---|--:|--:|--:|--:|"]
    whole = runs["dense"]["ms"]
    for key, run in runs.items():
        if "ms" in run:
            pruned = f"{100 * run['pruned']:.1f} %" if "pruned" in run else ""
            scores = [100 * score for score in run["trained"]]
            spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
            cells = f"{run['ms']:.3f} | {run['ms'] / whole:.2f} | {pruned} | {np.mean(scores):.1f} %{spread}"
            lines.append(f"| {key} | {cells} |")
        else:
            lines.append(f"| {key} | not reachable | | | |")
    return "\n".join(lines) + "\n"


def draw(runs: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = dict.fromkeys(key.rpartition(" ")[0] for key in runs if key != "dense")
    for name in names:
        found = sorted(
            (run["ms"], run["trained"]) for key, run in runs.items() if key.startswith(name + " ") and "ms" in run
        )
        if found:
            means = [100 * np.mean(scores) for _, scores in found]
            reach = [[100 * abs(end(scores) - np.mean(scores)) for _, scores in found] for end in (min, max)]
            style = "s--" if name.startswith("layers") else "o-"
            axes.errorbar([ms for ms, _ in found], means, reach, fmt=style, capsize=3, label=name)
    axes.plot(runs["dense"]["ms"], 100 * runs["dense"]["trained"][0], "k*", markersize=12, label="dense")
    axes.set_xlabel("milliseconds, one thread")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.8, 0.6], help="shares of the ms (%(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="of fine-tuning, batches of 128 (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="orders of training (%(default)s)")
    parser.add_argument("--out", default="kfp-latency", help="folder for the results (./%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
