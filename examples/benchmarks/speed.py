"""How long pruning takes and how much memory it needs, next to the least any rebuild must do.

    python examples/benchmarks/speed.py [--repetitions 5] [--parts ratios growth ...] [--out DIR]

- ratios: `prune_model(verify=False)` over the floor `clone_model` + `set_weights(get_weights())`, medians of
  interleaved repetitions in one process, with what each stage takes;
- growth: `analyze` on EfficientNetV2L and on chains of up to 3 000 layers, and how that grows;
- memory: the highest resident size while pruning minus that just before, in a fresh process per model (Linux only);
- verification: what it adds to pruning, over one call of original and result on a batch of its size;
- backends: the first pruning of a fresh process, without and with data, over TensorFlow's; those that are installed;
- export: float32 files of chains of up to 1 200 operators, and how that grows;
- executors: `measure_sensitivity` in one process of one thread over two such processes, with their start.

Prints one table and writes speed.json and speed.md; parts that are not run stay as they were.
"""

import argparse
import functools
import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.progress import track

import keras_filterprune as kfp

MODELS = ["ResNet50", "MobileNetV2", "EfficientNetB0"]
LARGE = "EfficientNetV2L"
CHAINS = [100, 1000, 3000]
OPERATORS = [200, 600, 1200]
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Packages that must be there for a backend, and how much longer than TensorFlow's its first pruning may take.
BACKENDS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}
LONGER = {"l2": 3.0, "energy": 2.0}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    # Keras itself recurses once per layer while it builds a model.
    sys.setrecursionlimit(100_000)
    path = options.out / "speed.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    for part in track(options.parts, "measuring"):
        parts[part] = {"environment": environment(), "rows": PARTS[part](options.repetitions)}
        path.write_text(json.dumps({"parts": {part: parts[part] for part in PARTS if part in parts}}, indent=1) + "\n")
    table = markdown([row for part in PARTS if part in parts for row in parts[part]["rows"]])
    print(table)
    path.with_suffix(".md").write_text(table)


def environment() -> dict[str, str | int | None]:
    return {
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


def in_fresh_process(function, *arguments, **variables: str):
    """What a function returns in a new process, which has these environment variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def exponent(few: int, many: int, before: float, after: float) -> float:
    """Of the growth of a time from few to many."""
    return math.log(after / before) / math.log(many / few)


def ratios(repetitions: int) -> list[dict]:
    """Pruning against cloning, and the stages of pruning."""
    return [row for name in MODELS for row in ratio(name, repetitions)]


def ratio(name: str, repetitions: int) -> list[dict]:
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
        f"{took['prune']:.2f} s, floor {took['floor']:.2f} s; analyse {took['analyse']:.2f} (get_config "
        f"{took['get_config']:.2f}), plan {plan:.2f}, rebuild {rebuild:.2f} s"
    )
    return [row("pruning / floor", name, times, f"{times:.2f}", detail, 1.2) | {"seconds": took}]


def growth(repetitions: int) -> list[dict]:
    """Analysis of a large network and of chains, and the exponent of its growth over the last step."""

    def analysis(model: keras.Model) -> dict[str, float]:
        return medians({"analyse": lambda: kfp.analyze(model), "get_config": model.get_config}, repetitions)

    models = {LARGE: build(LARGE)} | {f"chain of {layers}": chain(layers) for layers in CHAINS}
    took = {name: analysis(model) for name, model in models.items()}
    rows = [
        row("analysis", name, t["analyse"], f"{t['analyse']:.2f} s", f"get_config {t['get_config']:.2f} s", None)
        | {"seconds": t}
        for name, t in took.items()
    ]
    few, many = (took[f"chain of {layers}"] for layers in CHAINS[-2:])
    grows = functools.partial(exponent, *CHAINS[-2:])
    all_of_it, config = grows(few["analyse"], many["analyse"]), grows(few["get_config"], many["get_config"])
    detail = f"get_config alone {config:.2f}"
    name = "chains of {} to {}".format(*CHAINS[-2:])
    return [*rows, row("growth exponent, analysis", name, all_of_it, f"{all_of_it:.2f}", detail, 1.2)]


def chain(layers: int) -> keras.Model:
    """Convolution, batch normalization, ReLU, and again."""
    x = inputs = keras.Input((8, 8, 8))
    kinds = [lambda: keras.layers.Conv2D(8, 1), keras.layers.BatchNormalization, keras.layers.ReLU]
    for number in range(layers):
        x = kinds[number % 3]()(x)
    return keras.Model(inputs, x)


def memory(repetitions: int) -> list[dict]:
    names = [*MODELS, "VGG16", LARGE]
    return [in_fresh_process(peak, name, verify) for name in names for verify in (False, True)]


def peak(name: str, verify: bool) -> dict:
    """Highest resident size while pruning minus that before, against 3 x weights + 1 GiB."""
    model = build(name)
    weights = sum(math.prod(w.shape) * 4 for w in model.weights)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    kfp.prune_model(model, "l2", 0.5, verify=verify, progress=False)
    added, limit = resident("VmHWM") - before, 3 * weights + GIB
    detail = f"verify={verify}; weights {weights / GIB:.2f} GiB, limit {limit / GIB:.2f} GiB"
    return row("peak memory", name, added / limit, f"{added / GIB:.2f} GiB", detail, 1.0) | {"bytes": added}


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def verification(repetitions: int) -> list[dict]:
    return [in_fresh_process(verified, name, repetitions) for name in [*MODELS, LARGE]]


def verified(name: str, repetitions: int) -> dict:
    model = build(name)
    small = kfp.prune_model(model, "l2", 0.5, verify=False, progress=False)
    batch = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    took = medians(
        {
            "with": lambda: kfp.prune_model(model, "l2", 0.5, verify=True, progress=False),
            "without": lambda: kfp.prune_model(model, "l2", 0.5, verify=False, progress=False),
            "calls": lambda: (model(batch), small(batch)),
        },
        repetitions,
    )
    adds = took["with"] - took["without"]
    detail = f"{adds:.2f} s; both called once {took['calls']:.2f} s"
    times = adds / took["calls"]
    return row("verification / calls", name, times, f"{times:.2f}", detail, 3.0) | {"seconds": took}


def backends(repetitions: int) -> list[dict]:
    there = [name for name, package in BACKENDS.items() if find_spec(package)]
    took: dict[str, list[dict]] = {name: [] for name in there}
    for _ in range(repetitions):
        for name in there:
            took[name].append(in_fresh_process(first_prunings, KERAS_BACKEND=name))
    rows = []
    for method, longer in LONGER.items():
        first = {name: statistics.median(run[method] for run in runs) for name, runs in took.items()}
        predict = {name: statistics.median(run["predict"] for run in runs) for name, runs in took.items()}
        for name in there[1:]:
            times = first[name] / first[there[0]]
            detail = (
                f"{first[name]:.1f} s, {there[0]} {first[there[0]]:.1f} s; a later `predict` "
                f"{predict[name] / predict[there[0]]:.1f} times as long"
            )
            rows.append(row(f"first `{method}` on {name}", "MobileNetV2", times, f"{times:.1f}", detail, longer))
    return rows


def first_prunings() -> dict[str, float]:
    """Seconds of the first pruning of this process, of the first with data, and of `predict` once it is compiled."""
    model, images = build("MobileNetV2"), np.random.default_rng(0).normal(size=(32, 224, 224, 3)).astype("float32")
    settings = {"verify": False, "progress": False}
    took = {
        "l2": seconds(lambda: kfp.prune_model(model, "l2", 0.5, **settings)),
        "energy": seconds(lambda: kfp.prune_model(model, "energy", 0.5, data=images, **settings)),
    }
    return took | medians({"predict": lambda: model.predict(images, verbose=0)}, 1)


def export(repetitions: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        functions = {
            operators: functools.partial(kfp.export_tflite, operator_chain(operators), Path(folder, "x.tflite"))
            for operators in OPERATORS
        }
        took = medians({o: functools.partial(f, overwrite=True) for o, f in functions.items()}, 1)
    rows = [row("export", f"{o} operators", t, f"{t:.1f} s", "", None) for o, t in took.items()]
    few, many = OPERATORS[0], OPERATORS[-1]
    grows = exponent(few, many, took[few], took[many])
    name = f"{few} to {many} operators"
    return [*rows, row("growth exponent, export", name, grows, f"{grows:.2f}", "", 1.2)]


def operator_chain(operators: int) -> keras.Model:
    x = inputs = keras.Input((8, 8, 8))
    for _ in range(operators):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, x)


def executors(repetitions: int) -> list[dict]:
    runs = [in_fresh_process(sensitivities, **ONE_THREAD) for _ in range(min(repetitions, 3))]
    one, two = (statistics.median(run[processes] for run in runs) for processes in (1, 2))
    detail = f"one thread each; {one:.0f} s alone, {two:.0f} s by two"
    return [row("two processes / one", "MobileNetV2, sensitivity", two / one, f"1 / {one / two:.2f}", detail, 1 / 1.7)]


def sensitivities() -> dict[int, float]:
    model, images = build("MobileNetV2"), np.random.default_rng(0).normal(size=(128, 224, 224, 3)).astype("float32")
    settings = {"metric": "error", "keep": (0.5,), "progress": False}

    def spread() -> None:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            kfp.measure_sensitivity(model, images, executor=pool, **settings)

    return {1: seconds(lambda: kfp.measure_sensitivity(model, images, **settings)), 2: seconds(spread)}


def markdown(rows: list[dict]) -> str:
    lines = ["| measurement | model | result | target | met | detail |", "|---|---|---:|---:|---|---|"]
    for r in rows:
        target = "" if r["target"] is None else f"<= {r['target']:.3g}"
        if r["measurement"] == "peak memory":
            target = "<= 3 x weights + 1 GiB"
        met = {True: "yes", False: "**no**", None: ""}[r["met"]]
        lines.append(f"| {r['measurement']} | {r['model']} | {r['result']} | {target} | {met} | {r['detail']} |")
    return "\n".join(lines) + "\n"


PARTS = {
    "ratios": ratios,
    "growth": growth,
    "memory": memory,
    "verification": verification,
    "backends": backends,
    "export": export,
    "executors": executors,
}

if __name__ == "__main__":
    main()
