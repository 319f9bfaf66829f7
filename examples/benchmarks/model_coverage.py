"""Open, prune, prove, save, load and export networks as they are written outside keras.applications.

    python examples/benchmarks/model_coverage.py [--models unet swin] [--kinds examples keras-hub kimm] [--out DIR]

Networks: those of the files `example_*.py` beside this one, subclassed and made of layers of layers, and small
backbones of keras-hub and of kimm where these are installed. All have random weights.

Reach is the share of multiply-accumulates that are spent in calls whose widths can fall. Both are counted without the
library's rules, see `counting.py`. The oracle zeroes the weights that make and read removed channels, and heads, in the
model before it is pruned, and compares outputs. Files are loaded in a process that has never seen the models.

Every finished row goes to model_coverage.json at once, so that an interrupted run continues where it stopped (rows with
errors are tried again); a crash of the process is a row. Ends with the table model_coverage.md.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from collection_networks import TOKENS, hub_networks, kimm_networks
from counting import call_macs, graph_macs
from rows import append, read

import keras_filterprune as kfp

TARGET, KEEP, SIDE, SAMPLES = 0.95, 0.5, 64, 4096
TOLERANCE = 1e-5  # of the oracle, relative to the largest output
COLUMNS = "model opened closed reach MACs groups approximate verified oracle loaded exported".split()


def networks() -> dict[str, dict]:
    """{kind: {name: makes the model}}."""
    import example_attention  # noqa: F401  (registers)
    import example_blocks  # noqa: F401
    import example_sequences  # noqa: F401
    import example_tables  # noqa: F401
    from example_networks import NETWORKS

    return {"examples": NETWORKS, "keras-hub": hub_networks(), "kimm": kimm_networks()}


def main() -> None:
    kinds = networks()
    names = [name for found in kinds.values() for name in found]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--kinds", nargs="+", choices=list(kinds), default=list(kinds))
    parser.add_argument("--again", action="store_true", help="also those that have a good row")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    wanted = options.models or [name for kind in options.kinds for name in kinds[kind]]
    options.out.mkdir(parents=True, exist_ok=True)
    path, files = options.out / "model_coverage.json", Path(tempfile.mkdtemp(prefix="model_coverage_"))
    done = set() if options.again else {r["model"] for r in read(path)["rows"] if "error" not in r}
    run([name for name in wanted if name not in done], path, files)
    load(path, files)
    (options.out / "model_coverage.md").write_text(markdown(read(path)["rows"]))
    print(markdown(read(path)["rows"]))


def pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def run(names: list[str], path: Path, files: Path) -> None:
    """A row for every model; the process is replaced where a model takes it down."""
    workers = pool()
    for name in names:
        try:
            workers.submit(cover, name, path, files).result()
        except BrokenProcessPool:
            append({"model": name, "error": "crash: the process died"}, path, "model")
            workers = pool()
    workers.shutdown()


def load(path: Path, files: Path) -> None:
    """Load what was saved in a fresh process, and note by how much predictions differ."""
    with pool() as workers:
        for row in read(path)["rows"]:
            file = files / f"{slug(row['model'])}.keras"
            if file.exists():
                loaded = workers.submit(difference_after_loading, file).result()
                append(row | {"loaded": loaded}, path, "model")


def difference_after_loading(file: Path) -> float | str:
    batch = np.load(file.with_suffix(".npz"))
    inputs = [batch[f"x{n}"] for n in range(sum(key.startswith("x") for key in batch))]
    expected = [batch[f"y{n}"] for n in range(len(batch) - len(inputs))]
    try:
        return difference(expected, outputs(keras.models.load_model(file), inputs))
    except Exception as error:  # noqa: BLE001  (a failure is a result)
        lacking = re.search(r"Could not locate (class|function) '([^']+)'", str(error))
        return f"needs {lacking[1]} {lacking[2]}" if lacking else first_line(error)


# -------------------------------------------------------------------------------------------------------- one model


def cover(name: str, path: Path, files: Path) -> None:
    """The row of one model, as far as it comes."""
    row = {"model": name}
    for stage in (build, analyse, prune, oracle, save, export):
        try:
            row |= stage(name, row, files)
        except Exception as error:  # noqa: BLE001  (a failure is a result)
            kind = "refused" if isinstance(error, kfp.errors.FilterPruneError) else "crash"
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = "" if kind == "refused" else f" ({Path(where.filename).name}:{where.lineno})"
            row["error"] = f"{stage.__name__}, {kind}: {first_line(error)}{at}"
            break
    append({key: value for key, value in row.items() if not key.startswith("_")}, path, "model")
    keras.utils.clear_session()


def build(name: str, row: dict, files: Path) -> dict:
    keras.utils.set_random_seed(0)
    make = next(found[name] for found in networks().values() if name in found)
    model = make()
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" in weight.path or "float" not in weight.dtype:
            continue
        if weight.name in ("gamma", "scale", "moving_variance"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(generator.normal(0.0, 0.1, weight.shape))
    return {"_model": model}


def analyse(name: str, row: dict, files: Path) -> dict:
    """What is opened, what stays closed and why, and how far pruning reaches."""
    model = row["_model"]
    graph = kfp.analyze(model)
    opened = "as it is" if graph.model is model else "opened"
    if any(call.closed for call in graph.view.calls) and any(None in t.shape[1:] for t in graph.model.inputs):
        # What the reasons say would help: sides that are known.
        shapes = keras.tree.map_structure(lambda t: (None, *known(t).shape[1:]), graph.model.input)
        graph, opened = kfp.analyze(kfp.open_model(model, shapes)), "at a fixed size"
    specs = [known(tensor) for tensor in graph.model.inputs]
    total, reached, seen = graph_macs(model, specs, graph.model.input), *reach(graph, specs)
    return {
        "_graph": graph,
        "opened": opened,
        "closed": {f"{c.path} ({type(c.op).__name__})": c.closed for c in graph.view.calls if c.closed},
        "reach": min(1.0, reached / total),
        "counted": seen / total,
        "macs": total,
        "groups": len(graph.groups),
        "approximate": sum(bool(group.approximate) for group in graph.groups),
        "parameters": model.count_params(),
        "pinned": pinned(graph),
    }


def pinned(graph) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for pin in graph.pinned:
        if not pin.reason.startswith("is model"):
            reasons[pin.reason] = reasons.get(pin.reason, 0) + pin.channels
    return reasons


def known(tensor):
    """A spec of an input with every side known, for a batch of one."""
    import tensorflow as tf

    sound = "float" in tensor.dtype and (len(tensor.shape) == 2 or tensor.shape[1:] == (None, 1))
    side = SAMPLES if sound else SIDE if len(tensor.shape) > 2 else TOKENS
    return tf.TensorSpec((1, *(n or side for n in tensor.shape[1:])), tensor.dtype)


def spec_of(op, args: tuple, kwargs: dict):
    """What an operation gives for specs; Keras leaves sides of `EinsumDense` open that the layer was not told of."""
    made = op.compute_output_spec(*args, **kwargs)
    if not isinstance(op, keras.layers.EinsumDense) or "..." in op.equation:
        return made
    read, written = op.equation.split(",")[0], op.equation.split("->")[1]
    sides = dict(zip(read, args[0].shape, strict=True))
    return keras.KerasTensor([n or sides[letter] for letter, n in zip(written, made.shape, strict=True)], made.dtype)


def reach(graph, specs: list) -> tuple[int, int]:
    """Multiply-accumulates of calls whose widths can fall, and of all calls that a graph of layers shows."""
    free = np.zeros(graph.unit_of_id.max(initial=-1) + 1, bool)
    for group in graph.groups:
        free[group.units] = True
    fall = {bind.layer for bind in graph.binds if free[graph.unit_of_id[bind.ids]].any()}
    view, values, reached, seen = graph.view, {}, 0, 0
    for number, (call, (inputs, made)) in enumerate(zip(view.calls, graph.tensors, strict=True)):
        if not call.inputs:
            values[number] = [keras.KerasTensor(specs[number].shape, dtype=call.op.dtype)]
            continue
        args, kwargs = keras.tree.map_structure(
            lambda x: values[x.call][x.index] if isinstance(x, kfp.handlers.TensorRef) else x, (call.args, call.kwargs)
        )
        values[number] = keras.tree.flatten(spec_of(call.op, args, kwargs))
        given = args if type(call.op).__name__ == "Einsum" else [values[r.call][r.index] for r in call.inputs]
        shapes = [tuple(x.shape) for x in given]
        macs = call_macs(call.op, shapes, tuple(values[number][0].shape))
        seen += macs
        tracked = [x for x in (*inputs, *made) if x.tracked]
        if call.path in fall or any(free[graph.unit_of_id[x.ids]].any() for x in tracked):
            reached += macs
    return reached, seen


def prune(name: str, row: dict, files: Path) -> dict:
    small, report = kfp.prune_model(
        row["_graph"].model, "l2", kfp.FiltersBudget(keep=KEEP), return_report=True, progress=False
    )
    kept = small.count_params() / row["parameters"]
    return {"_small": small, "verified": report.verification, "parameters_kept": kept, "notes": report.notes}


def oracle(name: str, row: dict, files: Path) -> dict:
    """Prune what is exact alone; compare with zeros in the weights that read it, written into the model itself.

    Sums over channels are left out: one that a softmax over positions made of zeros is no zero.
    """
    graph = row["_graph"]
    added = added_up(graph)
    left_out = [g for g in graph.groups if g.approximate or np.isin(g.units, added).any()]
    makers = {layer for group in left_out for layer in group.producers}
    exact = [g for g in graph.groups if not makers & set(g.producers)]
    if not exact:
        return {"oracle": None}
    budget = kfp.FiltersBudget(keep=KEEP)
    chosen = {"include": sorted({layer for group in exact for layer in group.producers})}
    plan = kfp.plan_pruning(graph.model, "random", budget, progress=False, **chosen)
    small = kfp.apply_plan(graph.model, plan, compensate="none", progress=False)
    dead = np.zeros(graph.unit_of_id.max(initial=-1) + 1, bool)
    for entry in plan.groups:
        units = graph.by_name[entry["name"]].units
        dead[np.delete(units, entry["kept"])] = True
    layers = {call.path: call.op for call in graph.view.calls if call.inputs}
    batch = random_batch(graph.model)
    for bind in graph.binds:
        # Channels that end in a product of tensors are read by no weight: those that make them are zeroed as well.
        gone = dead[graph.unit_of_id[bind.ids]]
        if gone.any() and "variance" not in bind.weight:
            zero(weights_of(layers[bind.layer])[bind.weight], bind.axis, gone)
    found = difference(outputs(graph.model, batch), outputs(small, batch))
    result = {"oracle": found}
    return result | ({"error": f"oracle: differs by {found:.1e}"} if not found <= TOLERANCE else {})


def added_up(graph) -> np.ndarray:
    """Units that `ops.sum` adds up."""
    calls = zip(graph.view.calls, graph.tensors, strict=True)
    sums = [(x, y) for call, ((*read,), (y, *_)) in calls for x in read if type(call.op).__name__ == "Sum"]
    return graph.unit_of_id[np.concatenate([np.zeros(0, int), *(x.ids for x, y in sums if not y.tracked)])]


def weights_of(layer) -> dict:
    """{name: weight} as binds name them."""
    return kfp.handlers.Statistics(layer, axis=-1, epsilon=0.0).weights


def zero(variable, axis: int, gone: np.ndarray) -> None:
    value = np.moveaxis(np.array(keras.ops.convert_to_numpy(variable.value)), axis, 0)
    value[gone] = 0
    variable.assign(np.moveaxis(value, 0, axis))


def save(name: str, row: dict, files: Path) -> dict:
    """What the report says cannot be saved is not tried."""
    small, said = row["_small"], [note for note in row["notes"] if note.startswith("Keras cannot save")]
    if said:
        return {"loaded": said[0]}
    batch = random_batch(small)
    small.save(files / f"{slug(name)}.keras")
    made = {f"y{n}": y for n, y in enumerate(outputs(small, batch))}
    np.savez(files / f"{slug(name)}.npz", **{f"x{n}": x for n, x in enumerate(batch)}, **made)
    return {}


def export(name: str, row: dict, files: Path) -> dict:
    if any(None in tensor.shape[1:] for tensor in row["_small"].inputs):
        return {"exported": "open sizes"}
    try:
        kfp.export_tflite(row["_small"], files / f"{slug(name)}.tflite")
        return {"exported": "yes"}
    except kfp.errors.FilterPruneError as error:
        return {"exported": first_line(error)}


def random_batch(model: keras.Model, count: int = 3) -> list[np.ndarray]:
    generator, sizes = np.random.default_rng(1), [tuple(known(tensor).shape[1:]) for tensor in model.inputs]
    return [
        generator.normal(size=(count, *size)).astype(tensor.dtype)
        if "float" in tensor.dtype
        else generator.integers(0, 2, (count, *size)).astype(tensor.dtype)
        for tensor, size in zip(model.inputs, sizes, strict=True)
    ]


def outputs(model: keras.Model, batch: list[np.ndarray]) -> list[np.ndarray]:
    structure = keras.tree.pack_sequence_as(model.input, batch)
    with keras.StatelessScope():
        return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(structure, training=False))]


def difference(expected: list[np.ndarray], received: list[np.ndarray]) -> float:
    """The largest, relative to the largest value of the output."""
    worst = 0.0
    for a, b in zip(expected, received, strict=True):
        if a.shape != b.shape:
            return float("inf")
        worst = max(worst, float(np.abs(a.astype(float) - b).max() / max(np.abs(a).max(), 1e-12)))
    return worst


# ------------------------------------------------------------------------------------------------------------ table


def slug(name: str) -> str:
    return re.sub(r"\W", "_", name)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:400]


def markdown(rows: list[dict]) -> str:
    """One line per model, then why layers stay closed, what fails, and the share of models that are reached."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += [line(row) for row in rows]
    failures = [f"- **{row['model']}**: {row['error']}" for row in rows if "error" in row]
    closed = [f"- {row['model']}, {layer}: {why}" for row in rows for layer, why in row.get("closed", {}).items()]
    lines += ["", "Failures:", "", *failures] if failures else []
    lines += ["", "Layers that stay closed:", "", *closed] if closed else []
    tried = [row for row in rows if not row.get("error", "").startswith("build")]
    reached = sum(row.get("reach", 0.0) >= TARGET and "error" not in row for row in tried)
    crashes = sum("crash" in row.get("error", "") for row in tried)
    share = f"{reached} of {len(tried)} models ({100 * reached / max(1, len(tried)):.0f} %)"
    return "\n".join([*lines, "", f"At least {TARGET:.2f} of the MACs reached: {share}; {crashes} crashes."]) + "\n"


def line(row: dict) -> str:
    def number(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None else value if isinstance(value, str) else format(value, form)

    cells = [row["model"], row.get("opened", "failed"), str(len(row.get("closed", ()))), number("reach", ".3f")]
    cells += [number("macs", ","), number("groups", "d"), number("approximate", "d"), number("verified", ".1e")]
    cells += [number("oracle", ".1e"), number("loaded", ".1e"), number("exported", "")]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
