"""Command line: `python -m tflite_bench arm setup`, `... count dense.tflite pruned.tflite --cpu cortex-a72`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tflite_bench.arm.counting import count_instructions
from tflite_bench.arm.emulator import CORES
from tflite_bench.arm.prepare import cache_folder, setup
from tflite_bench.errors import BenchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name. Default: those of this process.

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
    try:
        if options.command == "setup":
            sys.stdout.write(f"ready: {setup(progress=True)}\n")
            return 0
        if options.json and not Path(options.json).parent.is_dir():
            raise BenchError(f"--json {options.json}: the folder does not exist")
        report = count_instructions(options.files, cpu=options.cpu, progress=True)
        if options.json:
            report.save(options.json)
    except (BenchError, OSError) as error:
        sys.stderr.write(f"tflite_bench arm: {error}\n")
        return 2
    Console().print(report.table())
    return 0
