"""Read and write files: what is written is there whole or not at all, what cannot be read says why."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_filterprune.checks import check_flag, check_path, import_keras
from keras_filterprune.errors import FileError, InvalidValueError
from tflite_bench import files
from tflite_bench.files import json_digest as json_digest
from tflite_bench.files import unfinished as unfinished
from tflite_bench.files import unsealed as unsealed

# Of a reason that Keras gives.
_LONGEST = 500


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
    exists, folder = _exists(path), Path(os.path.realpath(path)).parent
    if exists and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise FileError(f"cannot write {path}: it is {kind}; expected a file name.")
    if not folder.is_dir():
        raise FileError(f"cannot write {path}: the folder {folder} does not exist. Create it first.")
    if exists and not overwrite:
        raise FileError(f"{path} already exists and is kept. Choose another name, or pass overwrite (--overwrite).")
    if not os.access(folder, os.W_OK):
        raise FileError(f"cannot write {path}: no permission to write in {folder}.")
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike, overwrite: bool = True) -> Iterator[Path]:
    """`tflite_bench.files.replacing`: a draft that takes the place of `path`, whole, or leaves nothing behind.

    Raises:
        FileError: the file system refuses (no permission, no space).
    """
    path = check_path("path", path)
    with _refusals(path), files.replacing(path, overwrite) as draft:
        yield draft


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write plain data as JSON, with its digest, in one step.

    Raises:
        FileError: the file system refuses.
    """
    path = check_path("path", path)
    with _refusals(path):
        files.write_json(path, content)


def read_json(path: Any, what: str, sealed: bool = False) -> Any:
    """Plain data from JSON, without its digest.

    Args:
        path: what the user gave.
        what: what is expected there, for the message ("a plan").
        sealed: refuse a file without a digest (False).

    Raises:
        InvalidValueError: `path` is no name of a file.
        FileError: there is no such file, or it holds no JSON, or was changed after it had been written.
    """
    path = check_path("path", path)
    try:
        return files.read_json(path, sealed)
    except (OSError, ValueError, MemoryError) as error:
        raise FileError(f"cannot read {what} from '{path}': {error}.") from error


def save_keras(model: Any, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Save a model as `.keras`, in one step.

    Args:
        model: the model.
        path: a name that ends in `.keras`.
        overwrite: replace an existing file (False).

    Raises:
        InvalidValueError: the name is wrong.
        FileError: the file exists, or cannot be written, or a layer does not say how it is configured.
    """
    path = check_destination(path, overwrite, [".keras"])
    with replacing(path, overwrite) as draft:
        try:
            model.save(draft)
        except OSError:
            raise
        # Saving runs the get_config() of the user's layers.
        except Exception as error:
            # The first paragraph is Keras' reason, on several lines; an example follows.
            reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:_LONGEST]
            raise FileError(
                f"cannot write {path}: Keras cannot save model '{model.name}': {type(error).__name__}: {reason}"
            ) from error


def load_keras(path: Any) -> Any:
    """The model in a file of Keras.

    Raises:
        InvalidValueError: `path` is no name of a file.
        FileError: there is no such file, it is damaged, or holds what Keras cannot load.
    """
    path = check_path("path", path)
    if not path.is_file():
        raise FileError(f"no model at {path}; expected a .keras file.")
    keras = import_keras()
    try:
        if path.suffix == ".keras":
            _check_archive(path)
        return keras.saving.load_model(path)
    # Loading runs any code that layers hold.
    except Exception as error:
        raise FileError(f"cannot load {path} as a Keras model: {_first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Compare every part of a `.keras` file with its checksum, which Keras does not with all of them."""
    if not zipfile.is_zipfile(path):
        raise FileError("it is damaged, or no .keras file.")
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.filename.endswith(".json") and part.file_size > files.LARGEST:
                raise FileError(f"{part.filename} has {part.file_size:,} bytes, more than any model's.")
        if (damaged := archive.testzip()) is not None:
            raise FileError(f"it is damaged, {damaged} has another checksum.")


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}. Check the folder's permissions and free space.") from error


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
