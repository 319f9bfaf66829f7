"""Write `.keras` files."""

from __future__ import annotations

import os
from pathlib import Path

import keras

from keras_filterprune.errors import ExportError
from keras_filterprune.files import check_destination, replacing


def save_keras(model: keras.Model, path: str | os.PathLike, overwrite: bool = False) -> None:
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
