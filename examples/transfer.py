"""Transfer learning: a backbone that knows five classes of CIFAR-10 learns five others from few images, and is pruned.

python examples/transfer.py [--data-dir DIR] [--images 50] [--keep 0.35] [--draws 2] [--epochs 8] [--new-epochs 60]
    [--out DIR]

A MobileNetV2 of keras.applications is trained on the first five classes, from scratch: no weights are fetched. It
learns the other five, with a new head, from some images of each, is pruned, and trained on the few again; or the
backbone is pruned before it learns from them. What goes is chosen, and what stays refitted, by these images, by as many
others of the new classes, or by as many of the old ones; nothing of that depends on time. Accuracy is over all test
images of the new classes.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from cifar10 import flipped_and_shifted, load_cifar10
from protocol import Protocol, Task, parser

import keras_filterprune as kfp

CLASSES, SIZE = 5, 64


def main() -> None:
    options = _options()
    train, test = load_cifar10(options.data_dir)
    (old, old_test), (new, new_test) = ((of_classes(*train, n), of_classes(*test, n)) for n in (0, CLASSES))
    few = np.concatenate([np.flatnonzero(new[1] == label)[: options.images] for label in range(CLASSES)])
    samples = drawn(new[0], few, old[0], options.draws)
    new = new[0][few], new[1][few]
    backbone = Protocol(_task("old", backbone_and_head, old, old_test), _within(options, "old")).run()["dense"]

    def pruned(data: np.ndarray, model: keras.Model) -> keras.Model:
        return kfp.prune_model(model, "pursuit", options.keep, data=data.astype("float32"))

    def pruned_before(data: np.ndarray, model: keras.Model) -> keras.Model:
        return with_new_head(pruned(data, backbone))

    ways: dict[str, Any] = {}
    for name, data in samples.items():
        ways |= {f"by {name}": partial(pruned, data), f"by {name}, before": partial(pruned_before, data)}
    task = _task("transfer", lambda: with_new_head(backbone), new, new_test, ways)
    Protocol(task, _within(options, "new", epochs=options.new_epochs, tune_epochs=options.new_epochs)).run()


def drawn(new: np.ndarray, few: np.ndarray, old: np.ndarray, draws: int) -> dict[str, np.ndarray]:
    """Images to prune by, and what they are: those of the new classes that are learnt from, others, and old ones."""
    count = len(few)
    rest, found = np.setdiff1d(np.arange(len(new)), few), {f"the {count} images": new[few]}
    for draw in range(1, draws + 1):
        generator = np.random.default_rng(draw)
        found[f"{count} others, draw {draw}"] = new[generator.choice(rest, count, replace=False)]
        found[f"{count} of the old classes, draw {draw}"] = old[generator.choice(len(old), count, replace=False)]
    return found


def of_classes(x: np.ndarray, y: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of five classes, in their order, and class numbers from 0 on."""
    chosen = (y >= first) & (y < first + CLASSES)
    return x[chosen], y[chosen] - first


def backbone_and_head() -> keras.Model:
    """A narrow MobileNetV2 (Sandler et al. 2018) for raw 32x32 images, which it takes twice as large."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(keras.layers.UpSampling2D(SIZE // 32)(inputs))
    settings = {"include_top": False, "weights": None, "pooling": "avg", "alpha": 0.35}
    features = keras.applications.MobileNetV2(input_tensor=x, **settings).output
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(features), name="mobilenetv2")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # That of keras.applications is for far longer training: what statistics begin with would outlive ours.
            layer.momentum = 0.9
    return model


def with_new_head(model: keras.Model) -> keras.Model:
    """The backbone as it is, and logits of other classes, the same at every call."""
    keras.utils.set_random_seed(0)
    outputs = keras.layers.Dense(CLASSES, name="new_head")(model.get_layer("head").input)
    return keras.Model(model.input, outputs, name=model.name)


def _task(name: str, network: Any, train: tuple, test: tuple, ways: dict[str, Any] | None = None) -> Task:
    (x, y), (inputs, labels) = train, test

    def batch(numbers: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        augment = flipped_and_shifted(int(generator.integers(2**31)))
        return augment(x[numbers]).astype("float32"), y[numbers]

    return Task(
        name=name,
        network=network,
        batch=batch,
        examples=len(x),
        size=min(64, len(x)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # Of all classes, in whose order the few are.
        samples=np.random.default_rng(0).permutation(x)[:200].astype("float32"),
        inputs=inputs.astype("float32"),
        score=lambda logits: float(100 * np.mean(logits.argmax(-1) == labels)),
        metric="accuracy",
        ways={"dense": None} | (ways or {}),
    )


def _within(options: argparse.Namespace, folder: str, **others: Any) -> argparse.Namespace:
    """The same, with a folder in the folder, and other numbers."""
    return argparse.Namespace(**vars(options) | {"out": Path(options.out, folder)} | others)


def _options() -> argparse.Namespace:
    found = parser(__doc__, "transfer", epochs=8, tune_epochs=2)
    found.add_argument("--images", type=int, default=50, help="of each new class (%(default)s)")
    found.add_argument("--keep", type=float, default=0.35, help="share of the MACs that is left (%(default)s)")
    found.add_argument("--draws", type=int, default=2, help="of other images to prune by (%(default)s)")
    found.add_argument("--new-epochs", type=int, default=60, help="on the few images, each time (%(default)s)")
    return found.parse_args()


if __name__ == "__main__":
    main()
