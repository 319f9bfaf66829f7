"""What training-time parts cost per step: a ResNet-20, batches of 128, steps of all variants interleaved.

python examples/benchmarks/training_overhead.py [--steps 25]

Random images: the time of a step does not depend on them. Ratios are medians over steps of the ratio to the plain
network's step right before.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from cifar10 import resnet20

import keras_filterprune as kfp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25, help="steps of every variant (%(default)s)")
    steps = parser.parse_args().steps
    plain = resnet20()
    variants = {
        "plain": plain,
        "Bridgeout": kfp.apply_bridgeout(plain),
        "masks": kfp.apply_filter_pruning(plain),
        "gates": kfp.apply_filter_gates(plain),
        "group lasso": kfp.apply_penalty(plain, kfp.regularizers.GroupLasso()),
    }
    x = np.random.default_rng(0).uniform(0, 255, (128, 32, 32, 3)).astype("float32")
    # A pull so small that no gate closes.
    callbacks = {name: keras.callbacks.Callback() for name in variants} | {
        "gates": kfp.callbacks.BudgetGates(0.5, strength=1e-9)
    }
    for name, model in variants.items():
        model.compile(
            keras.optimizers.SGD(0.001, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        callbacks[name].set_model(model)
        callbacks[name].set_params({"epochs": 2})
        callbacks[name].on_train_begin()
        callbacks[name].on_epoch_begin(0)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for step in range(steps + 2):
        for name, model in variants.items():
            start = time.perf_counter()
            model.train_on_batch(x, np.arange(128) % 10)
            callbacks[name].on_train_batch_end(step)
            seconds[name].append(time.perf_counter() - start)
    print("| variant | ms per step | ratio to plain |\n|---|--:|--:|")
    for name, measured in seconds.items():
        # The first two steps compile.
        ratio = np.median(np.array(measured[2:]) / np.array(seconds["plain"][2:]))
        print(f"| {name} | {1000 * np.median(measured[2:]):.0f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
