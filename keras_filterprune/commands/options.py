"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from keras_filterprune.checks import check_number
from keras_filterprune.errors import InfeasibleBudgetError, InvalidValueError

# What `--json` prints, and what is shown otherwise.
Answer = tuple[Any, Sequence[RenderableType]]


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, and modules that it needs."""
    parser.add_argument("model", help=".keras file")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, which registers layers of yours (repeatable)",
    )


def read_model(options: argparse.Namespace) -> Any:
    """The model, after its modules; those of the folder that the command is called from are found, too, by name."""
    from keras_filterprune.files import load_keras

    # Last, and for these alone: nothing else that is imported is to be taken from there.
    sys.path.append(os.getcwd())
    try:
        _import(options.modules)
    finally:
        sys.path.remove(os.getcwd())
    return load_keras(options.model)


def _import(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        # A module may run anything.
        except Exception as error:
            raise InvalidValueError(
                f"--import is the name of a module that can be imported, such as my_layers. Received: {name}, which "
                f"raised {type(error).__name__}: {error}"
            ) from error


def add_output(parser: argparse.ArgumentParser, kind: str) -> None:
    """The file to write."""
    parser.add_argument("-o", "--output", required=True, help=f"{kind} file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def add_choice(parser: argparse.ArgumentParser, what: str) -> None:
    """Which layers are concerned, and what is random."""
    parser.add_argument("--include", action="append", metavar="GLOB", help=f"{what} these layers only (repeatable)")
    parser.add_argument("--exclude", action="append", metavar="GLOB", help="leave these layers whole (repeatable)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    parser.add_argument("--report", metavar="FILE", help="also write a report there, .html or .md")


def add_budgets(parser: argparse.ArgumentParser, filters: bool = True) -> argparse._MutuallyExclusiveGroup:
    """What may be spent, one of them."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--keep-macs", type=float, metavar="F", help="fraction of multiply-accumulates kept")
    group.add_argument("--keep-params", type=float, metavar="F", help="fraction of parameters kept")
    group.add_argument("--keep-latency", type=float, metavar="F", help="fraction of the latency kept")
    group.add_argument("--ms", type=float, metavar="MS", help="milliseconds that are left")
    if filters:
        group.add_argument("--keep-filters", type=float, metavar="F", help="fraction of every group's filters kept")
    parser.add_argument(
        "--latency-table",
        metavar="TABLE",
        help="a file of `keras-filterprune latency`, or a target such as arm64; without it, this computer is measured",
    )
    return group


def read_budget(options: argparse.Namespace, model: Any) -> Any:
    """The budget that was given, None where there is none."""
    from keras_filterprune.cost import FiltersBudget, MacsBudget, ParamsBudget
    from keras_filterprune.cost.base import check_fraction
    from keras_filterprune.latency import LatencyBudget

    kinds = {"keep_macs": MacsBudget, "keep_params": ParamsBudget, "keep_filters": FiltersBudget}
    for option, kind in kinds.items():
        if (keep := getattr(options, option, None)) is not None:
            _only_for_latency(options)
            return kind(keep=check_fraction(f"--{option.replace('_', '-')}", keep))
    if options.keep_latency is None and options.ms is None:
        _only_for_latency(options)
        return None
    if options.keep_latency is not None:
        check_fraction("--keep-latency", options.keep_latency)
    else:
        check_number("--ms", options.ms, "a number of milliseconds", above=0, error=InfeasibleBudgetError)
    return LatencyBudget(ms=options.ms, keep=options.keep_latency, table=_read_table(options.latency_table, model))


def _only_for_latency(options: argparse.Namespace) -> None:
    if options.latency_table is not None:
        raise InvalidValueError(
            f"--latency-table goes with --keep-latency or --ms. Received: --latency-table {options.latency_table}."
        )


def _read_table(path: str | None, model: Any) -> Any:
    """A table from a file, the name of a target, or what this computer takes."""
    from keras_filterprune.latency import LatencyTable
    from keras_filterprune.measuring import measure_latency

    if path is None:
        return measure_latency(model)
    return LatencyTable.load(path) if Path(path).suffix or Path(path).is_file() else path


def check_written(options: argparse.Namespace, *others: str | None) -> None:
    """All files can be written, and none replaces another; the model alone may be replaced, by the smaller one.

    Args:
        options: of the command line.
        others: what else is written, beside the output and the report.
    """
    from keras_filterprune.files import check_destination
    from keras_filterprune.report import check_report_path

    for path in filter(None, (options.output, *others)):
        check_destination(path, options.overwrite)
    if options.report:
        check_report_path(options.report, options.overwrite)
    files = [options.output, *others, options.report, options.data, options.latency_table]
    if os.path.realpath(options.output) != os.path.realpath(options.model):
        files.append(options.model)
    check_distinct(files)


def check_distinct(files: Sequence[str | None]) -> None:
    """No two names are of one file."""
    from tflite_bench.files import twice

    if found := twice(filter(None, files)):
        raise InvalidValueError(f"every file has a name of its own. Received: {found} for two of them.")
