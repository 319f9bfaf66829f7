"""Command line: `python -m tflite_bench arm setup`, `... count dense.tflite pruned.tflite --cpu cortex-a72`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.table import Table

from tflite_bench.arm.counting import count_instructions
from tflite_bench.arm.emulator import CORES
from tflite_bench.arm.prepare import cache_folder, setup
from tflite_bench.command import carry_out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name (None: those of this process).

    Returns:
        Exit code: 0, or 2 with one line on stderr for bad input or a missing program.
    """
    parser = argparse.ArgumentParser(prog="tflite_bench arm", description="Instructions on an emulated Arm core.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help=f"prepare it, once: files go to {cache_folder()} (or $TFLITE_BENCH_CACHE)")
    count = commands.add_parser("count", help="count the instructions of one inference of .tflite files")
    count.add_argument("files", nargs="+", metavar="FILE", help=".tflite files; ratios refer to the first")
    count.add_argument("--cpu", default="cortex-a76", help=f"{', '.join(CORES)} (%(default)s)")
    count.add_argument("--json", metavar="PATH", help="also write the report there")
    options = parser.parse_args(arguments)
    return carry_out("tflite_bench arm", options, _setup if options.command == "setup" else _count)


def _setup(options: argparse.Namespace) -> list[str]:
    return [f"ready: {setup(progress=True)}"]


def _count(options: argparse.Namespace) -> list[Table]:
    report = count_instructions(options.files, cpu=options.cpu, progress=True)
    if options.json:
        report.save(options.json)
    return [report.table()]
