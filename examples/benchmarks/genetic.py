"""Genetic channel selection: layer errors, seconds, and accuracy before and after distillation.

python examples/benchmarks/genetic.py --model resnet20.keras [--data-dir DIR] [--epochs 1] [--seeds 3] [--out DIR]

On a trained network and on a small VGG that the script trains (10 000 training images, 10 epochs):

- the error of the consumers' outputs when half of every group's filters go, relative to the output, by genetic search,
  greedy elimination, the L1 norm and the best of 1 000 random sets, and all sets where there are at most 20 000;
- seconds to observe 512 images and choose in all groups;
- sensitivity curves on 1 024 held-out training images, as a picture.

For the trained network at half the multiply-accumulates: accuracy over all 10 000 test images straight after pruning,
after distillation, and after plain training for the same time. Results are written after every part, and a run that was
interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from cifar10 import accuracy, fit, load_cifar10

import keras_filterprune as kfp

IMAGES, CALIBRATION = 512, 2048
METHODS = ("l1", "genetic", "hu_ga")


def main() -> None:
    options = _options()
    (x, y), test = load_cifar10(options.data_dir)
    model = keras.models.load_model(options.model)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"genetic_{model.name}.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if "layers" not in report:
        report["layers"] = {}
        for name, network in ((model.name, model), ("small_vgg", _vgg(x[:10_000], y[:10_000]))):
            report["layers"][name] = _layer_errors(network, x[:IMAGES].astype("float32"))
            table = kfp.measure_sensitivity(network, (x[-1024:].astype("float32"), y[-1024:]))
            table.plot(out / f"sensitivity_{name}.png")
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(_layer_table(report))
    report.setdefault("runs", {})
    report.setdefault("dense", 100 * accuracy(model, *test))
    for seed, method in itertools.product(range(options.seeds), options.methods):
        key = f"{method} {options.epochs} {seed}"
        if key not in report["runs"]:
            report["runs"][key] = _run(model, method, (x, y), test, options.epochs, seed)
            path.write_text(json.dumps(report, indent=1) + "\n")
            print(key, report["runs"][key], flush=True)
    path.with_suffix(".md").write_text(_layer_table(report) + "\n" + _accuracy_table(report))
    print(_accuracy_table(report))


def _vgg(x: np.ndarray, y: np.ndarray) -> keras.Model:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    z = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for filters in (14, 32, 64, 128):
        z = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.Conv2D(filters, 3, padding="same")(z)))
        z = layers.MaxPooling2D()(z)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(z)), name="small_vgg")
    fit(model, x, y, 10, rate=0.05)
    return model


def _layer_errors(model: keras.Model, images: np.ndarray) -> dict:
    """Errors of half of every group by every way to choose, relative to the outputs."""
    graph = kfp.analyze(model)
    weights, rng = kfp.criteria.Weights(graph.view), np.random.default_rng(0)
    start = time.perf_counter()
    genetic = kfp.criteria.Genetic().observe(graph, weights, images, False)
    chosen = {group.name: genetic.select(group, group.size // 2, weights) for group in graph.groups}
    seconds = time.perf_counter() - start
    rows = {}
    for group in graph.groups:
        n, gone, q = group.size, group.size - group.size // 2, genetic.found(group)
        whole = errors(q, np.ones(n, bool))
        # The scores of `Genetic` are those of greedy elimination on its error.
        rankings = (criterion.scores(group, weights) for criterion in (genetic, kfp.criteria.L1()))
        greedy, norm = (np.isin(np.arange(n), np.argsort(scores)[:gone]) for scores in rankings)
        sets = {"genetic": np.isin(np.arange(n), chosen[group.name], invert=True), "greedy": greedy, "l1": norm}
        found = {name: float(errors(q, s) / whole) for name, s in sets.items()}
        random = np.zeros((1000, n), bool)
        np.put_along_axis(random, np.argsort(-rng.random((1000, n)), axis=1)[:, :gone], True, axis=1)
        found["random"] = float(errors(q, random).min() / whole)
        if math.comb(n, gone) <= 20_000:
            every = np.zeros((math.comb(n, gone), n), bool)
            np.put_along_axis(every, np.array(list(itertools.combinations(range(n), gone))), True, axis=1)
            found["all"] = float(errors(q, every).min() / whole)
        rows[group.name] = found | {"filters": n}
    return {"seconds": seconds, "groups": rows}


def errors(q: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """m^T Q m of every row m of `removed`, boolean (..., n): the mean squared change of the consumers' outputs."""
    m = removed.astype(float)
    return ((m @ q) * m).sum(axis=-1)


def _run(model: keras.Model, method: str, train: tuple, test: tuple, epochs: int, seed: int) -> dict:
    """Accuracy after pruning, after distillation, and after plain training for the same time."""
    x, y = train
    images = np.sort(np.random.default_rng(seed).choice(len(x), CALIBRATION, replace=False))
    data = x[images].astype("float32"), y[images]
    start = time.perf_counter()
    pruned = kfp.prune_model(model, method, 0.5, data=data, compensate="least_squares", seed=seed, verify=False)
    found = {"pruning_seconds": time.perf_counter() - start, "pruned": 100 * accuracy(pruned, *test)}
    taught, alone = (keras.models.clone_model(pruned) for _ in range(2))
    for copy in (taught, alone):
        copy.set_weights(pruned.get_weights())
    start = time.perf_counter()
    fit(taught, x, y, epochs, seed=seed, teacher=model)
    found["training_seconds"] = time.perf_counter() - start
    found["distilled"] = 100 * accuracy(taught, *test)
    # A twentieth of an epoch, twice, tells what a step costs; the first compiles.
    trial = keras.models.clone_model(pruned)
    for _ in range(2):
        start = time.perf_counter()
        fit(trial, x, y, 1, seed=seed, steps=20)
    steps = round(20 * found["training_seconds"] / (time.perf_counter() - start))
    fit(alone, x, y, epochs, seed=seed, steps=steps)
    return found | {"trained": 100 * accuracy(alone, *test), "steps": steps}


def _layer_table(report: dict) -> str:
    lines = ["| network | groups | genetic | greedy | L1 | random | all sets | seconds |", "|---|--:|" + "--:|" * 6]
    for name, found in report["layers"].items():
        groups = found["groups"].values()
        means = [np.mean([g[way] for g in groups]) for way in ("genetic", "greedy", "l1", "random")]
        small = [g for g in groups if "all" in g]
        best = sum(g["genetic"] <= g["all"] * (1 + 1e-9) for g in small)
        cells = " | ".join(f"{100 * mean:.1f} %" for mean in means)
        lines.append(f"| {name} | {len(groups)} | {cells} | {best} of {len(small)} optimal | {found['seconds']:.1f} |")
    worse = sum(
        g["genetic"] > min(g[way] for way in ("greedy", "l1", "random")) * (1 + 1e-9)
        for found in report["layers"].values()
        for g in found["groups"].values()
    )
    return "\n".join(lines) + f"\n\nGroups in which another way is better than the genetic one: {worse}.\n"


def _accuracy_table(report: dict) -> str:
    lines = [f"Dense: {report['dense']:.2f} %.", "", "| method | pruned | distilled | plain training, same time |"]
    lines += ["|---|--:|--:|--:|"]
    for method in METHODS:
        runs = [run for key, run in report["runs"].items() if key.split()[0] == method]
        if runs:
            cells = []
            for way in ("pruned", "distilled", "trained"):
                scores = [run[way] for run in runs]
                spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
                cells.append(f"{np.mean(scores):.1f}{spread}")
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of distillation (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs (%(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows (all)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the results (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
