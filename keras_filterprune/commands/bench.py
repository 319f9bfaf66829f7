"""`keras-filterprune bench`."""

from __future__ import annotations

import argparse

from keras_filterprune.commands.options import Answer
from keras_filterprune.errors import MeasurementError

HELP = "time .tflite files against the first one, interleaved"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The few of `tflite_bench` that matter most."""
    parser.add_argument("files", nargs="+", help=".tflite files")
    parser.add_argument("--threads", type=int, default=1, help="threads of the interpreter (%(default)s)")
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each file (%(default)s)")


def run(options: argparse.Namespace) -> Answer:
    """Time the files."""
    from tflite_bench import BenchError, benchmark

    try:
        runs = options.runs
        report = benchmark(options.files, threads=options.threads, runs=runs, rounds=min(5, runs), progress=True)
    except BenchError as error:
        raise MeasurementError(str(error)) from error
    return report.to_dict(), [report.table()]
