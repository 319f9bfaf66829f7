"""Command line: `python -m tflite_bench arm setup`, `... count dense.tflite pruned.tflite --cpu cortex-a72`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tflite_bench.arm.counting import count_instructions
from tflite_bench.arm.emulator import CORES
from tflite_bench.arm.prepare import cache_folder, setup
from tflite_bench.command import Answer, add_files, carry_out


def main(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: the words after "arm".

    Returns:
        Exit code: 0, or 2 with one line on stderr for bad input or a missing program.
    """
    parser = argparse.ArgumentParser(prog="tflite_bench arm", description="Instructions on an emulated Arm core.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare = commands.add_parser(
        "setup", help=f"prepare it, once: files go to {cache_folder()} (or $TFLITE_BENCH_CACHE)"
    )
    prepare.set_defaults(work=_setup)
    count = commands.add_parser("count", help="count the instructions of one inference of .tflite files")
    count.set_defaults(work=_count)
    add_files(count)
    count.add_argument("--cpu", default="cortex-a76", help=f"{', '.join(CORES)} (%(default)s)")
    return carry_out(parser, arguments, lambda options: options.work(options))


def _setup(options: argparse.Namespace) -> Answer:
    return {}, [f"ready: {setup(progress=True)}"]


def _count(options: argparse.Namespace) -> Answer:
    report = count_instructions(options.files, cpu=options.cpu, progress=True)
    return report.to_dict(), [report.table()]
