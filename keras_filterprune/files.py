"""Read and write files: what is written is there whole or not at all, what cannot be read says why."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_filterprune.checks import check_flag, check_path, import_keras
from keras_filterprune.errors import FileError, InvalidValueError


def check_destination(path: Any, overwrite: bool, suffixes: Sequence[str] = ()) -> Path:
    """The path, if a file can be written there, before any work starts.

    Args:
        path: what the user gave.
        overwrite: whether an existing file may be replaced.
        suffixes: the endings that the name may have (), any.

    Raises:
        InvalidValueError: `path` is no name of a file, or ends in something else.
        FileError: it is a folder, exists already, or no file can be made there.
    """
    path = check_path("path", path)
    check_flag("overwrite", overwrite)
    if suffixes and path.suffix.lower() not in suffixes:
        raise InvalidValueError(f"path is a name that ends in {' or '.join(suffixes)}. Received: path={str(path)!r}.")
    if os.path.isdir(path):
        raise FileError(f"cannot write {path}: it is a folder; expected a file name.")
    if not os.path.isdir(path.parent):
        raise FileError(f"cannot write {path}: the folder {path.parent} does not exist. Create it first.")
    if _exists(path) and not overwrite:
        raise FileError(f"{path} already exists and is kept. Choose another name, or pass overwrite (--overwrite).")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"cannot write {path}: no permission to write in {path.parent}.")
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a draft path of the same name in a folder next to `path`; on success the draft takes its place.

    Readers see the old file or the whole new one; after an error nothing is left behind.

    Raises:
        FileError: the file system refuses (no permission, no space).
    """
    path = check_path("path", path)
    try:
        # Next to the destination, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=".keras_filterprune.", dir=path.parent) as folder:
            draft = Path(folder, path.name)
            yield draft
            os.replace(draft, path)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}. Check the folder's permissions and free space.") from error


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write plain data as JSON, in one step."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Any, what: str) -> Any:
    """Plain data from JSON.

    Args:
        path: what the user gave.
        what: what is expected there, for the message ("a plan").

    Raises:
        InvalidValueError: `path` is no name of a file.
        FileError: there is no such file, or it holds no JSON.
    """
    path = check_path("path", path)
    try:
        return json.loads(path.read_text())
    # Brackets that are nested too deep exhaust the stack.
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"cannot read {what} from '{path}': {error}.") from error


def save_keras(model: Any, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Save a model as `.keras`, in one step.

    Args:
        model: the model.
        path: a name that ends in `.keras`.
        overwrite: replace an existing file (False).

    Raises:
        InvalidValueError: the name is wrong.
        FileError: the file exists, or cannot be written.
    """
    path = check_destination(path, overwrite, [".keras"])
    with replacing(path) as draft:
        model.save(draft)


def load_keras(path: Any) -> Any:
    """The model in a file of Keras.

    Raises:
        InvalidValueError: `path` is no name of a file.
        FileError: there is no such file, it is damaged, or holds what Keras cannot load.
    """
    path = check_path("path", path)
    if not path.is_file():
        raise FileError(f"no model at {path}; expected a .keras file.")
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise FileError(f"cannot load {path} as a Keras model: it is damaged, or no .keras file.")
    keras = import_keras()
    try:
        return keras.saving.load_model(path)
    # Loading runs any code that layers hold.
    except Exception as error:
        raise FileError(f"cannot load {path} as a Keras model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:  # A name that is too long, say.
        raise FileError(f"cannot write {path}: {error}.") from error
    return True
