"""Command line: `python -m keras_filterprune scan|prune|export|bench|demo`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from keras_filterprune.checks import import_keras
from keras_filterprune.errors import CalibrationDataError, FilterPruneError, MeasurementError

_OUT = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; those of this process by default.

    Returns:
        Exit code: 0; 2 with one line on stderr for bad input; 130 when interrupted.
    """
    # TensorFlow reads this when it is first imported; its start-up lines would drown the answer.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    try:
        if options.run is not _bench:
            import_keras()
        options.run(options)
    except (FilterPruneError, OSError) as error:
        sys.stderr.write(f"keras-filterprune: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("keras-filterprune: interrupted; no file was left half-written\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keras-filterprune", description="Structured pruning for Keras 3.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON instead of tables")
        return sub

    scan = command("scan", _scan, "show what can be pruned, what cannot and why, and where the cost is")
    scan.add_argument("model", help=".keras file")

    prune = command("prune", _prune, "write a model with fewer filters")
    prune.add_argument("model", help=".keras file")
    prune.add_argument("-o", "--output", required=True, help=".keras file to write")
    prune.add_argument("--method", default="l2", help="a method's name (%(default)s)")
    budget = prune.add_mutually_exclusive_group()
    budget.add_argument("--keep-macs", type=float, metavar="F", help="fraction of multiply-accumulates kept (0.5)")
    budget.add_argument("--keep-params", type=float, metavar="F", help="fraction of parameters kept")
    budget.add_argument("--keep-filters", type=float, metavar="F", help="fraction of the filters of every group kept")
    prune.add_argument("--include", action="append", metavar="GLOB", help="prune these layers only (repeatable)")
    prune.add_argument("--exclude", action="append", metavar="GLOB", help="leave these layers whole (repeatable)")
    prune.add_argument("--min-filters", type=int, default=1, help="fewest units of a group (%(default)s)")
    prune.add_argument(
        "--channel-multiple",
        type=_number_or_name,
        default=1,
        metavar="N",
        help="kept counts are multiples of it, or fit a target such as arm64 (%(default)s)",
    )
    prune.add_argument("--data", metavar="NPY", help="calibration inputs, an .npy array")
    prune.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    prune.add_argument("--plan", metavar="JSON", help="also write the pruning plan there")
    prune.add_argument("--report", metavar="FILE", help="also write a report there, .html or .md")
    prune.add_argument("--overwrite", action="store_true", help="replace existing files")

    export = command("export", _export, "write a .tflite file and check it against the model")
    export.add_argument("model", help=".keras file")
    export.add_argument("-o", "--output", required=True, help=".tflite file to write")
    export.add_argument(
        "--quantize",
        choices=("float32", "float16", "dynamic", "int8", "int16x8"),
        default="float32",
        help="numbers of weights and activations (%(default)s)",
    )
    export.add_argument("--data", metavar="NPY", help="calibration inputs, an .npy array; needed for int8 and int16x8")
    export.add_argument(
        "--keep-float",
        action="append",
        default=[],
        metavar="NAME",
        help="operator, such as HARD_SWISH, or layer that int8 and int16x8 leave in float32 (repeatable)",
    )
    export.add_argument("--integer-io", action="store_true", help="integer inputs and outputs for int8 and int16x8")
    export.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open instead of 1")
    export.add_argument("--tolerance", type=float, help="largest accepted relative difference from Keras (per mode)")
    export.add_argument("--overwrite", action="store_true", help="replace an existing file")

    bench = command("bench", _bench, "time .tflite files against the first one, interleaved")
    bench.add_argument("files", nargs="+", help=".tflite files")
    bench.add_argument("--threads", type=int, default=1, help="threads of the interpreter (%(default)s)")
    bench.add_argument("--runs", type=int, default=100, help="timed runs of each file (%(default)s)")

    demo = command("demo", _demo, "train, prune, fine-tune, export and benchmark a small network, offline")
    demo.add_argument("--out", default="kfp-demo", help="folder for the results (./%(default)s)")
    return parser


def _number_or_name(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _scan(options: argparse.Namespace) -> None:
    from keras_filterprune.analysis import analyze
    from keras_filterprune.files import load_keras
    from keras_filterprune.report import graph_dict, graph_tables

    graph = analyze(load_keras(options.model))
    if options.json:
        _print_json(graph_dict(graph))
    else:
        _OUT.print(graph_tables(graph))


def _prune(options: argparse.Namespace) -> None:
    from keras_filterprune.cost import FiltersBudget, MacsBudget, ParamsBudget
    from keras_filterprune.files import check_destination, load_keras, save_keras
    from keras_filterprune.pruning import prune_model
    from keras_filterprune.report import check_report_path

    for path in filter(None, (options.output, options.plan)):
        check_destination(path, options.overwrite)
    if options.report:
        check_report_path(options.report, options.overwrite)
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
        seed=options.seed,
        return_report=True,
    )
    save_keras(small, options.output, options.overwrite)
    if options.plan:
        report.plan.save(options.plan)
    if options.report:
        report.save(options.report)
    if options.json:
        _print_json(report.to_dict())
    else:
        _OUT.print(report.table())
        _OUT.print(report.summary())


def _export(options: argparse.Namespace) -> None:
    from keras_filterprune.export import export_tflite
    from keras_filterprune.files import load_keras

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
    if options.json:
        _print_json(result.to_dict())
    else:
        _OUT.print(result.summary(), markup=False, highlight=False)


def _bench(options: argparse.Namespace) -> None:
    from tflite_bench import BenchError, benchmark

    try:
        runs = options.runs
        report = benchmark(options.files, threads=options.threads, runs=runs, rounds=min(5, runs), progress=True)
    except BenchError as error:
        raise MeasurementError(str(error)) from error
    if options.json:
        _print_json(report.to_dict())
    else:
        _OUT.print(report.table())


def _demo(options: argparse.Namespace) -> None:
    from keras_filterprune.demo import run_demo

    report, table = run_demo(Path(options.out))
    if options.json:
        _print_json(report)
    else:
        _OUT.print(table)
        _OUT.print(f"files: {', '.join(sorted(p.name for p in Path(options.out).iterdir()))} in {options.out}/")


def _array(path: str | None):
    import numpy as np

    if path is None:
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationDataError(
            f"cannot read calibration inputs from {path}: {error}. Expected an .npy array."
        ) from error


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
