"""What all command lines of this package do: results to the terminal, bad input as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from tflite_bench.errors import BenchError


def carry_out(
    name: str, options: argparse.Namespace, work: Callable[[argparse.Namespace], Sequence[RenderableType]]
) -> int:
    """Do the work and show what it gives.

    Args:
        name: the program's name, for messages.
        options: its options; `json` and `plot`, where they are given, name files to write.
        work: gives what to show.

    Returns:
        Exit code: 0, or 2 with one line on stderr.
    """
    try:
        for option in ("json", "plot"):
            if path := getattr(options, option, None):
                _check_file(option, path)
        shown = work(options)
    except (BenchError, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    console = Console()
    for item in shown:
        # A sentence is one line, however long.
        console.print(item, soft_wrap=isinstance(item, str))
    return 0


def _check_file(option: str, path: str) -> None:
    if not Path(path).parent.is_dir():
        raise BenchError(f"--{option} {path}: the folder does not exist")
    if Path(path).is_dir():
        raise BenchError(f"--{option} {path}: expected a file name, this is a folder")
