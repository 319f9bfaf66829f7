"""Work in a process of its own: where memory starts from nothing, and a crash is an error message.

Python searches the folder of the script or the current folder first: a `json.py` that happens to lie beside a file
would run only because a process was started. This process searches neither.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, TextIO

_PACKAGE = "tflite_bench"


def run_fresh(module: str, path: Path, *arguments: Any) -> dict[str, Any]:
    """Call `measure` of a module of this package in a process of its own, which ends when this one is interrupted.

    Args:
        module: its name inside `tflite_bench`.
        path: the `.tflite` file, the first argument.
        arguments: the other ones, numbers and strings.

    Returns:
        What it returns.

    Raises:
        BenchError: it failed; the message is its last line on stderr.
        KeyboardInterrupt: it was interrupted, with this one or alone.
    """
    # Not at the top: run as a script, this file finds no package before it has read where to look.
    from tflite_bench.errors import BenchError

    request = {
        "path": _import_path(),
        "package": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        "module": f"{_PACKAGE}.{module}",
        "arguments": [os.path.abspath(path), *arguments],
    }
    with subprocess.Popen(
        # -I: no folder and no environment variable adds to the import path.
        [sys.executable, "-I", os.path.abspath(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            answer, said = process.communicate(json.dumps(request))
        finally:
            process.kill()
    code = process.returncode
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        ended = f"ended with {code}" if code > 0 else f"was ended ({signal.strsignal(-code)})"
        *_, last = said.strip().splitlines() or ["no message"]
        raise BenchError(f"{path}: the process that runs {request['module']} {ended}: {last}")
    return json.loads(answer)


def _import_path() -> list[str]:
    unsafe, main = {os.path.realpath(os.curdir)}, sys.modules["__main__"]
    # What `python -m` runs has a spec, and its folder is not on the path.
    file = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and file is not None:
        unsafe.add(os.path.dirname(os.path.realpath(file)))
    return [os.path.abspath(entry) for entry in sys.path if entry and os.path.realpath(entry) not in unsafe]


class _Finder:
    """Finds this package in its folder, and no other module there."""

    def __init__(self, folder: str):
        self._folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [self._folder]) if name == _PACKAGE else None


def _answer(requests: TextIO, answers: TextIO) -> None:
    """The other side of `run_fresh`."""
    request = json.load(requests)
    sys.path[:] = request["path"]
    sys.meta_path.insert(0, _Finder(request["package"]))
    json.dump(importlib.import_module(request["module"]).measure(*request["arguments"]), answers)


if __name__ == "__main__":
    _answer(sys.stdin, sys.stdout)
