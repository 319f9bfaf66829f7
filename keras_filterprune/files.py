"""Put files in place whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_filterprune.errors import ExportError


def check_destination(path: Path, overwrite: bool) -> None:
    """Raise `ExportError` unless a file can be written at `path`, before any work starts."""
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a folder; expected a file name.")
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {path}: the folder {path.parent} does not exist. Create it first.")
    if path.exists() and not overwrite:
        raise ExportError(f"{path} already exists and is kept. Choose another name, or pass overwrite (--overwrite).")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"cannot write {path}: no permission to write in {path.parent}.")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a draft path of the same name in a folder next to `path`; on success the draft takes its place.

    Readers see the old file or the whole new one; after an error nothing is left behind.

    Raises:
        ExportError: the file system refuses (no permission, no space).
    """
    path = Path(path)
    try:
        # Next to the destination, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            draft = Path(folder, path.name)
            yield draft
            os.replace(draft, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}. Check the folder's permissions and free space.") from error


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write plain data as JSON, in one step."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")


def save_keras(model: Any, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Save a model as `.keras`, in one step.

    Args:
        model: the model.
        path: a name that ends in `.keras`.
        overwrite: replace an existing file (False).

    Raises:
        ExportError: the name is wrong, the file exists, or it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise ExportError(f"expected a name that ends in .keras. Received: {path}.")
    check_destination(path, overwrite)
    with replacing(path) as draft:
        model.save(draft)
