"""How long pruning takes and how much memory it needs, next to the least any rebuild must do.

    python examples/benchmarks/speed.py [--repetitions 5] [--models ResNet50 ...] [--out DIR]

- ratio: `prune_model(verify=False)` over the floor `clone_model` + `set_weights(get_weights())`, medians of
  interleaved repetitions in one process, with what each stage takes;
- analysis: `analyze` on EfficientNetV2L and on chains of up to 3 000 layers, and how that grows;
- memory: the highest resident size while pruning minus that just before, in a fresh process per model (Linux only).

Prints one table and writes speed.json and speed.md.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.progress import track

import keras_filterprune as kfp

MODELS = ["ResNet50", "MobileNetV2", "EfficientNetB0"]
LARGE = "EfficientNetV2L"
MEMORY = ["ResNet50", "MobileNetV2", "EfficientNetB0", "VGG16", LARGE]
CHAINS = [100, 1000, 3000]
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=MODELS, help="for the ratio; 224x224, random weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    # Keras itself recurses once per layer while it builds a model.
    sys.setrecursionlimit(100_000)
    jobs = [(ratio, (name, options.repetitions)) for name in options.models]
    jobs += [(large_analysis, (LARGE, options.repetitions)), (chain_analysis, (CHAINS, options.repetitions))]
    jobs += [(in_fresh_process, (memory, name, verify)) for name in MEMORY for verify in (False, True)]
    rows = []
    for function, arguments in track(jobs, "measuring"):
        rows.extend(function(*arguments))
        gc.collect()
    table = markdown(rows)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "rows": rows}
    (options.out / "speed.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "speed.md").write_text(table)


def environment() -> dict[str, str | int]:
    return {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def build(name: str) -> keras.Model:
    return getattr(keras.applications, name)(weights=None)


def row(measurement: str, model: str, value: float, result: str, detail: str, target: float | None) -> dict:
    """One line of the table; `value` is what `target` (at most) speaks of."""
    met = None if target is None else value <= target
    return {
        "measurement": measurement,
        "model": model,
        "value": value,
        "result": result,
        "detail": detail,
        "target": target,
        "met": met,
    }


def seconds(function) -> float:
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def medians(functions: dict, repetitions: int) -> dict[str, float]:
    """Median seconds of each function: one call to warm up, then all of them in turn."""
    times = {name: [] for name in functions}
    for repetition in range(repetitions + 1):
        for name, function in functions.items():
            elapsed = seconds(function)
            if repetition:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(name: str, repetitions: int) -> list[dict]:
    """Pruning against cloning, and the stages of pruning."""
    model = build(name)
    functions = {
        "prune": lambda: kfp.prune_model(model, "l2", 0.5, verify=False, progress=False),
        "floor": lambda: keras.models.clone_model(model).set_weights(model.get_weights()),
        "analyse": lambda: kfp.analyze(model),
        "analyse and plan": lambda: kfp.plan_pruning(model, "l2", 0.5),
        "get_config": model.get_config,
    }
    took = medians(functions, repetitions)
    times = took["prune"] / took["floor"]
    plan, rebuild = took["analyse and plan"] - took["analyse"], took["prune"] - took["analyse and plan"]
    detail = (
        f"floor {took['floor']:.2f} s; analyse {took['analyse']:.2f} (get_config {took['get_config']:.2f}), "
        f"plan {plan:.2f}, rebuild {rebuild:.2f} s"
    )
    return [
        row("pruning / floor", name, times, f"{times:.2f}", detail, 1.5) | {"seconds": took},
        row("pruning", name, took["prune"], f"{took['prune']:.2f} s", "", 10.0),
    ]


def analysis_seconds(model: keras.Model, repetitions: int) -> dict[str, float]:
    return medians({"analyse": lambda: kfp.analyze(model), "get_config": model.get_config}, repetitions)


def large_analysis(name: str, repetitions: int) -> list[dict]:
    model = build(name)
    took = analysis_seconds(model, repetitions)
    detail = f"{len(model.layers)} layers; get_config {took['get_config']:.2f} s"
    return [row("analysis", name, took["analyse"], f"{took['analyse']:.2f} s", detail, 5.0) | {"seconds": took}]


def chain(layers: int) -> keras.Model:
    """Convolution, batch normalization, ReLU, and again."""
    x = inputs = keras.Input((8, 8, 8))
    kinds = [lambda: keras.layers.Conv2D(8, 1), keras.layers.BatchNormalization, keras.layers.ReLU]
    for number in range(layers):
        x = kinds[number % 3]()(x)
    return keras.Model(inputs, x)


def chain_analysis(sizes: list[int], repetitions: int) -> list[dict]:
    """Analysis time per chain length, and the exponent of its growth over the last step."""
    rows, took = [], {}
    for layers in sizes:
        took[layers] = analysis_seconds(chain(layers), repetitions)
        analyse, config = took[layers]["analyse"], took[layers]["get_config"]
        rows.append(
            row("analysis", f"chain of {layers}", analyse, f"{analyse:.2f} s", f"get_config {config:.2f} s", None)
            | {"seconds": took[layers]}
        )
    few, many = sizes[-2:]
    scale = math.log(many / few)
    exponent, of_config, rest = (
        math.log(f(took[many]) / f(took[few])) / scale
        for f in (lambda t: t["analyse"], lambda t: t["get_config"], lambda t: t["analyse"] - t["get_config"])
    )
    detail = f"get_config alone {of_config:.2f}, the rest {rest:.2f}"
    rows.append(row("growth exponent", f"chains of {few} to {many}", exponent, f"{exponent:.2f}", detail, 1.2))
    return rows


def in_fresh_process(function, *arguments) -> list[dict]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory(name: str, verify: bool) -> list[dict]:
    """Highest resident size while pruning minus that before, against 3 x weights + 1 GiB."""
    model = build(name)
    weights = sum(math.prod(w.shape) * 4 for w in model.weights)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    kfp.prune_model(model, "l2", 0.5, verify=verify, progress=False)
    peak, limit = resident("VmHWM") - before, 3 * weights + GIB
    detail = f"verify={verify}; weights {weights / GIB:.2f} GiB, limit {limit / GIB:.2f} GiB"
    return [row("peak memory", name, peak / limit, f"{peak / GIB:.2f} GiB", detail, 1.0) | {"bytes": peak}]


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def markdown(rows: list[dict]) -> str:
    lines = ["| measurement | model | result | target | met | detail |", "|---|---|---:|---:|---|---|"]
    for r in rows:
        target = "" if r["target"] is None else f"<= {r['target']:g}"
        if r["measurement"] == "peak memory":
            target = "<= 3 x weights + 1 GiB"
        met = {True: "yes", False: "**no**", None: ""}[r["met"]]
        lines.append(f"| {r['measurement']} | {r['model']} | {r['result']} | {target} | {met} | {r['detail']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
