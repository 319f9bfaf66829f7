"""Long work that can be killed: its state in a JSON file, and the model it has come to next to it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from keras_filterprune.checks import check_path
from keras_filterprune.errors import FileError
from keras_filterprune.files import check_destination, load_keras, read_json, save_keras, write_json

T = TypeVar("T")
# So many characters of the checkpoint's name begin that of its model: at most 4 bytes each, of the 255 of a name.
_BEGINNING = 50


class Checkpoint:
    """A file that says how far some work has come, and on which problem.

    Args:
        path: JSON file; None: nothing is written, and nothing found.
        work: what it is called in messages ("search").
        parts: what its key is made of, for messages.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        work: str = "search",
        parts: str = "model, method, data, seed or fine-tuning",
    ):
        self.path, self._work, self._parts = None if path is None else check_path("checkpoint", path), work, parts

    def read(self, key: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """What `parse` makes of the file's content, None if there is no file.

        Raises:
            FileError: the file is damaged or was changed, has another key, or cannot be written.
        """
        if self.path is None:
            return None
        check_destination(self.path, overwrite=True)
        if not self.path.exists():
            return None
        try:
            content = read_json(self.path, "a checkpoint", sealed=True)
            found, parsed = content["key"], parse(content)
        except (FileError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, FileError) else repr(error)
            raise FileError(
                f"'{self.path}' is no checkpoint of a {self._work}: {reason} Delete it, or give another name."
            ) from error
        if found != key:
            raise FileError(
                f"'{self.path}' belongs to another {self._work}: {self._parts} differ. Delete it, or give another name."
            )
        return parsed

    def write(self, key: str, content: dict[str, Any]) -> None:
        """Write the file in one step."""
        if self.path is not None:
            write_json(self.path, {"key": key} | content)

    def write_with_model(self, key: str, content: dict[str, Any], model: Any, number: int) -> None:
        """Write file and model; `content["more"]` gets the model's name and digest.

        The model first: a checkpoint that is cut short still names the model of the round before.
        """
        if self.path is None:
            return
        # No file of the user's has the digest of this very work in its name.
        work = hashlib.sha256(f"{self.path.name} {key}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
        begin = self.path.name[:_BEGINNING]
        path = self.path.with_name(f"{begin}.{number}.{work}.keras")
        save_keras(model, path, overwrite=True)
        more = content["more"] | {"model": path.name, "model_sha256": _digest(path)}
        self.write(key, content | {"more": more})
        own = re.compile(rf"{re.escape(begin)}\.[0-9]+\.{work}\.keras")
        for old in self.path.parent.iterdir():
            if old.name != path.name and own.fullmatch(old.name):
                old.unlink()

    def model(self, more: dict[str, Any]) -> Any:
        """The model next to the file.

        Args:
            more: what `write_with_model` wrote under "more".

        Raises:
            FileError: it is missing, or another one than was written.
        """
        if self.path is None:
            raise FileError(f"a {self._work} without a checkpoint has kept no model.")
        # Beside the checkpoint, wherever its content says.
        path = self.path.with_name(Path(more["model"]).name)
        try:
            if path.is_file() and _digest(path) != more["model_sha256"]:
                raise FileError(f"cannot load {path} as it was written: it was cut or changed.")
            return load_keras(path)
        except OSError as error:
            raise FileError(f"checkpoint '{self.path}' needs its model: {error} Delete the checkpoint.") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
