"""Files that are whole or not there, and JSON that tells when it has been changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Folders of drafts: the computer, the process, and what `tempfile` adds.
_DRAFTS = re.compile(r"\.unfinished\.([0-9a-f]{8})\.([0-9]{1,9})\.[a-z0-9_]{8}")
# Far more than anything written here: what is larger was taken for something else.
LARGEST = 2**28
_DIGEST = "sha256"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = True) -> Iterator[Path]:
    """Give a draft path of the same name in a folder next to `path`; on success the draft takes its place.

    Readers see the old file or the whole new one, also after a power cut; after an error nothing is left behind. A
    symbolic link stays one, and the file that it points to is replaced; an existing file's mode is kept.

    Args:
        path: the file to write.
        overwrite: replace a file that is there by then (True).

    Yields:
        The draft's path.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        raise OSError(f"{os.fspath(path)} is no regular file")
    # Next to the destination, so that the final rename stays on one file system.
    with unfinished(target.parent) as folder:
        draft = folder / Path(path).name
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        if target.exists():
            if not overwrite:
                raise FileExistsError(f"{os.fspath(path)} has been written by another program in the meantime")
            shutil.copymode(target, draft)
        os.replace(draft, target)
    _flush_folder(target.parent)


@contextlib.contextmanager
def unfinished(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A hidden folder to work in, which is gone afterwards; those that killed processes have left there go as well.

    Args:
        parent: where it lies (None: where the system keeps what is temporary).

    Raises:
        OSError: no folder can be made there.
    """
    parent = Path(parent or tempfile.gettempdir())
    _remove_leftovers(parent)
    prefix = f".unfinished.{_computer()}.{os.getpid()}."
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        yield Path(folder)


def write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write plain data as JSON, with its digest, in one step.

    Args:
        path: the file to write.
        content: JSON-ready values; no key is "sha256".

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as draft:
        text = json.dumps(content | {_DIGEST: json_digest(content)}, indent=1)
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str], sealed: bool = False) -> Any:
    """Plain data from JSON, without the digest that it is compared with.

    Args:
        path: the file to read.
        sealed: refuse a file without a digest (False: its content is taken as it is).

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it holds no JSON, or not what was written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"it has {size:,} bytes, more than any file of this kind")
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if sealed and not (isinstance(content, dict) and _DIGEST in content):
        raise ValueError(f"it has no {_DIGEST} of its content")
    return unsealed(content)


def unsealed(content: Any) -> Any:
    """What was written, without the digest that it is compared with, if it has one.

    Raises:
        ValueError: it is not what was written.
    """
    if not isinstance(content, dict) or _DIGEST not in content:
        return content
    plain = {name: value for name, value in content.items() if name != _DIGEST}
    if content[_DIGEST] != json_digest(plain):
        raise ValueError(f"it was cut or changed after it had been written: its {_DIGEST} is not that of its content")
    return plain


def twice(paths: Iterable[str | os.PathLike[str]]) -> Path | None:
    """The first name of a file that has been named before, in whatever way; None if there is none."""
    found: set[Any] = set()
    for path in map(Path, paths):
        file = Path(os.path.realpath(path))
        key = (file.stat().st_dev, file.stat().st_ino) if file.exists() else file
        if key in found:
            return path
        found.add(key)
    return None


def json_digest(content: Any) -> str:
    """SHA-256 of plain data, in hexadecimal; the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_leftovers(folder: Path) -> None:
    """Remove the drafts of processes of this computer that have ended; a draft of an unknown one stays."""
    if os.name != "posix":
        return  # Elsewhere, asking for a process can end it.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _DRAFTS.fullmatch(entry.name)
            if found and found[1] == _computer() and entry.is_dir(follow_symlinks=False) and not _runs(int(found[2])):
                shutil.rmtree(entry.path, ignore_errors=True)


@cache
def _computer() -> str:
    """Stands for where the numbers of processes mean what they mean here: this computer, or container on it."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # Not on Linux.
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _flush_folder(folder: Path) -> None:
    """Make the rename last; not every file system can be asked to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
