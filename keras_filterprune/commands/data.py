"""Samples as the command line takes them: .npy and .npz files, folders of images, and data sets by name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from keras_filterprune.commands.datasets import read_dataset
from keras_filterprune.commands.images import Images, read_folder
from keras_filterprune.commands.read import Read
from keras_filterprune.errors import CalibrationDataError

# What comes before the name of a data set of TensorFlow Datasets.
_NAMED = "tfds:"
# Black and white as files have them.
_PIXELS = (0.0, 255.0)
# What .npy and .npz files begin with.
_STARTS = (b"\x93NUMPY", b"PK")


def add_data(parser: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    """Samples, and the numbers that pixels are for the network."""
    parser.add_argument(
        "--data",
        metavar="PATH",
        required=required,
        help=f"{what}: an .npy array; an .npz archive of x and, where there are labels, y; a folder of images, "
        f"whose folders are classes; or {_NAMED}NAME, a data set of TensorFlow Datasets",
    )
    parser.add_argument(
        "--pixels",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="what the network expects for black and for white, where samples are images (0 255)",
    )


def read_data(options: argparse.Namespace, model: Any) -> Read:
    """The samples that `--data` names; no inputs without it."""
    if options.data is None:
        return Read(None)
    images = Images(model, options.data, *(options.pixels or _PIXELS))
    if options.data.startswith(_NAMED):
        return read_dataset(options.data.removeprefix(_NAMED), images)
    path = Path(options.data)
    if path.is_dir():
        return read_folder(path, images)
    if options.pixels is not None:
        raise CalibrationDataError(
            f"--pixels is for images; arrays are given as the network takes them. Received: --pixels with {path}."
        )
    return _read_arrays(path)


def _read_arrays(path: Path) -> Read:
    wanted = f"Expected an .npy array, an .npz archive of x and y, a folder of images, or {_NAMED}NAME."
    try:
        with open(path, "rb") as file:
            if not file.peek(len(_STARTS[0])).startswith(_STARTS):
                raise ValueError("it is neither an .npy nor an .npz file")
            content = np.load(file, allow_pickle=False)
            arrays = {name: content[name] for name in content.files} if hasattr(content, "files") else content
    # A damaged header makes NumPy raise almost anything.
    except Exception as error:
        raise CalibrationDataError(f"cannot read samples from {path}: {error}. {wanted}") from error
    if isinstance(arrays, np.ndarray):
        return Read(arrays)
    labels = arrays.pop("y", None)
    if not arrays:
        raise CalibrationDataError(f"cannot read samples from {path}: it holds labels alone. {wanted}")
    inputs = arrays if len(arrays) > 1 else next(iter(arrays.values()))
    return Read(inputs, labels)
