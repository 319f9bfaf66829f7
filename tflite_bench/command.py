"""What all command lines of this package have in common: options, results on the terminal, bad input as one line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from tflite_bench.errors import BenchError
from tflite_bench.files import twice, write_json

# What goes into the JSON file, and what is shown.
Answer = tuple[dict[str, Any], Sequence[RenderableType]]


def printable() -> None:
    """Names that a terminal's encoding lacks are shown by their codes, and do not end the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def add_files(parser: argparse.ArgumentParser, nargs: str | int = "+") -> None:
    """The files to measure, and where the result goes."""
    parser.add_argument("files", nargs=nargs, metavar="FILE", help=".tflite files; ratios refer to the first")
    parser.add_argument("--json", metavar="PATH", help="also write the result there")


def add_runs(parser: argparse.ArgumentParser, runs: int, rounds: int) -> None:
    """How files are timed."""
    parser.add_argument("--threads", type=int, default=1, help="threads LiteRT computes with (%(default)s)")
    parser.add_argument("--runs", type=int, default=runs, help="timed runs of each file, in all (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds (%(default)s)")


def carry_out(
    parser: argparse.ArgumentParser, arguments: Sequence[str], work: Callable[[argparse.Namespace], Answer]
) -> int:
    """Do the work and show what it gives; without arguments, show what there is to be done.

    Args:
        parser: of the arguments; `json` and `plot`, where it has them, name files to write.
        arguments: the words of the command line.
        work: does what the options say.

    Returns:
        Exit code: 0; 2 with one line on stderr for bad input; 130 when interrupted.
    """
    if not arguments:
        parser.print_help()
        return 0
    printable()
    options = parser.parse_args(arguments)
    try:
        _check_files(options)
        content, shown = work(options)
        if getattr(options, "json", None):
            write_json(options.json, content)
    except (BenchError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        return 130
    console = Console()
    for item in shown:
        # A sentence is one line, however long, and names in it may hold brackets.
        how: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True} if isinstance(item, str) else {}
        console.print(item, **how)
    return 0


def _check_files(options: argparse.Namespace) -> None:
    """What is written can be written, and replaces no other file of the command line."""
    written = {option: path for option in ("json", "plot") if (path := getattr(options, option, None))}
    for option, path in written.items():
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise BenchError(f"--{option} {path}: the folder does not exist")
        if Path(path).exists() and not Path(path).is_file():
            raise BenchError(f"--{option} {path}: expected a file name, this is a folder, a device or a pipe")
    # A file may be measured twice, so each written one is looked for among those that are read.
    read = [*getattr(options, "files", ()), *filter(None, [getattr(options, "binary", None)])]
    for others in (written.values(), *([path, file] for path in written.values() for file in read)):
        if found := twice(others):
            raise BenchError(f"every file has a name of its own. Received: {found} for two of them.")
