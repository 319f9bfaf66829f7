"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a draft path of the same name next to `path`; on success the draft takes its place.

    Args:
        path: the file to write.

    Yields:
        The draft's path.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder, path.name)
        yield draft
        os.replace(draft, path)


def write_json(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write values as JSON; an existing file is replaced only by a complete one.

    Args:
        path: the file to write.
        values: JSON-ready values.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
