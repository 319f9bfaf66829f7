"""Work in a fresh process, which imports what is installed and, of the user's own folders, only what it is told to.

Python searches the folder of the script or the current folder first: a `json.py` that happens to lie beside a model
would run only because a process was started. This process searches neither. It is told the names of the modules that
it finds there: those that the process which starts it has imported, and those that are asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

_PACKAGES = ("keras_filterprune", "tflite_bench")


def run_elsewhere(
    function: str,
    *arguments: Any,
    task: str,
    modules: Iterable[str] = (),
    settings: Mapping[str, str] | None = None,
    shown: bool = False,
) -> Any:
    """Call a function in a fresh process, which ends when this one is interrupted.

    Args:
        function: "module:function".
        arguments: whatever can be pickled.
        task: what the process does, for messages, as in "converts model 'net'".
        modules: the user's modules that it needs, besides those that this process has imported (none).
        settings: environment variables, besides those of this process (None).
        shown: what it writes appears on this process's streams (False: it is dropped).

    Returns:
        What the function returns.

    Raises:
        FilterPruneError, OSError: the function raised it.
        ExportError: the process ended without an answer.
        KeyboardInterrupt: it was interrupted, with this one or alone.
    """
    # Not at the top: run as a script, this file finds no package before it has read where to look.
    from keras_filterprune.errors import ExportError

    with tempfile.TemporaryDirectory() as folder:
        with Path(folder, "request").open("wb") as file:
            pickle.dump(_import_path(modules), file)
            pickle.dump((function, arguments), file)
        with subprocess.Popen(
            # -I: no folder and no environment variable adds to the import path.
            [sys.executable, "-I", os.path.abspath(__file__), folder],
            env=os.environ | dict(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=None if shown else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                last = _last_line(process.stderr, shown)
                code = process.wait()
            finally:
                process.kill()
        if code == -signal.SIGINT:
            raise KeyboardInterrupt
        answer = Path(folder, "answer")
        if not answer.exists():
            ended = f"ended with exit code {code}" if code >= 0 else f"was ended ({signal.strsignal(-code)})"
            raise ExportError(f"the process that {task} {ended}: {last or 'it wrote no message'}")
        result, error = pickle.loads(answer.read_bytes())
    if error is not None:
        raise error
    return result


def _import_path(modules: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The folders that the other process searches, and {module: the one folder in which it looks for it}."""
    unsafe, main = {os.path.realpath(os.curdir)}, sys.modules["__main__"]
    # What `python -m` runs has a spec, and its folder is not on the path.
    file = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and file is not None:
        unsafe.add(os.path.dirname(os.path.realpath(file)))
    path = [os.path.abspath(entry) for entry in sys.path if entry and os.path.realpath(entry) not in unsafe]
    names = {name.partition(".")[0] for name in (*sys.modules, *modules)}
    folders = {name: folder for name in sorted(names) for folder in _folders_of(name) if folder in unsafe}
    # Our packages are those that run here, whatever else is installed.
    return path, folders | dict.fromkeys(_PACKAGES, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _folders_of(name: str) -> list[str]:
    """The folders in which a top-level module lies; it is not imported."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # A module without a spec, such as __main__.
        return []
    if spec is None:
        return []
    places = spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else [])
    return [os.path.realpath(os.path.dirname(os.path.abspath(place))) for place in places]


def _last_line(stream: Any, shown: bool) -> str:
    """The last line that a process writes before it ends."""
    last = ""
    # Lines of progress bars end in a carriage return, which newline="" leaves as it is.
    with io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="") as lines:
        for line in lines:
            # A service may have no stderr, or have closed it.
            with contextlib.suppress(AttributeError, ValueError):
                if shown:
                    sys.stderr.write(line)
                    sys.stderr.flush()
            last = line.strip()[-1000:] or last
    return last


class _Finder:
    """Finds top-level modules, each in its folder, and no other module there."""

    def __init__(self, folders: Mapping[str, str]):
        self._folders = folders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [self._folders[name]]) if name in self._folders else None


def _answer(folder: Path) -> None:
    """The other side of `run_elsewhere`."""
    with (folder / "request").open("rb") as file:
        sys.path[:], folders = pickle.load(file)
        sys.meta_path.insert(0, _Finder({package: folders.pop(package) for package in _PACKAGES}))
        # Last: what is installed goes before what lies in the user's folders.
        sys.meta_path.append(_Finder(folders))
        from keras_filterprune.errors import FilterPruneError

        try:
            function, arguments = pickle.load(file)
            module, _, name = function.partition(":")
            answer: tuple[Any, Exception | None] = getattr(importlib.import_module(module), name)(*arguments), None
        except (FilterPruneError, OSError) as error:
            answer = None, error
    (folder / "draft").write_bytes(pickle.dumps(answer))
    # In one step: what is there is whole.
    os.replace(folder / "draft", folder / "answer")


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
