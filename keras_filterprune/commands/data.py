"""Samples as the command line takes them: .npy and .npz files, and folders of images."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_filterprune.checks import check_packages
from keras_filterprune.errors import CalibrationDataError, FileError

_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_COLOURS = {1: "grayscale", 3: "rgb", 4: "rgba"}
_MOST = 2048


class Read(NamedTuple):
    """Inputs, an array or one by name; labels, None where there are none; of images, names of classes, and (mean, std)
    that make inputs of pixels."""

    inputs: Any
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    normalization: tuple[float, float] | None = None

    @property
    def data(self) -> Any:
        """As functions take it: `(x, y)`, or x alone."""
        return self.inputs if self.labels is None else (self.inputs, self.labels)

    def metadata(self, model: Any) -> Any:
        """What a `.tflite` file can say of itself; of classes, only where the model has as many."""
        from keras_filterprune.export import Metadata

        outputs: Any = getattr(model, "outputs", None) or ()
        fits = len(outputs) == 1 and outputs[0].shape[-1] == len(self.classes)
        return Metadata(list(self.classes) if fits else None, self.normalization)


def add_data(parser: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    """Samples, and the numbers that pixels are for the network."""
    parser.add_argument(
        "--data",
        metavar="PATH",
        required=required,
        help=f"{what}: an .npy array; an .npz archive of x and, where there are labels, y; or a folder of images, "
        "whose folders are classes",
    )
    parser.add_argument(
        "--pixels",
        type=float,
        nargs=2,
        default=(0.0, 255.0),
        metavar=("BLACK", "WHITE"),
        help="what the network expects for black and for white, in a folder of images (0 255)",
    )


def read_data(options: argparse.Namespace, model: Any) -> Read:
    """The samples that `--data` names; no inputs without it."""
    if options.data is None:
        return Read(None)
    path = Path(options.data)
    return _read_images(path, model, options.pixels) if path.is_dir() else _read_arrays(path)


def _read_arrays(path: Path) -> Read:
    wanted = "Expected an .npy array, an .npz archive of x and y, or a folder of images."
    try:
        with open(path, "rb") as file:
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


def _read_images(folder: Path, model: Any, pixels: Sequence[float]) -> Read:
    """Images in random order, at most 2 048, in the size of the model's input."""
    size, colours = _image_of(model, folder)
    black, white = pixels
    if not (math.isfinite(black) and math.isfinite(white) and black != white):
        raise CalibrationDataError(f"--pixels are two different numbers, such as 0 1. Received: {black:g} {white:g}.")
    files, classes = _image_files(folder)
    random.Random(0).shuffle(files)
    files = files[:_MOST]
    check_packages("a folder of images", "images", "PIL.Image")
    inputs = np.stack([_read_image(file, size, colours) for file, _ in files])
    inputs = (black + inputs * ((white - black) / 255)).astype("float32")
    labels = np.array([label for _, label in files]) if classes else None
    std = 255 / (white - black)
    # Turned about, they have none.
    return Read(inputs, labels, tuple(classes), (0.0 - black * std, std) if std > 0 else None)


def _image_of(model: Any, folder: Path) -> tuple[tuple[int, int], str]:
    """Height and width, and the colours, of the images that a model takes."""
    shapes = [tuple(tensor.shape[1:]) for tensor in getattr(model, "inputs", None) or ()]
    if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0] or shapes[0][2] not in _COLOURS:
        raise CalibrationDataError(
            f"a folder of images is for a model with one input (height, width, 1, 3 or 4), all sizes fixed. Received: "
            f"{folder} for inputs {shapes}. Give an .npz archive."
        )
    height, width, channels = shapes[0]
    return (height, width), _COLOURS[channels]


def _image_files(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """(file, class number) of all images, and the names of the classes, which are folders in alphabetical order."""
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        places = [folder / name for name in classes] or [folder]
        files = [
            (file, label)
            for label, place in enumerate(places)
            for file in sorted(place.rglob("*"))
            if file.suffix.lower() in _IMAGES and not file.name.startswith(".")
        ]
    except OSError as error:
        raise FileError(f"cannot read the folder {folder}: {error}.") from error
    if not files:
        raise CalibrationDataError(
            f"no images in {folder}; expected {', '.join(sorted(_IMAGES))}, or a folder a class."
        )
    return files, classes


def _read_image(file: Path, size: tuple[int, int], colours: str) -> np.ndarray:
    from keras.utils import img_to_array, load_img

    try:
        image = load_img(file, color_mode=colours, target_size=size, interpolation="bilinear")
        return img_to_array(image, data_format="channels_last")
    # A damaged image makes Pillow raise almost anything.
    except Exception as error:
        raise CalibrationDataError(f"cannot read the image {file}: {error}") from error
