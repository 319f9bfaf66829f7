"""What widths that kernels compute in whole steps cost in accuracy, and bring in milliseconds.

python examples/benchmarks/widths.py [--models resnet20.keras ...] [--networks MobileNetV2 ...] [--draws 3] [--out DIR]

Half the MACs by `pursuit` and least squares, with any widths, with "auto" (multiples of 8 in wide groups), multiples of
8, and the steps of this processor's kernels. Trained networks are calibrated on draws of 2 048 training images of
CIFAR-10 and scored on 3 000 others, which no draw holds: a default is chosen by it. Networks of keras.applications have
random weights and are calibrated on 64 images; their error is that of `real_size.py`. Float32 files run interleaved on
one thread, ratios are medians over rounds. Rows that are there already are kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import rows
from cifar10 import accuracy, load_cifar10
from real_size import build, smooth

import keras_filterprune as kfp
import tflite_bench

WIDTHS = {"any": 1, "auto": "auto", "multiples of 8": 8, "this processor": "x86-avx512"}
HELD_OUT, IMAGES = 3000, 2048


def main() -> None:
    options = _options()
    path = Path(options.out, "widths.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in [*options.models, *options.networks]:
        for draw in range(options.draws if name in options.models else 1):
            known = {(row["network"], row["draw"]) for row in rows.read(path)["rows"]}
            if (Path(name).stem, draw) not in known:
                for row in trained(name, draw) if name in options.models else untrained(name):
                    rows.append(row, path, "network", "draw", "widths")
    path.with_suffix(".md").write_text(table(rows.read(path)["rows"]))
    print(table(rows.read(path)["rows"]))


def trained(file: str, draw: int) -> list[dict]:
    """A row for every kind of width: accuracy after pruning on one draw of calibration images."""
    (x, y), _ = load_cifar10()
    held_out, rest = np.split(np.random.default_rng(100).permutation(len(x)), [HELD_OUT])
    images = np.random.default_rng(draw).choice(rest, IMAGES, replace=False)
    model = keras.models.load_model(file)
    found = pruned(model, x[images].astype("float32"))
    scores = [accuracy(small, x[held_out], y[held_out]) for small in found]
    return entries(Path(file).stem, draw, found, {"accuracy": scores})


def untrained(network: str) -> list[dict]:
    """A row for every kind of width: error of the outputs."""
    model = build(network)
    side = model.input_shape[1]
    found = pruned(model, smooth(64, side, 1))
    x = smooth(32, side, 2)
    dense = model.predict(x, batch_size=16, verbose=0)
    errors = [np.square(small.predict(x, batch_size=16, verbose=0) - dense).mean() for small in found]
    return entries(network, 0, found, {"error": [float(error / dense.var(axis=0).mean()) for error in errors]})


def pruned(model: keras.Model, data: np.ndarray) -> list[keras.Model]:
    """The dense network, then it with every kind of width."""
    return [
        model,
        *(
            kfp.prune_model(model, "pursuit", 0.5, data=data, channel_multiple=widths, verify=False)
            for widths in WIDTHS.values()
        ),
    ]


def entries(network: str, draw: int, models: list[keras.Model], quality: dict[str, list[float]]) -> list[dict]:
    """Rows with the milliseconds of all, measured together."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.tflite") for number in range(len(models))]
        for small, file in zip(models, files, strict=True):
            kfp.export_tflite(small, file, verify=False)
        timings = tflite_bench.benchmark(files, runs=100, rounds=10).models
    macs = [(cost := kfp.budgets.CostModel(kfp.analyze(small))).macs(cost.sizes) for small in models]
    return [
        {"network": network, "draw": draw, "widths": widths, "macs": macs[i], "speed-up": timings[i].ratio_to_first}
        | {key: values[i] for key, values in quality.items()}
        for i, widths in enumerate(["dense", *WIDTHS])
    ]


def table(found: list[dict]) -> str:
    """One line for a network and a kind of width, over draws."""
    lines = [
        "| network | widths | of the MACs | of the ms | faster | accuracy, % | error |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for network in dict.fromkeys(row["network"] for row in found):
        whole = next(row["macs"] for row in found if row["network"] == network and row["widths"] == "dense")
        for widths in ["dense", *WIDTHS]:
            draws = [row for row in found if row["network"] == network and row["widths"] == widths]
            scores = [100 * row["accuracy"] for row in draws if "accuracy" in row]
            spread = f"{np.mean(scores):.1f} ({min(scores):.1f}-{max(scores):.1f})" if scores else ""
            error = f"{draws[0]['error']:.3f}" if "error" in draws[0] else ""
            share = np.median([row["speed-up"] for row in draws])
            cells = f"{np.mean([row['macs'] for row in draws]) / whole:.3f} | {share:.2f} | {1 / share:.2f}x"
            lines.append(f"| {network} | {widths} | {cells} | {spread} | {error} |")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], help="trained .keras files that take raw CIFAR-10 images")
    parser.add_argument("--networks", nargs="+", default=[], help="of keras.applications")
    parser.add_argument("--draws", type=int, default=3, help="of calibration images (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
