"""Prune every model of keras.applications, prove the surgery, save, load and compare.

    python examples/benchmarks/zoo_coverage.py [--models ResNet50 VGG16] [--budgets 0.5] [--out DIR]

Random weights, batch statistics and biases (so that no channel equals another by accident) at 96x96, method l2.
Each model runs in a process of its own; every finished row goes to zoo_coverage.json at once, so that an interrupted
run continues where it stopped (failed rows are tried again). Ends with the table zoo_coverage.md.
"""

import argparse
import inspect
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rows import append, read

import keras_filterprune as kfp

KEYS = "model", "budget"
KILLED = "the process was killed (out of memory?)"
BUDGETS = [0.75, 0.5, 0.25]
SIZES = [96, 224, None]  # the first that the constructor accepts; None is its default
IS_OUTPUT = "is model output"
COLUMNS = [
    "model",
    "size",
    "layers",
    "hidden filters",
    "reachable",
    "groups",
    "approximate",
    "MACs kept",
    "worst error",
    "after loading",
    "seconds",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=constructors())
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="fraction of the MACs to keep")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    unknown = set(options.models) - set(constructors())
    if unknown:
        parser.error(f"keras.applications has no {', '.join(sorted(unknown))}; it has {', '.join(constructors())}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "zoo_coverage.json"
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(options.models))
        for name in options.models:
            bar.update(task, description=name)
            run(name, options.budgets, path)
            bar.advance(task)
    table = markdown(read(path)["rows"])
    print(table)
    (options.out / "zoo_coverage.md").write_text(table)


def constructors() -> list[str]:
    """Names of the model constructors; the rest of the namespace is modules."""
    return sorted(name for name, value in vars(keras.applications).items() if inspect.isfunction(value))


def run(name: str, budgets: list[float], path: Path) -> None:
    """Prune one model to the budgets that have no good row yet, in a fresh process."""

    def missing() -> list[float]:
        done = {r["budget"] for r in read(path)["rows"] if r["model"] == name and "error" not in r}
        return [budget for budget in budgets if budget not in done]

    if not missing():
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(cover, name, missing(), path).result()
        except BrokenProcessPool:
            # The first budget without any row is the one that was being worked on.
            for budget in missing()[:1]:
                append({"model": name, "budget": budget, "error": KILLED}, path, *KEYS)


def cover(name: str, budgets: list[float], path: Path) -> None:
    """All budgets of one model; every row is written as soon as it is known."""
    start = time.perf_counter()
    try:
        model = build(name)
        common = {"model": name, **describe(model), "seconds_to_build": round(time.perf_counter() - start, 2)}
    except Exception as error:  # noqa: BLE001  (a failure is a result)
        for budget in budgets:
            append({"model": name, "budget": budget, "error": f"{type(error).__name__}: {error}"}, path, *KEYS)
        return
    for budget in budgets:
        try:
            result = prune(model, budget)
        except Exception as error:  # noqa: BLE001  (a failure is a result)
            result = {"error": f"{type(error).__name__}: {error}"}
        append({**common, "budget": budget, **result}, path, *KEYS)


def build(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    for size in SIZES:
        shape = None if size is None else (size, size, 3)
        try:
            return randomise(getattr(keras.applications, name)(weights=None, include_top=True, input_shape=shape))
        except ValueError:
            if size is None:
                raise


def randomise(model: keras.Model) -> keras.Model:
    """Random biases and normalization parameters; statistics around those of a random batch.

    Statistics drawn at random alone let signals fade or explode over a hundred layers, and hide what surgery does.
    """
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "gamma" or weight.name.startswith("variable"):  # LayerScale does not name its factors
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias"):
            weight.assign(generator.normal(0.0, 0.1, weight.shape))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(generator.normal(size=(8, *model.inputs[0].shape[1:])).astype("float32"), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        deviation = np.sqrt(keras.ops.convert_to_numpy(layer.moving_variance))
        layer.moving_mean.assign_add(deviation * generator.normal(0.0, 0.1, deviation.shape))
        layer.moving_variance.assign(deviation**2 * generator.uniform(0.5, 1.5, deviation.shape) + 1e-3)
    return model


def describe(model: keras.Model) -> dict:
    """What the analysis finds, independent of any budget."""
    graph = kfp.analyze(model)
    filters = sum(len(bind.ids) for bind in graph.binds if bind.role == "filter")
    outputs = sum(pin.channels for pin in graph.pinned if pin.reason.startswith(IS_OUTPUT))
    reasons = {}
    for pin in graph.pinned:
        if not pin.reason.startswith(IS_OUTPUT):
            reasons[pin.reason] = reasons.get(pin.reason, 0) + pin.channels
    return {
        "size": model.inputs[0].shape[1],
        "layers": len(model.layers),
        "parameters": model.count_params(),
        "hidden_filters": filters - outputs,
        "reachable": graph.filters / (filters - outputs),
        "pinned": reasons,
        "groups": len(graph.groups),
        "approximate_groups": sum(bool(group.approximate) for group in graph.groups),
    }


def prune(model: keras.Model, budget: float) -> dict:
    """One row: plan, rebuild and verify; save, load and compare."""
    start = time.perf_counter()
    plan = kfp.plan_pruning(model, "l2", budget)
    planned = time.perf_counter()
    small, report = kfp.apply_plan(model, plan, return_report=True, progress=False)
    applied = time.perf_counter()
    batch = np.random.default_rng(1).normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
    expected = keras.ops.convert_to_numpy(small(batch, training=False))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.keras"
        small.save(file)
        received = keras.ops.convert_to_numpy(keras.models.load_model(file)(batch, training=False))
    (macs, macs_after), (parameters, parameters_after) = plan.cost["macs"], plan.cost["params"]
    difference = float(np.abs(expected - received).max() / np.abs(expected).max())
    row = {
        "macs_kept": macs_after / macs,
        "parameters_kept": parameters_after / parameters,
        "verification": report.verification,
        "difference_after_loading": difference,
        "difference_between_samples": float(np.abs(expected[0] - expected[1]).max() / np.abs(expected).max()),
        "seconds": round(time.perf_counter() - start, 2),
        "seconds_to_plan": round(planned - start, 2),
        "seconds_to_apply_and_verify": round(applied - planned, 2),
        "notes": report.notes,
    }
    if difference > 1e-6:
        row["error"] = f"predictions change by {difference:.1e} when the model is saved and loaded"
    elif row["macs_kept"] > budget:
        row["error"] = f"the budget {budget} is exceeded"
    return row


def markdown(rows: list[dict]) -> str:
    """One line per model, the failures by name, and the share of models that pass per budget."""
    budgets = sorted({r["budget"] for r in rows}, reverse=True)
    good = {(r["model"], r["budget"]): r for r in rows if "error" not in r}
    heading = ", ".join(f"{budget:g}" for budget in budgets)
    lines = ["| " + " | ".join(COLUMNS).replace("MACs kept", f"MACs kept at {heading}") + " |"]
    lines.append("|---" + "|---:" * (len(COLUMNS) - 1) + "|")
    for model in sorted({r["model"] for r in rows}):
        mine = [good.get((model, budget)) for budget in budgets]
        lines.append(line(model, mine))
    failures = [f"- **{r['model']}, {r['budget']:g}**: {r['error']}" for r in rows if "error" in r]
    lines += ["", *failures] if failures else []
    total = len(constructors())
    counts = [f"{sum(b == budget for _, b in good)}/{total} at {budget:g}" for budget in budgets]
    return "\n".join([*lines, "", f"Pruned, verified, saved and loaded: {', '.join(counts)}."]) + "\n"


def line(model: str, rows: list[dict | None]) -> str:
    """The table line of one model."""
    known = [r for r in rows if r]
    if not known:
        return f"| {model} |" + " |" * (len(COLUMNS) - 1)
    first = known[0]
    cells = [
        model,
        str(first["size"]),
        str(first["layers"]),
        f"{first['hidden_filters']:,}",
        f"{100 * first['reachable']:.1f} %",
        str(first["groups"]),
        str(first["approximate_groups"]),
        ", ".join(f"{100 * r['macs_kept']:.2f} %" if r else "failed" for r in rows),
        f"{max(r['verification'] for r in known):.1e}",
        f"{max(r['difference_after_loading'] for r in known):.1e}",
        f"{sum(r['seconds'] for r in known):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
