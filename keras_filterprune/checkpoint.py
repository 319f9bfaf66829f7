"""Long work that can be killed: its state in a JSON file, and the model it has come to next to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from keras_filterprune.checks import check_path
from keras_filterprune.errors import FileError
from keras_filterprune.files import load_keras, save_keras, write_json

T = TypeVar("T")


class Checkpoint:
    """A file that says how far some work has come, and on which problem.

    Args:
        path: JSON file; None: nothing is written, and nothing found.
        work: what it is called in messages ("search").
    """

    def __init__(self, path: str | os.PathLike | None, work: str = "search"):
        self.path, self._work = None if path is None else check_path("checkpoint", path), work

    def read(self, key: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """What `parse` makes of the file's content, None if there is no file.

        Raises:
            FileError: the file is damaged or has another key.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            content = json.loads(self.path.read_text())
            found, parsed = content["key"], parse(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(
                f"'{self.path}' is no checkpoint of a {self._work}: {error!r}. Delete it, or give another name."
            ) from error
        if found != key:
            raise FileError(
                f"'{self.path}' belongs to another {self._work}: model, method, data, seed or fine-tuning differ. "
                "Delete it, or give another name."
            )
        return parsed

    def write(self, key: str, content: dict[str, Any]) -> None:
        """Write the file in one step."""
        if self.path is not None:
            write_json(self.path, {"key": key} | content)

    def write_with_model(self, key: str, content: dict[str, Any], model: Any, number: int) -> None:
        """Write file and model; `content["more"]["model"]` is the model's name.

        The model first: a checkpoint that is cut short still names the model of the round before.
        """
        if self.path is None:
            return
        name = f"{self.path.name}.{number}.keras"
        save_keras(model, self.path.with_name(name), overwrite=True)
        self.write(key, content | {"more": content["more"] | {"model": name}})
        own = re.compile(rf"{re.escape(self.path.name)}\.\d+\.keras")
        for old in self.path.parent.iterdir():
            if old.name != name and own.fullmatch(old.name):
                old.unlink()

    def model(self, name: str) -> Any:
        """The model next to the file.

        Raises:
            FileError: it is missing or damaged.
        """
        if self.path is None:
            raise FileError(f"a {self._work} without a checkpoint has kept no model.")
        path = self.path.with_name(name)
        try:
            return load_keras(path)
        except FileError as error:
            raise FileError(f"checkpoint '{self.path}' needs its model: {error} Delete the checkpoint.") from error
