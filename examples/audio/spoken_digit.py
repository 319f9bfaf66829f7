"""Spoken digits: train a DCASE 2021 network, prune it passively, fine-tune, export, benchmark; one table.

python examples/audio/spoken_digit.py [--data-dir DIR] [--epochs 30] [--seeds 3] [--out DIR]

Log-mel features of one second; training holds 10 % of the training clips back and keeps the weights that do best on
them; accuracy is over the 300 test clips. The convolutions alone are pruned, without data, and the network is trained
again (as the dense one is, for comparison): by one sweep of `similarity`, which decides itself how many filters go
(`nystrom` finds the same ones), and by every method to half of the multiply-accumulates. Results are written after
every step, and a run that was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from networks import dcase21_net

import keras_filterprune as kfp
from tflite_bench import benchmark

RATE, SAMPLES, BANDS, FRAMES = 8000, 8000, 40, 50
HALF = kfp.MacsBudget(keep=0.5)
WAYS = {
    "dense": None,
    "dense, trained again": (),
    "similarity, one sweep": ("similarity", kfp.budgets.RedundancyBudget()),
    "similarity": ("similarity", HALF),
    "operator_norm": ("operator_norm", HALF),
    "l2": ("l2", HALF),
}
MODES = ("float32", "float16", "int8")


def main() -> None:
    options = _options()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    train, test = load_features(options.data_dir)
    path = out / "spoken_digit.json"
    report = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    for seed in range(options.seeds):
        for name, way in WAYS.items():
            if f"{name}/{seed}" in report["runs"]:
                continue
            straight = None
            if way is None:
                keras.utils.set_random_seed(seed)
                model = dcase21_net((BANDS, FRAMES, 1), pools=((5, 5), (4, 10)))
            else:
                model = keras.models.load_model(out / f"dense-{seed}.keras")
            if way:
                model, pruned = kfp.prune_model(model, *way, include="conv*", return_report=True)
                straight = accuracy(model, *test)
                print(pruned.summary())
            cost = kfp.budgets.CostModel(kfp.analyze(model))
            macs = cost.macs(cost.sizes)
            fit(model, *train, options.epochs, seed)
            model.save(out / f"{_stem(name)}-{seed}.keras")
            figures = _figures(model, train, test, out / f"{_stem(name)}-{seed}")
            report["runs"][f"{name}/{seed}"] = {"macs": macs, "straight": straight} | figures
            path.write_text(json.dumps(report, indent=1) + "\n")
            print(name, seed, figures, flush=True)
    if "latency" not in report:
        files = [out / f"{_stem(name)}-0.{mode}.tflite" for mode in ("float32", "int8") for name in WAYS]
        timed = benchmark(files, runs=200, progress=True).models
        report["latency"] = {file.stem: model.p50_ms for file, model in zip(files, timed, strict=True)}
        path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(_table(report, options.seeds))
    print(_table(report, options.seeds))


def load_features(data_dir: str | None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """((x_train, y_train), (x_test, y_test)): normalised log-mel spectrograms (n, 40, 50, 1) and digits (n,).

    Args:
        data_dir: folder of tensorflow_datasets; KFP_DATA_DIR by default, else TFDS's own default.
    """
    import tensorflow_datasets as tfds

    data_dir = data_dir or os.environ.get("KFP_DATA_DIR")
    splits = tfds.load("spoken_digit", data_dir=data_dir, download=data_dir is None, split=["train", "test"])
    (x, y), (x_test, y_test) = (
        [*zip(*((c["audio"], c["label"]) for c in tfds.as_numpy(s)), strict=True)] for s in splits
    )
    train, test = _log_mel(x), _log_mel(x_test)
    mean, deviation = (f(train, axis=(0, 2), keepdims=True) for f in (np.mean, np.std))
    return ((train - mean) / deviation, np.array(y)), ((test - mean) / deviation, np.array(y_test))


def _log_mel(clips: list[np.ndarray]) -> np.ndarray:
    """Spectrograms (n, 40, 50, 1) in dB of one second each, clips in the middle: 40 ms frames, half of it overlap."""
    waves = np.zeros((len(clips), SAMPLES), np.float32)
    for wave, clip in zip(waves, clips, strict=True):
        clip = clip[:SAMPLES] / 2**15
        start = (SAMPLES - len(clip)) // 2
        wave[start : start + len(clip)] = clip
    # By default silence is 80 dB below the loudest clip of those that are given at once: not the same in two splits.
    silence = {"min_power": 1e-4, "top_db": 200}
    spectrogram = keras.layers.MelSpectrogram(
        fft_length=512, sequence_length=320, sequence_stride=160, sampling_rate=RATE, num_mel_bins=BANDS, **silence
    )
    return keras.ops.convert_to_numpy(spectrogram(waves))[:, :, :FRAMES, None]


def fit(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> None:
    """Train with Adam, batches of 32; the weights of the best epoch on 10 % of the clips stay."""
    keras.utils.set_random_seed(seed)
    held = len(x) // 10
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    best = keras.callbacks.EarlyStopping("val_accuracy", patience=epochs, restore_best_weights=True)
    # The clips are shuffled already.
    known = (x[held:], y[held:])
    model.fit(*known, batch_size=32, epochs=epochs, validation_data=(x[:held], y[:held]), callbacks=[best], verbose=2)


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return float(100 * np.mean(model.predict(x, batch_size=100, verbose=0).argmax(-1) == y))


def _stem(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def _figures(model: keras.Model, train: tuple, test: tuple, stem: Path) -> dict:
    found = {"params": model.count_params(), "accuracy": accuracy(model, *test)}
    for mode in MODES:
        file = stem.with_name(f"{stem.name}.{mode}.tflite")
        result = kfp.export_tflite(model, file, quantize=mode, data=train[0][:200], overwrite=True)
        found[f"{mode}_bytes"] = result.bytes
    found["int8_accuracy"] = float(100 * np.mean(kfp.export.predict_tflite(file, test[0]).argmax(-1) == test[1]))
    return found


def _table(report: dict, seeds: int) -> str:
    lines = [
        "| network | MACs | params | accuracy straight | fine-tuned | int8 | KB fp32 / fp16 / int8 | ms fp32 / int8 |"
    ]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    for name, way in WAYS.items():
        runs = [report["runs"][f"{name}/{seed}"] for seed in range(seeds)]
        scores = " | ".join(_spread([run[key] for run in runs]) for key in ("straight", "accuracy", "int8_accuracy"))
        macs, params = (np.mean([run[key] for run in runs]) for key in ("macs", "params"))
        sizes = " / ".join(f"{np.mean([run[f'{mode}_bytes'] for run in runs]) / 1e3:.0f}" for mode in MODES)
        times = " / ".join(f"{report['latency'][f'{_stem(name)}-0.{mode}']:.3f}" for mode in ("float32", "int8"))
        label = name.replace(way[0], f"`{way[0]}`") if way else name
        lines.append(f"| {label} | {macs / 1e6:.1f} M | {params / 1e3:.1f} k | {scores} | {sizes} | {times} |")
    return "\n".join(lines) + f"\n\nMean over {seeds} seeds, range in brackets; times of seed 0, one thread, median.\n"


def _spread(scores: list[float | None]) -> str:
    if scores[0] is None:
        return ""
    spread = f" ({min(scores):.1f}-{max(scores):.1f})" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="tensorflow_datasets folder (KFP_DATA_DIR, else TFDS's default)")
    parser.add_argument("--epochs", type=int, default=30, help="of training, and of fine-tuning (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs (%(default)s)")
    parser.add_argument("--out", default="kfp-spoken-digit", help="folder for the results (./%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
