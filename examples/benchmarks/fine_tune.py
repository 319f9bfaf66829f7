"""Accuracy on CIFAR-10 after pruning and a little training: L2 against the default recipe, over wall time.

python examples/benchmarks/fine_tune.py --model resnet20.keras [--data-dir DIR] [--keep 0.5] [--epochs 0 1 3]
    [--seeds 3] [--methods l2 pursuit pursuit+distillation pursuit+recovery] [--out DIR]

Training: SGD 0.02 with momentum 0.9 and a cosine schedule, batches of 128, flips and crops, all training images; with
"+distillation" the network before pruning is the teacher (temperature 4, 70 % of the loss). With "+recovery" it has
taught before training as well, on flips and shifts of the calibration images, and what is trained on is 70 % squared
differences of logits, by Adam 0.001 in batches of 32: chosen on 5 000 training images that were held out.
Accuracy is over all 10 000 test images; seeds change the calibration images and the order of training. Results are
written after every run, and a run that was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
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
from cifar10 import accuracy, augmented, fit, flipped_and_shifted, load_cifar10

import keras_filterprune as kfp

IMAGES = 2048


def main() -> None:
    options = _options()
    (x, y), (x_test, y_test) = load_cifar10(options.data_dir)
    model = keras.models.load_model(options.model)
    path = Path(options.out, f"fine_tune_{model.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {"model": model.name, "runs": {}}
    report.setdefault("dense", 100 * accuracy(model, x_test, y_test))
    for seed in range(options.seeds):
        images = np.sort(np.random.default_rng(seed).choice(len(x), IMAGES, replace=False))
        data = x[images].astype("float32")
        for name in options.methods:
            keys = {epochs: f"{options.keep} {name} {epochs} {seed}" for epochs in options.epochs}
            missing = {epochs: key for epochs, key in keys.items() if key not in report["runs"]}
            if not missing:
                continue
            method, _, taught = name.partition("+")
            recovery = kfp.compensators.Reconstruct(seed=seed, augment=flipped_and_shifted(seed))
            compensate = {"compensate": recovery} if taught == "recovery" else {}
            start = time.perf_counter()
            pruned = kfp.prune_model(model, method, options.keep, data=data, seed=seed, verify=False, **compensate)
            pruning = time.perf_counter() - start
            for epochs, key in missing.items():
                small, start = keras.models.clone_model(pruned), time.perf_counter()
                small.set_weights(pruned.get_weights())
                if epochs and taught == "recovery":
                    imitate(small, model, x, y, epochs, seed)
                elif epochs:
                    fit(small, x, y, epochs, seed=seed, teacher=model if taught else None)
                seconds = pruning + time.perf_counter() - start
                score = 100 * accuracy(small, x_test, y_test)
                report["runs"][key] = {"accuracy": score, "seconds": seconds, "pruning_seconds": pruning}
                path.write_text(json.dumps(report, indent=1) + "\n")
                print(key, report["runs"][key], flush=True)
    path.with_suffix(".md").write_text(_table(report))
    print(_table(report))


def imitate(student: keras.Model, teacher: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> None:
    """Train a network that is near its teacher: small steps by Adam, squared differences of logits, and labels."""
    keras.utils.set_random_seed(seed)
    data = augmented(x, y, 32, seed)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * len(data))
    student.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kfp.distill(student, teacher, temperature=math.inf, alpha=0.7).fit(data, epochs=epochs, shuffle=False, verbose=2)


def _table(report: dict) -> str:
    lines = [f"{report['model']}, dense {report['dense']:.2f} %: accuracy in % after pruning and training", ""]
    lines += ["| MACs kept | method | epochs | accuracy | seconds |", "|---|---|--:|--:|--:|"]
    rows: dict[tuple[str, str, str], list] = {}
    for key, run in report["runs"].items():
        keep, method, epochs, _ = key.split()
        rows.setdefault((keep, method, epochs), []).append(run)
    for (keep, method, epochs), runs in rows.items():
        scores = [run["accuracy"] for run in runs]
        spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
        seconds = np.median([run["seconds"] for run in runs])
        lines.append(f"| {keep} | `{method}` | {epochs} | {np.mean(scores):.1f}{spread} | {seconds:.0f} |")
    return "\n".join(lines) + "\n\nSeconds: pruning and training, median.\n"


def _options() -> argparse.Namespace:
    methods = [name for name, needs, _ in kfp.list_methods() if needs != "labels"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .keras file that takes raw images")
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of MACs kept (%(default)s)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 3], help="epochs of training (0 1 3)")
    rows = [name + how for name in methods for how in ("", "+distillation", "+recovery")]
    chosen = ["l2", "pursuit", "pursuit+distillation", "pursuit+recovery"]
    parser.add_argument("--methods", nargs="+", choices=rows, default=chosen, help=f"methods ({' '.join(chosen)})")
    parser.add_argument("--seeds", type=int, default=3, help="runs (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
