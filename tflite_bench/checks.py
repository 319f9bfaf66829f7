"""Checks of arguments, in one voice: `<name> is <what is expected>. Received: <name>=<value>.`"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from tflite_bench.errors import BenchError

_SHOWN = 200


def wrong(name: str, value: Any, expected: str) -> BenchError:
    """The error to raise for an argument that is not what is expected."""
    text = repr(value)
    text = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 4 :]}"
    return BenchError(f"{name} is {expected}. Received: {name}={text}.")


def check_option(name: str, value: Any, options: Iterable[str]) -> None:
    """Raise `BenchError` for an option that is none of the known names."""
    options = list(options)
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BenchError(f"{wrong(name, value, 'one of ' + ', '.join(options))}{hint}")


def check_integers(least: int = 1, **values: Any) -> None:
    """Raise `BenchError` for the first value that is no whole number from `least` on."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise wrong(name, value, f"an integer, at least {least}")


def check_threads(threads: Any) -> None:
    """Raise `BenchError` for more threads than this computer has cores, which would only wait for each other."""
    most = os.cpu_count() or 1
    check_integers(threads=threads)
    if threads > most:
        raise wrong("threads", threads, f"at most {most}, the number of cores of this computer")


def check_seconds(name: str, value: Any, least: float | None = None) -> None:
    """Raise `BenchError` unless a number of seconds is finite, and positive or at least `least`."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (value <= 0 if least is None else value < least):
        expected = "a positive number of seconds" if least is None else f"a number of seconds, at least {least}"
        raise wrong(name, value, expected)


def check_rounds(rounds: Any, runs: int, least: int = 1) -> None:
    """Raise `BenchError` unless there are enough rounds and each has a run."""
    if isinstance(rounds, bool) or not isinstance(rounds, Integral) or not least <= int(rounds) <= runs:
        raise wrong("rounds", rounds, f"an integer between {least} and runs={runs}")


def check_paths(paths: Any) -> list[Path]:
    """The paths, if they are a list of at least one file that exists."""
    if isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable):
        raise wrong("paths", paths, "a list of at least one .tflite file")
    found = list(map(check_file, paths))
    if not found:
        raise wrong("paths", paths, "a list of at least one .tflite file")
    return found


def check_file(path: str | os.PathLike[str]) -> Path:
    """The path, if there is a file."""
    path = Path(path)
    if not path.is_file():
        raise BenchError(f"{path}: no such file, expected a .tflite file")
    return path
