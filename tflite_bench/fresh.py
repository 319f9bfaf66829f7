"""Work in a process of its own: where memory starts from nothing, and a crash is an error message."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tflite_bench.errors import BenchError


def run_fresh(module: str, path: Path, *arguments: object) -> dict[str, Any]:
    """Run a module of this package in a process of its own.

    Args:
        module: Its name inside `tflite_bench`; run as a program it must call `answer`.
        path: The `.tflite` file, its first argument.
        *arguments: Its other arguments.

    Returns:
        What it answered.

    Raises:
        BenchError: It failed; the message is its last line on stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"tflite_bench.{module}", os.path.abspath(path), *map(str, arguments)],
        # Only there is the package sure to be found; nothing else of the caller's folder is.
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        *_, last = done.stderr.strip().splitlines() or ["no message"]
        raise BenchError(f"{path}: the process that runs tflite_bench.{module} ended with {done.returncode}: {last}")
    return json.loads(done.stdout)


def answer(work: Callable[[Sequence[str]], dict[str, Any]]) -> None:
    """Answer `run_fresh`: write to stdout what `work` makes of the arguments."""
    sys.stdout.write(json.dumps(work(sys.argv[1:])))
