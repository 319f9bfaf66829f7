"""A zoo: trained networks at several sizes, each with its `.tflite` file, plan, report and model card in a folder.

python examples/pruned_zoo.py images=resnet20.keras [keywords=kfp-keyword-spotting/dense.keras]
    [cells=kfp-detection/dense.keras] [scenes=kfp-segmentation/dense.keras] [--target arm64] [--out DIR]
    [--untimed]

The last three are what keyword_spotting.py, detection.py and segmentation.py have trained. `compress` makes every size,
from training samples, at most 2 048, whose labels it only measures with; scores are over test samples. Nothing is
trained with labels afterwards. Folders and rows are kept: a run that was interrupted goes on, and one with --untimed
gets its milliseconds from the same call without it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent / "audio"))
sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import detection
import keras
import numpy as np
import rows
import segmentation
from cifar10 import load_cifar10
from spoken_digit import load_features

import keras_filterprune as kfp
from tflite_bench import benchmark

# 1 is the original, whose file is quantized as the others are.
BUDGETS = (1.0, 0.75, 0.5, 0.35, 0.25)
# Of which compress holds a quarter out.
SAMPLES = 2730


class Task(NamedTuple):
    """What networks are for: data to compress with, test inputs, `score(outputs)` of these in percent, its name."""

    data: Any
    inputs: np.ndarray
    score: Callable[[Any], float]
    metric: str


def images(data_dir: str | None) -> Task:
    """Photographs of ten kinds of things."""
    return _classes(*load_cifar10(data_dir))


def keywords(data_dir: str | None) -> Task:
    """Spoken digits."""
    return _classes(*load_features(data_dir))


def _classes(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Task:
    (x, y), (inputs, labels) = train, test
    data, inputs = (x[:SAMPLES].astype("float32"), y[:SAMPLES]), inputs.astype("float32")
    return Task(data, inputs, lambda outputs: float(100 * np.mean(outputs.argmax(-1) == labels)), "accuracy")


def cells(data_dir: str | None) -> Task:
    """Boxes of blood cells."""
    (x, _), (inputs, boxes) = (detection.load_bccd(data_dir, split)[1] for split in ("train", "test"))

    def score(outputs: Any) -> float:
        return detection.mean_average_precision(boxes, detection.detections(outputs))

    return Task(x.astype("float32"), inputs.astype("float32"), score, "mAP@0.5")


def scenes(data_dir: str | None) -> Task:
    """Classes of the pixels of road scenes."""
    (x, _), (inputs, labels) = (segmentation.load_camvid(data_dir, split) for split in ("train", "test"))

    def score(outputs: Any) -> float:
        return segmentation.mean_iou(labels, outputs.argmax(-1))

    return Task(x.astype("float32"), inputs.astype("float32"), score, "mean IoU")


TASKS = {task.__name__: task for task in (images, keywords, cells, scenes)}


def main() -> None:
    options = _options()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    results = out / "pruned_zoo.json"
    for name, path in options.networks:
        model, task = keras.models.load_model(path), TASKS[name](options.data_dir)
        files = {}
        for keep in BUDGETS:
            made = kfp.compress(model, task.data, options.target, budget=keep, out=out / f"{model.name}-{keep:g}")
            files[keep] = made.folder / "model.float32.tflite", made.tflite
            if keep not in _rows(results, model):
                figures = _figures(made, task, files[keep][0])
                rows.append({"network": model.name, "keep": keep} | figures, results, "network", "keep")
        if not options.untimed and any("ms" not in row for row in _rows(results, model).values()):
            # All sizes of a network in turns: what else the machine does slows them alike.
            timed = iter(benchmark([file for pair in files.values() for file in pair], runs=200, progress=True).models)
            for row in _rows(results, model).values():
                times = {"float32_ms": next(timed).p50_ms, "ms": next(timed).p50_ms}
                rows.append(row | times, results, "network", "keep")
        results.with_suffix(".md").write_text(_table(rows.read(results)["rows"], options.target))
    print(results.with_suffix(".md").read_text())


def _rows(results: Path, model: keras.Model) -> dict[float, dict[str, Any]]:
    """What is known of a network, largest size first."""
    return {row["keep"]: row for row in rows.read(results)["rows"] if row["network"] == model.name}


def _figures(made: kfp.compression.Compressed, task: Task, float_file: Path) -> dict[str, Any]:
    small = keras.models.load_model(made.model)
    float_bytes = kfp.export_tflite(small, float_file, overwrite=True).bytes
    scores = [task.score(kfp.export.predict_tflite(path, task.inputs)) for path in (float_file, made.tflite)]
    found = {key: made.figures[key][1] for key in ("macs", "params", "bytes")}
    found |= {"float32_bytes": float_bytes, "metric": task.metric, "float32_score": scores[0], "score": scores[1]}
    return found | {"quantize": made.quantize}


def _table(found: list[dict[str, Any]], target: str) -> str:
    lines = [
        "| network | MACs kept | million MACs | thousand params | file | score fp32 / file | KB fp32 / file "
        "| ms fp32 / file |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    whole = {row["network"]: row["macs"] for row in found if row["keep"] == 1}
    for row in found:
        name = f"{row['network']}, {row['metric']}" if row["keep"] == 1 else ""
        cost = f"{row['macs'] / whole[row['network']]:.2f} | {row['macs'] / 1e6:.1f} | {row['params'] / 1e3:.1f}"
        scores = f"{row['float32_score']:.1f} / {row['score']:.1f}"
        sizes = f"{row['float32_bytes'] / 1e3:.0f} / {row['bytes'] / 1e3:.0f}"
        times = f"{row['float32_ms']:.2g} / {row['ms']:.2g}" if "ms" in row else ""
        lines.append(f"| {name} | {cost} | {row['quantize']} | {scores} | {sizes} | {times} |")
    said = f"Made for {target}; nothing is trained with labels. Milliseconds: x86, one thread, median, in turns."
    return "\n".join(lines) + f"\n\n{said}\n"


def _network(text: str) -> tuple[str, str]:
    task, equals, path = text.partition("=")
    if task not in TASKS or not equals:
        raise argparse.ArgumentTypeError(f"expected TASK=FILE, with a task of {', '.join(TASKS)}. Received: {text}")
    return task, path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=_network, metavar="TASK=FILE", help="a trained .keras file")
    parser.add_argument("--data-dir", help="folder of the data (KFP_DATA_DIR)")
    parser.add_argument("--target", default="arm64", help="device that the files are for (%(default)s)")
    parser.add_argument("--out", default="kfp-zoo", help="folder for the results (./%(default)s)")
    parser.add_argument("--untimed", action="store_true", help="leave milliseconds blank: other work runs beside")
    return parser.parse_args()


if __name__ == "__main__":
    main()
