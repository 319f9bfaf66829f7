"""Command line: `python -m tflite_bench android dense.tflite pruned.tflite --binary benchmark_model`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tflite_bench.android.benchmark import benchmark_on_android
from tflite_bench.command import Answer, add_files, add_runs, carry_out


def main(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: the words after "android".

    Returns:
        Exit code: 0, or 2 with one line on stderr for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="tflite_bench android", description="Time .tflite files against each other on an Android phone."
    )
    add_files(parser)
    add_runs(parser, runs=100, rounds=5)
    parser.add_argument("--binary", required=True, help="benchmark_model for Android arm64, on this computer")
    parser.add_argument("--serial", help="the phone, as `adb devices` shows it (default: the only one)")
    parser.add_argument("--taskset", metavar="MASK", help="cores as a hexadecimal mask, f0 for cores 4 to 7")
    parser.add_argument("--warmup", type=int, default=10, help="untimed runs in each process first (%(default)s)")
    parser.add_argument("--delay", type=float, default=1.0, help="pause before each process in s (%(default)s)")
    return carry_out(parser, arguments, _benchmark)


def _benchmark(options: argparse.Namespace) -> Answer:
    report = benchmark_on_android(
        options.files,
        binary=options.binary,
        serial=options.serial,
        threads=options.threads,
        runs=options.runs,
        warmup=options.warmup,
        rounds=options.rounds,
        taskset=options.taskset,
        delay_s=options.delay,
        progress=True,
    )
    return report.to_dict(), [report.table()]
