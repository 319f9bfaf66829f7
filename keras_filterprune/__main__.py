"""Command line: `python -m keras_filterprune scan|prune|export|bench|demo`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, RenderableType

from keras_filterprune.checks import import_keras
from keras_filterprune.errors import CalibrationDataError, FilterPruneError, InvalidValueError, MeasurementError
from keras_filterprune.quiet import quiet
from tflite_bench.command import printable

# What `--json` prints, and what is shown otherwise.
Answer = tuple[Any, Sequence[RenderableType]]


class Command(NamedTuple):
    """One command: what it is for, which options it has, and what it does with them."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Answer]


_OUT = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; without arguments, show what there is to be done.

    Args:
        arguments: the words after the program's name (None: those of this process).

    Returns:
        Exit code: 0; 2 with one line on stderr for bad input; 130 when interrupted.
    """
    printable()
    words = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    options = parser.parse_args(words)
    try:
        if options.run is not _bench:
            _start_keras()
        content, shown = options.run(options)
    except (FilterPruneError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; no file was left half-written\n")
        return 130
    if options.json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
        return 0
    for item in shown:
        if isinstance(item, str):
            # A sentence is one line, however long, and names in it may hold brackets.
            _OUT.print(item, markup=False, highlight=False, soft_wrap=True)
        else:
            _OUT.print(item)
    return 0


def _start_keras() -> None:
    """Import Keras without TensorFlow's start-up lines, which would drown the answer; some heed no setting."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet():
        import_keras()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keras-filterprune", description="Structured pruning for Keras 3.")
    version = metadata.version("keras-filterprune")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.set_defaults(run=command.run)
        sub.add_argument("--json", action="store_true", help="print JSON instead of tables")
        command.add_options(sub)
    return parser


# --------------------------------------------------------------------------------------------------------------- scan


def _scan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=".keras file")


def _scan(options: argparse.Namespace) -> Answer:
    from keras_filterprune.analysis import analyze
    from keras_filterprune.files import load_keras
    from keras_filterprune.report import graph_dict, graph_tables

    graph = analyze(load_keras(options.model))
    return graph_dict(graph), [graph_tables(graph)]


# -------------------------------------------------------------------------------------------------------------- prune


def _prune_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=".keras file")
    parser.add_argument("-o", "--output", required=True, help=".keras file to write")
    parser.add_argument("--method", default="auto", help="a method's name (%(default)s)")
    parser.add_argument("--seconds", type=float, help="the most that recovery may train for (120)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--keep-macs", type=float, metavar="F", help="fraction of multiply-accumulates kept (0.5)")
    budget.add_argument("--keep-params", type=float, metavar="F", help="fraction of parameters kept")
    budget.add_argument("--keep-filters", type=float, metavar="F", help="fraction of the filters of every group kept")
    parser.add_argument("--include", action="append", metavar="GLOB", help="prune these layers only (repeatable)")
    parser.add_argument("--exclude", action="append", metavar="GLOB", help="leave these layers whole (repeatable)")
    parser.add_argument("--min-filters", type=int, default=1, help="fewest units of a group (%(default)s)")
    parser.add_argument(
        "--channel-multiple",
        type=_number_or_name,
        default=1,
        metavar="N",
        help="kept counts are multiples of it, or fit a target such as arm64 (%(default)s)",
    )
    parser.add_argument("--data", metavar="NPY", help="calibration inputs, an .npy array")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    parser.add_argument("--plan", metavar="JSON", help="also write the pruning plan there")
    parser.add_argument("--report", metavar="FILE", help="also write a report there, .html or .md")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _number_or_name(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _prune(options: argparse.Namespace) -> Answer:
    from keras_filterprune.cost import Budget, FiltersBudget, MacsBudget, ParamsBudget
    from keras_filterprune.files import load_keras, save_keras
    from keras_filterprune.pruning import prune_model

    _check_files(options)
    budget: Budget
    if options.keep_params is not None:
        budget = ParamsBudget(keep=options.keep_params)
    elif options.keep_filters is not None:
        budget = FiltersBudget(keep=options.keep_filters)
    else:
        budget = MacsBudget(keep=0.5 if options.keep_macs is None else options.keep_macs)
    small, report = prune_model(
        load_keras(options.model),
        options.method,
        budget,
        data=_array(options.data),
        include=options.include,
        exclude=options.exclude,
        min_filters=options.min_filters,
        channel_multiple=options.channel_multiple,
        seconds=options.seconds,
        seed=options.seed,
        return_report=True,
    )
    save_keras(small, options.output, options.overwrite)
    if options.plan:
        report.plan.save(options.plan)
    if options.report:
        report.save(options.report)
    return report.to_dict(), [report.table(), report.summary()]


def _check_files(options: argparse.Namespace) -> None:
    """All files can be written, and none replaces another; the model alone may be replaced, by the smaller one."""
    from keras_filterprune.files import check_destination
    from keras_filterprune.report import check_report_path

    for path in filter(None, (options.output, options.plan)):
        check_destination(path, options.overwrite)
    if options.report:
        check_report_path(options.report, options.overwrite)
    files = [options.output, options.plan, options.report, options.data]
    if os.path.realpath(options.output) != os.path.realpath(options.model):
        files.append(options.model)
    _check_distinct(files)


def _check_distinct(files: Sequence[str | None]) -> None:
    from tflite_bench.files import twice

    if found := twice(filter(None, files)):
        raise InvalidValueError(f"every file has a name of its own. Received: {found} for two of them.")


# ------------------------------------------------------------------------------------------------------------- export


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=".keras file")
    parser.add_argument("-o", "--output", required=True, help=".tflite file to write")
    parser.add_argument(
        "--quantize",
        choices=("float32", "float16", "dynamic", "int8", "int16x8"),
        default="float32",
        help="numbers of weights and activations (%(default)s)",
    )
    parser.add_argument("--data", metavar="NPY", help="calibration inputs, an .npy array; needed for int8 and int16x8")
    parser.add_argument(
        "--keep-float",
        action="append",
        default=[],
        metavar="NAME",
        help="operator, such as HARD_SWISH, or layer that int8 and int16x8 leave in float32 (repeatable)",
    )
    parser.add_argument("--integer-io", action="store_true", help="integer inputs and outputs for int8 and int16x8")
    parser.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open instead of 1")
    parser.add_argument("--tolerance", type=float, help="largest accepted relative difference from Keras (per mode)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _export(options: argparse.Namespace) -> Answer:
    from keras_filterprune.export import export_tflite
    from keras_filterprune.files import load_keras

    _check_distinct([options.model, options.data, options.output])
    result = export_tflite(
        load_keras(options.model),
        options.output,
        quantize=options.quantize,
        data=_array(options.data),
        keep_float=options.keep_float,
        integer_io=options.integer_io,
        dynamic_batch=options.dynamic_batch,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    return result.to_dict(), [result.summary()]


# ---------------------------------------------------------------------------------------------------- bench, and demo


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help=".tflite files")
    parser.add_argument("--threads", type=int, default=1, help="threads of the interpreter (%(default)s)")
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each file (%(default)s)")


def _bench(options: argparse.Namespace) -> Answer:
    from tflite_bench import BenchError, benchmark

    try:
        runs = options.runs
        report = benchmark(options.files, threads=options.threads, runs=runs, rounds=min(5, runs), progress=True)
    except BenchError as error:
        raise MeasurementError(str(error)) from error
    return report.to_dict(), [report.table()]


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="kfp-demo", help="folder for the results (./%(default)s)")


def _demo(options: argparse.Namespace) -> Answer:
    from keras_filterprune.demo import run_demo

    report, table = run_demo(Path(options.out))
    files = ", ".join(sorted(path.name for path in Path(options.out).iterdir()))
    return report, [table, f"files: {files} in {options.out}/"]


def _array(path: str | None) -> Any:
    import numpy as np

    if path is None:
        return None
    try:
        array = np.load(path, allow_pickle=False)
    # A damaged header makes NumPy raise almost anything.
    except Exception as error:
        raise CalibrationDataError(
            f"cannot read calibration inputs from {path}: {error}. Expected an .npy array."
        ) from error
    if not isinstance(array, np.ndarray):
        raise CalibrationDataError(f"cannot read calibration inputs from {path}: an archive. Expected an .npy array.")
    return array


_COMMANDS = {
    "scan": Command("show what can be pruned, what cannot and why, and where the cost is", _scan_options, _scan),
    "prune": Command("write a model with fewer filters", _prune_options, _prune),
    "export": Command("write a .tflite file and check it against the model", _export_options, _export),
    "bench": Command("time .tflite files against the first one, interleaved", _bench_options, _bench),
    "demo": Command("train, prune, fine-tune, export and benchmark a small network, offline", _demo_options, _demo),
}

if __name__ == "__main__":
    sys.exit(main())
