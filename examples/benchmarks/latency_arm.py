"""Instructions before and after pruning on emulated Arm cores, one thread; instructions, not time.

python -m tflite_bench arm setup
python examples/benchmarks/latency_arm.py [--models resnet20.keras ...] [--networks MobileNet] [--out DIR]

What `latency.py` does in milliseconds: every network is pruned by l2 to half of its multiply-accumulates, to the same
on the steps of the core's kernels, and to 0.6 of its instructions by a table of counted operators, at any measured
widths and on the steps. Predictions are compared with the count of the whole file. Networks of keras.applications have
random weights and take 224x224 images.
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
from tflite_bench.arm import count_instructions

TARGETS = {
    ("cortex-a72", "float32"): "arm64",
    ("cortex-a72", "int8"): "arm64-int8",
    ("cortex-a76", "float32"): "arm64",
    ("cortex-a76", "int8"): "arm64-dotprod-int8",
}
KEEP = 0.6


def main() -> None:
    options = _options()
    report: dict = {"machines": {}, "rows": []}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in [*options.models, *options.networks]:
        if name.endswith(".keras"):
            model = keras.models.load_model(name)
        else:
            model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
        for (core, data_type), target in TARGETS.items():
            report["rows"] += counted(model, Path(name).stem, core, data_type, target, report)
            (out / "latency_arm.json").write_text(json.dumps(report, indent=1) + "\n")
            (out / "latency_arm.md").write_text(table(report))
            print(table(report))


def counted(model: keras.Model, name: str, core: str, data_type: str, target: str, report: dict) -> list[dict]:
    """One row per variant of a network, the dense one first."""
    start = time.perf_counter()
    prices = kfp.measure_latency(model, quantize=data_type, device=core)
    table_seconds = time.perf_counter() - start
    budget = kfp.LatencyBudget(keep=KEEP, table=prices)
    variants = {
        "dense": model,
        "half the MACs": _pruned(model, 0.5),
        f"half the MACs, {target}": _pruned(model, 0.5, channel_multiple=target),
        f"{KEEP} of the instructions": _pruned(model, budget),
        f"{KEEP} of the instructions, {target}": _pruned(model, budget, channel_multiple=target),
    }
    shape = (16, *model.input_shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32") if data_type == "int8" else None
    quantize = None if data_type == "float32" else data_type
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.tflite") for number in range(len(variants))]
        for variant, file in zip(variants.values(), files, strict=True):
            kfp.export_tflite(variant, file, quantize=quantize, data=images, verify=False)
        found = count_instructions(files, cpu=core, progress=True)
    report["machines"][core] = found.machine
    rows = []
    for (variant, small), count in zip(variants.items(), found.models, strict=True):
        cost = kfp.budgets.CostModel(kfp.analyze(small))
        rows.append(
            {
                "network": name,
                "core": core,
                "data type": data_type,
                "variant": variant,
                "macs": cost.macs(cost.sizes),
                "instructions": count.instructions,
                "ratio": count.ratio_to_first,
                "predicted_instructions": round(1e6 * prices.predict(small)),
                "table_seconds": table_seconds,
                "steps": str(prices.tiles),
            }
        )
    return rows


def _pruned(model: keras.Model, budget, **options) -> keras.Model:
    return kfp.prune_model(model, "l2", budget, compensate="none", verify=False, progress=False, **options)


def table(report: dict) -> str:
    versions = {f"{m['emulator']}, LiteRT {m['litert']}" for m in report["machines"].values()}
    lines = [f"Emulated Arm cores, one thread, {', '.join(versions)}: instructions per inference, not time", ""]
    lines += [
        "| network | core | type | variant | MACs | million instructions | fewer | predicted | error |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        first = next(r for r in report["rows"] if all(r[k] == row[k] for k in ("network", "core", "data type")))
        error = 100 * (row["predicted_instructions"] / row["instructions"] - 1)
        lines.append(
            f"| {row['network']} | {row['core']} | {row['data type']} | {row['variant']} | "
            f"{row['macs'] / first['macs']:.3f} | {row['instructions'] / 1e6:.2f} | {1 / row['ratio']:.2f}x | "
            f"{row['predicted_instructions'] / 1e6:.2f} | {error:+.1f} % |"
        )
    seconds = {
        f"{r['network']} {r['core']} {r['data type']}": f"{r['table_seconds']:.0f} s ({r['steps']})"
        for r in report["rows"]
    }
    return "\n".join([*lines, "", f"Seconds for the tables, and the steps read off them: {seconds}", ""])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help=".keras files")
    parser.add_argument("--networks", nargs="*", default=[], help="of keras.applications")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the results (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
