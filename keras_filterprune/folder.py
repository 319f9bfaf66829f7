"""Long work that leaves files in a folder: what is there whole is found again, and no file of others is touched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from keras_filterprune.checks import check_path
from keras_filterprune.errors import FileError
from keras_filterprune.files import check_destination, read_json, write_json


class Folder:
    """A folder, and a file in it that says what some work has written and found out so far.

    Args:
        name: the argument that it was given by.
        path: the folder, which is made where it is missing; None: nothing is written, and nothing found.
        index: what that file is called.
        key: what the work depends on.
        work: what it is called in messages ("family").
        parts: what its key is made of, for messages.

    Attributes:
        facts: what was found out, plain data by name.

    Raises:
        FileError: the folder cannot be made, or holds files of other work.
    """

    def __init__(self, name: str, path: str | os.PathLike | None, index: str, key: str, work: str, parts: str):
        self._path = None if path is None else check_path(name, path, of="folder")
        self._work, self._key = work, hashlib.sha256(key.encode()).hexdigest()
        self._files: dict[str, str | None] = {}
        self.facts: dict[str, Any] = {}
        if self._path is None:
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder {self._path}: {error}.") from error
        self._index = self._path / index
        if self._index.exists():
            content = read_json(self._index, f"a {work}", sealed=True)
            if not isinstance(content, dict) or content.get("key") != self._key:
                raise FileError(
                    f"'{self._path}' holds another {work}: {parts} differ. Give another folder, or delete this one."
                )
            self._files, self.facts = content["files"], content["facts"]

    def check(self, names: Iterable[str]) -> None:
        """None of these files is there already, unless this work has written it.

        Raises:
            FileError: one is, or cannot be written.
        """
        for name in names:
            if self._path is None or name in self._files:
                continue
            path = self._path / name
            if path.exists():
                raise FileError(
                    f"{path} already exists and is kept: no earlier {self._work} wrote it. Give another folder."
                )
            check_destination(path, overwrite=False)

    def find(self, name: str) -> Path | None:
        """A file that was written before, None where it is not.

        Raises:
            FileError: it is missing now, or another one than was written.
        """
        digest = self._files.get(name)
        if self._path is None or digest is None:
            return None
        if digest != _digest(self._path / name):
            raise FileError(
                f"cannot load {self._path / name} as it was written: it was cut or changed. Give another folder."
            )
        return self._path / name

    def write(self, name: str, save: Callable[[Path], Any], **facts: Any) -> None:
        """Write a file, in the place of an earlier one of this work.

        Args:
            name: of the file.
            save: writes it, in one step.
            **facts: what is known once it is there.
        """
        if self._path is None:
            return
        if name not in self._files:
            # What is found under this name after a kill is this work's own.
            self.check([name])
            self._note(name, None)
        save(self._path / name)
        self.facts |= facts
        self._note(name, _digest(self._path / name))

    def note(self, **facts: Any) -> None:
        """Remember what was found out."""
        self.facts |= facts
        self._write()

    def _note(self, name: str, digest: str | None) -> None:
        self._files[name] = digest
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._index, {"key": self._key, "files": self._files, "facts": self.facts})


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
