"""Milliseconds before and after pruning, on this computer, one thread.

python examples/benchmarks/latency.py [--networks MobileNet MobileNetV2] [--models resnet20.keras ...] [--out DIR]

Networks of keras.applications have random weights and take 224x224 images: time does not depend on the values. Every
network is pruned by l2 to half of its multiply-accumulates, to the same on the steps of this processor's kernels, every
layer alike or all filters in one ranking (`Global`), and to 0.6 of its milliseconds by a table of measured operators;
all files run interleaved. Predictions are compared with the fastest run, ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import keras_filterprune as kfp
import tflite_bench

TARGETS = {"float32": "x86-avx512", "int8": "x86-avx512-int8"}
KEEP = 0.6


def main() -> None:
    options = _options()
    report: dict = {"machine": {}, "rows": []}
    for name in [*options.networks, *options.models]:
        if name.endswith(".keras"):
            model = keras.models.load_model(name)
        else:
            model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
        for data_type in options.data_types:
            report["rows"] += measured(model, Path(name).stem, data_type, report, options.seconds)
            out = Path(options.out)
            out.mkdir(parents=True, exist_ok=True)
            (out / "latency.json").write_text(json.dumps(report, indent=1) + "\n")
            (out / "latency.md").write_text(table(report))
            print(table(report))


def measured(model: keras.Model, name: str, data_type: str, report: dict, seconds: float) -> list[dict]:
    """One row per variant of a network, the dense one first."""
    start = time.perf_counter()
    prices = kfp.measure_latency(model, quantize=data_type)
    table_seconds = time.perf_counter() - start
    steps, ranked = {"channel_multiple": TARGETS[data_type]}, kfp.Method(kfp.criteria.L2(), kfp.allocators.Global())
    variants = {
        "dense": model,
        "half the MACs": _pruned(model, 0.5),
        "half the MACs, steps": _pruned(model, 0.5, **steps),
        "half the MACs, steps, ranked": _pruned(model, 0.5, ranked, **steps),
        f"{KEEP} of the ms": _pruned(model, kfp.LatencyBudget(keep=KEEP, table=prices)),
    }
    shape = (16, *model.input_shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32") if data_type == "int8" else None
    quantize = None if data_type == "float32" else data_type
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.tflite") for number in range(len(variants))]
        for variant, file in zip(variants.values(), files, strict=True):
            kfp.export_tflite(variant, file, quantize=quantize, data=images, verify=False)
        runs = int(min(max(1e3 * seconds / prices.predict(model), 30), 2000))
        found = tflite_bench.benchmark(files, threads=1, runs=runs, rounds=10)
    report["machine"] = found.machine
    rows = []
    for (variant, small), timing in zip(variants.items(), found.models, strict=True):
        cost = kfp.budgets.CostModel(kfp.analyze(small))
        rows.append(
            {
                "network": name,
                "data type": data_type,
                "variant": variant,
                "macs": cost.macs(cost.sizes),
                "predicted_ms": prices.predict(small),
                "min_ms": timing.min_ms,
                "p50_ms": timing.p50_ms,
                "ratio": timing.ratio_to_first,
                "table_seconds": table_seconds,
                "steps": str(prices.tiles),
            }
        )
    return rows


def _pruned(model: keras.Model, budget, method="l2", **options) -> keras.Model:
    return kfp.prune_model(model, method, budget, compensate="none", verify=False, progress=False, **options)


def table(report: dict) -> str:
    machine = report["machine"]
    lines = [f"{machine.get('cpu')}, one thread, LiteRT {machine.get('litert')}", ""]
    lines += [
        "| network | type | variant | MACs | ms | faster | predicted ms | error |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        first = next(r for r in report["rows"] if all(r[k] == row[k] for k in ("network", "data type")))
        error = 100 * (row["predicted_ms"] / row["min_ms"] - 1)
        lines.append(
            f"| {row['network']} | {row['data type']} | {row['variant']} | {row['macs'] / first['macs']:.3f} | "
            f"{row['min_ms']:.3f} | {1 / row['ratio']:.2f}x | {row['predicted_ms']:.3f} | {error:+.1f} % |"
        )
    seconds = {f"{r['network']} {r['data type']}": f"{r['table_seconds']:.0f} s ({r['steps']})" for r in report["rows"]}
    return "\n".join([*lines, "", f"Seconds for the tables, and the steps read off them: {seconds}", ""])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["MobileNet", "MobileNetV2"], help="of keras.applications")
    parser.add_argument("--models", nargs="*", default=[], help=".keras files")
    parser.add_argument("--data-types", nargs="+", default=["float32", "int8"], choices=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=3, help="for the runs of the dense network (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the results (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
