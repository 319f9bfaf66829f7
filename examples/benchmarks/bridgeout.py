"""Accuracy after removing filters without fine-tuning, for networks that were trained to be prunable.

python examples/benchmarks/bridgeout.py [--data-dir DIR] [--variants plain bridgeout] [--seeds 3] [--out DIR]
    [--held-out]

A small VGG (four 3x3 convolutions of 64, 128, 256 and 256 filters, strides in the place of pooling) on the first 10 000
training images of CIFAR-10, 30 epochs. Of every convolution the same share of filters goes, the smallest L2 norms
first, as in Khan and Stavness (2020), but for real. L2 and Bridgeout have the same weight decay on all weights, scales
and shifts, as in the paper, so much stronger as training is shorter. Gates are trained to the multiply-accumulates
that are left when 30 % of the filters go; beyond, filters of small L2 norm go from what is left, to equal
multiply-accumulates. Accuracy is over all 10 000 test images; the settings below were chosen with --held-out, on the
last 2 000 training images. Results are written after every network, and a run that was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from cifar10 import accuracy, augmented, load_cifar10

import keras_filterprune as kfp

IMAGES, BATCH, EPOCHS, RATE = 10_000, 64, 30, 0.05
REMOVED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Variant:
    """One way to train: what is put into the network, around it, and next to it."""

    label: str
    decay: float | None = None
    regularizer: Callable[[], keras.regularizers.Regularizer] | None = None
    dropout: float = 0.0
    wrap: Callable[[keras.Model], keras.Model] = lambda model: model
    callbacks: Callable[[], list] = field(default=list)


VARIANTS = {
    "plain": Variant("plain"),
    "dropout": Variant("dropout 0.2", dropout=0.2),
    "l2": Variant("L2", decay=0.06),
    "bridgeout": Variant(
        "Bridgeout", decay=0.06, wrap=lambda model: kfp.apply_bridgeout(model, 0.1, 1.5, target_fraction=0.75)
    ),
    "penalty": Variant("BridgePenalty", regularizer=lambda: kfp.regularizers.BridgePenalty(1.5, 1e-3)),
    "gates": Variant("gates", wrap=kfp.apply_filter_gates, callbacks=lambda: [kfp.callbacks.BudgetGates(0.7**2)]),
}


def main() -> None:
    options = _options()
    (x, y), test = load_cifar10(options.data_dir)
    if options.held_out:
        test = x[-2000:], y[-2000:]
    path = Path(options.out, f"bridgeout{'_held_out' if options.held_out else ''}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(options.seeds):
        for name in options.variants:
            key = f"{name} {seed}"
            if key not in report:
                network = _trained(VARIANTS[name], x[:IMAGES], y[:IMAGES], seed)
                scores = report[key] = [100 * accuracy(_without(network, share), *test) for share in REMOVED]
                path.write_text(json.dumps(report, indent=1) + "\n")
                print(key, [round(score, 1) for score in scores], flush=True)
    path.with_suffix(".md").write_text(_table(report))
    _plot(report, path.with_suffix(".png"))
    print(_table(report))


def _network(variant: Variant) -> keras.Model:
    layers = keras.layers
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for number, (filters, strides) in enumerate(((64, 2), (128, 2), (256, 2), (256, 1)), 1):
        x = layers.Conv2D(
            filters,
            3,
            strides,
            "same",
            use_bias=False,
            kernel_initializer="he_uniform",
            kernel_regularizer=variant.regularizer() if variant.regularizer else None,
            name=f"conv{number}",
        )(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Dropout(variant.dropout)(x) if variant.dropout else x
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)), name="small_vgg")


def _trained(variant: Variant, x: np.ndarray, y: np.ndarray, seed: int) -> keras.Model:
    """A plain network, trained with SGD, momentum 0.9 and a cosine schedule, flips and crops."""
    keras.utils.set_random_seed(seed)
    network = variant.wrap(_network(variant))
    network.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(RATE, EPOCHS * -(-len(x) // BATCH)),
            momentum=0.9,
            nesterov=True,
            weight_decay=variant.decay,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    network.fit(augmented(x, y, BATCH, seed), epochs=EPOCHS, shuffle=False, verbose=2, callbacks=variant.callbacks())
    return kfp.strip_wrappers(network)


def _without(network: keras.Model, share: float) -> keras.Model:
    """The network without a share of the filters of every convolution, or what costs as little."""
    settings = {"compensate": "none", "verify": False, "progress": False}
    small = kfp.prune_model(network, "dead", kfp.budgets.RedundancyBudget(), **settings)
    if small.count_params() == network.count_params():
        return kfp.prune_model(network, "l2", kfp.FiltersBudget(1 - share), **settings) if share else network
    costs = [kfp.budgets.CostModel(kfp.analyze(model)) for model in (network, small)]
    spent = costs[1].macs(costs[1].sizes)
    wanted = costs[0].macs(np.floor((1 - share) * costs[0].sizes + 0.5).astype(int))
    return kfp.prune_model(small, "l2", wanted / spent, **settings) if wanted < spent else small


def _table(report: dict) -> str:
    lines = [f"| trained with | {' | '.join(f'{100 * share:.0f} %' for share in REMOVED)} |"]
    lines += ["|---|" + "--:|" * len(REMOVED)]
    for name, runs in _grouped(report).items():
        scores = np.array(runs)
        spread = [f" ({low:.0f}-{high:.0f})" for low, high in zip(scores.min(0), scores.max(0), strict=True)]
        cells = [f"{mean:.1f}{s if len(runs) > 1 else ''}" for mean, s in zip(scores.mean(0), spread, strict=True)]
        lines.append(f"| {VARIANTS[name].label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _grouped(report: dict) -> dict[str, list[list[float]]]:
    return {name: runs for name in VARIANTS if (runs := [run for key, run in report.items() if key.split()[0] == name])}


def _plot(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    percent = 100 * np.array(REMOVED)
    for name, runs in _grouped(report).items():
        scores = np.array(runs)
        (line,) = axes.plot(percent, scores.mean(0), marker="o", label=VARIANTS[name].label)
        axes.fill_between(percent, scores.min(0), scores.max(0), color=line.get_color(), alpha=0.15)
    axes.set(xlabel="filters removed from every layer, %", ylabel="test accuracy, %, no fine-tuning", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="networks (all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the results (%(default)s)")
    parser.add_argument("--held-out", action="store_true", help="accuracy over 2 000 training images instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
