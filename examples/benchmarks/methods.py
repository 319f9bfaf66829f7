"""Every method in one protocol on CIFAR-10: half the MACs, one epoch of training in all, three seeds, time.

python examples/benchmarks/methods.py --model resnet20.keras [--data-dir DIR] [--keep 0.5] [--seeds 3]
    [--methods l2+least_squares group_fisher gates] [--out DIR]

Methods see 2 048 training images, drawn anew for every seed, with their labels where they ask for them. Each runs as
its name says; "+least_squares" gives it that compensator. Those that train after each cut get 5 steps there, and what
is left of the epoch afterwards: SGD 0.02 with momentum 0.9 and a cosine schedule, batches of 128, flips and crops.
Trained gates, rows that run when they are named, take half of the epoch, in which weights and gates train while the
budget falls evenly: "after pruning", theirs have been trained. Accuracy is over all 10 000 test images; seconds are
those of processors, so that work beside does not count. Rows below `l2+least_squares` are reproductions. Results are
written after every run, and a run that was interrupted goes on from there. `fp_omp_search` tries every layer in every
round, for hours: it runs when it is named.
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
from cifar10 import accuracy, augmented, fit, load_cifar10

import keras_filterprune as kfp

IMAGES, STEPS, BETWEEN = 2048, 391, 5
BASELINE = "l2+least_squares"
# Methods that train after each cut.
TRAINED = ("fp_omp_layerwise", "lrf_layerwise", "hu_ga", "fp_omp_search")
# What is another's name, what finds nothing in a network that was trained as usual, or in one without gates of whole
# channels, and what takes hours.
LEFT_OUT = ("auto", "dead", "excitation", "fp_omp_search")
# {row: kind of gates, at which they start, and what says how they move}. In so few steps the loss hardly moves gates of
# 1; where they are hard, a tenth is the same network. What the others let through depends on their size.
GATES = {
    "gates": (True, 0.1, None),
    "gates_gumbel": ("gumbel", 1.0, None),
    "gates_sigmoid": ("sigmoid", 1.0, None),
    "gates_dense": (True, 0.1, kfp.callbacks.DenseScorer),
    "gates_attention": (True, 0.1, kfp.callbacks.AttentionScorer),
    "gates_pruner": (True, 0.1, kfp.callbacks.PrunerNetwork),
}
# In so many parts of the training of gates their budget falls; steps of a part.
PARTS, PART = 10, 19


def main() -> None:
    options = _options()
    (x, y), (x_test, y_test) = load_cifar10(options.data_dir)
    model = keras.models.load_model(options.model)
    # "loss" is the one a model is compiled with.
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    path = Path(options.out, f"methods_{model.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {"model": model.name, "runs": {}}
    report.setdefault("dense", 100 * accuracy(model, x_test, y_test))
    for seed in range(options.seeds):
        for name in options.methods:
            key = f"{options.keep} {name} {seed}"
            if key in report["runs"]:
                continue
            report["runs"][key] = _run(model, name, options.keep, (x, y), (x_test, y_test), seed)
            path.write_text(json.dumps(report, indent=1) + "\n")
            print(key, report["runs"][key], flush=True)
    path.with_suffix(".md").write_text(_table(report))
    print(_table(report))


def _run(model, name: str, keep: float, train: tuple, test: tuple, seed: int) -> dict:
    """What is noted of one run: accuracies, share of the MACs, seconds."""
    start = time.process_time()
    small, left = (_gated if name in GATES else _pruned)(model, name, keep, train, seed)
    pruning, pruned = time.process_time() - start, 100 * accuracy(small, *test)
    start = time.process_time()
    fit(small, *train, 0, seed=seed, steps=left)
    seconds = {"pruning": pruning, "training": time.process_time() - start}
    trained = 100 * accuracy(small, *test)
    return {"pruned": pruned, "trained": trained, "macs": _macs(small) / _macs(model), "seconds": seconds}


def _pruned(model, name: str, keep: float, train: tuple, seed: int) -> tuple[keras.Model, int]:
    """A model pruned by a method, and the steps that are left to train it."""
    method, _, compensator = name.partition("+")
    images, spent = _images(train, seed), []

    def finetune(small) -> None:
        fit(small, *train, 0, seed=seed, steps=BETWEEN)
        spent.append(BETWEEN)

    small = kfp.prune_model(
        model,
        method,
        keep,
        data=_data(train, images, method),
        compensate=compensator or "auto",
        finetune=finetune if method in TRAINED else None,
        seed=seed,
        verify=False,
    )
    return small, STEPS - sum(spent)


def _gated(model, name: str, keep: float, train: tuple, seed: int) -> tuple[keras.Model, int]:
    """A model without the filters whose gates have closed, and the steps that are left to train it."""
    kind, start, scorer = GATES[name]
    keras.utils.set_random_seed(seed)
    gated = kfp.apply_filter_gates(model, gates=kind)
    for layer in gated.layers:
        if isinstance(layer, kfp.layers.FilterPruning):
            layer.mask.assign(start * layer.mask.value)
    rates = keras.optimizers.schedules.CosineDecay(0.02, PARTS * PART)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    gated.compile(keras.optimizers.SGD(rates, momentum=0.9), loss)
    # The hinge could close all gates twice over in the time.
    settings = {"strength": 2 * start / (PARTS * PART), "seed": seed, "scorer": scorer and scorer(seed=seed)}
    callback = kfp.callbacks.BudgetGates(keep, PARTS - 1, **settings)
    data = augmented(*train, 128, seed).repeat()
    gated.fit(data, epochs=PARTS, steps_per_epoch=PART, shuffle=False, verbose=2, callbacks=[callback])
    # Statistics of batch normalization are behind what a few steps have changed.
    how = {"compensate": "bn", "data": train[0][_images(train, seed)].astype("float32"), "verify": False}
    return kfp.prune_model(
        kfp.strip_wrappers(gated), "dead", kfp.budgets.RedundancyBudget(), **how
    ), STEPS - PARTS * PART


def _images(train: tuple, seed: int) -> np.ndarray:
    """Numbers of the training images that methods see."""
    return np.sort(np.random.default_rng(seed).choice(len(train[0]), IMAGES, replace=False))


def _macs(model) -> int:
    costs = kfp.budgets.CostModel(kfp.analyze(model))
    return costs.macs(costs.sizes)


def _data(train: tuple, images: np.ndarray, method: str):
    """Labels are for the methods that ask for them; the papers' 1x1 convolutions are from the weights alone."""
    x, y = train[0][images].astype("float32"), train[1][images]
    needs = {name: needs for name, needs, _ in kfp.list_methods()}[method]
    return None if method.endswith("_layerwise") else (x, y) if needs == "labels" else x


def _table(report: dict) -> str:
    rows: dict[tuple[str, str], list] = {}
    for key, run in report["runs"].items():
        keep, name, _ = key.split()
        rows.setdefault((keep, name), []).append(run)
    lines = [f"{report['model']}, accuracy in %, dense {report['dense']:.2f}", ""]
    lines += [
        "| MACs kept | method | after pruning | one epoch | pruning, CPU s | in all, CPU s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for (keep, name), runs in sorted(rows.items(), key=lambda row: (row[0][0], -_mean(row[1], "trained"))):
        pruning = np.median([run["seconds"]["pruning"] for run in runs])
        seconds = np.median([sum(run["seconds"].values()) for run in runs])
        scores = f"{_cell(runs, 'pruned')} | {_cell(runs, 'trained')}"
        lines.append(f"| {keep} | `{name}` | {scores} | {pruning:.0f} | {seconds:.0f} |")
    return "\n".join(lines) + f"\n\nRows below `{BASELINE}` are reproductions. Seconds: medians.\n"


def _mean(runs: list[dict], what: str) -> float:
    return float(np.mean([run[what] for run in runs]))


def _cell(runs: list[dict], what: str) -> str:
    scores = [run[what] for run in runs]
    spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread}"


def _options() -> argparse.Namespace:
    known = [name for name, *_ in kfp.list_methods()]
    rows = [name + how for name in known for how in ("", "+least_squares")]
    chosen = [BASELINE, *(name for name in known if name not in LEFT_OUT)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of MACs kept (%(default)s)")
    parser.add_argument(
        "--methods", nargs="+", choices=[*rows, *GATES], default=chosen, metavar="METHOD", help="rows (all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
