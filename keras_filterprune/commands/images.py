"""Images as inputs of a model: in its size and its colours, with its numbers for pixels."""

from __future__ import annotations

import io
import math
import random
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_filterprune.checks import check_packages
from keras_filterprune.commands.read import Read
from keras_filterprune.errors import CalibrationDataError, FileError

# Images that are read of any number.
MOST = 2048
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_COLOURS = {1: "grayscale", 3: "rgb", 4: "rgba"}


class Images:
    """How images become inputs.

    Args:
        model: takes them.
        source: where they come from, for messages.
        black, white: what the model expects for them.
    """

    def __init__(self, model: Any, source: str, black: float, white: float):
        self._model, self._source, self._black, self._white = model, source, black, white

    def read(self, files: Iterable[tuple[Path | io.BytesIO, str]]) -> np.ndarray:
        """Images (n, height, width, colours) of encoded files, each with its name."""
        size, colours = self.check()
        pixels = np.stack([_read(file, name, size, colours) for file, name in files])
        return (self._black + pixels * ((self._white - self._black) / 255)).astype("float32")

    @property
    def normalization(self) -> tuple[float, float] | None:
        """(mean, std) that make inputs of pixels; where they are turned about, there are none."""
        std = 255 / (self._white - self._black)
        return (0.0 - self._black * std, std) if std > 0 else None

    @property
    def units(self) -> int | None:
        """How many numbers the model's only output has; None where there are several, or any number."""
        outputs: Any = getattr(self._model, "outputs", None) or ()
        return outputs[0].shape[-1] if len(outputs) == 1 else None

    def may_be_classes(self, count: int) -> bool:
        """Whether the model may tell so many classes apart."""
        return self.units in (None, count) or (self.units, count) == (1, 2)

    def check(self) -> tuple[tuple[int, int], str]:
        """Height and width, and the colours, of the images that the model takes.

        Raises:
            CalibrationDataError: it takes none, or no numbers can stand for pixels.
        """
        shapes = [tuple(tensor.shape[1:]) for tensor in getattr(self._model, "inputs", None) or ()]
        if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0] or shapes[0][2] not in _COLOURS:
            raise CalibrationDataError(
                f"images are for a model with one input (height, width, 1, 3 or 4), all sizes fixed. Received: "
                f"{self._source} for inputs {shapes}. Give an .npz archive."
            )
        black, white = self._black, self._white
        if not (math.isfinite(black) and math.isfinite(white) and black != white):
            raise CalibrationDataError(
                f"--pixels are two different numbers, such as 0 1. Received: {black:g} {white:g}."
            )
        check_packages("reading images", "images", "PIL.Image")
        height, width, channels = shapes[0]
        return (height, width), _COLOURS[channels]


def read_folder(folder: Path, images: Images) -> Read:
    """Images of a folder in random order, at most 2 048."""
    images.check()
    files, classes = _image_files(folder)
    if classes and not images.may_be_classes(len(classes)):
        warnings.warn(
            f"folders in {folder}: {len(classes)}, classes of the model: {images.units}; so no labels are read.",
            stacklevel=2,
        )
        classes = []
    random.Random(0).shuffle(files)
    files = files[:MOST]
    inputs = images.read([(file, str(file)) for file, _ in files])
    labels = np.array([label for _, label in files]) if classes else None
    return Read(inputs, labels, tuple(classes), images.normalization)


def _image_files(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """(file, class number) of all images, and the names of the classes, which are folders in alphabetical order."""
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        alone = [(file, 0) for file in _images_of(folder.iterdir())]
        files = [(file, n) for n, name in enumerate(classes) for file in _images_of((folder / name).rglob("*"))]
    except OSError as error:
        raise FileError(f"cannot read the folder {folder}: {error}.") from error
    if alone and files:
        raise CalibrationDataError(
            f"a folder holds images, or a folder of them for each class. Received: {folder}, with both "
            f"{alone[0][0].name} and {files[0][0].relative_to(folder)}."
        )
    if not alone and not files:
        raise CalibrationDataError(
            f"no images in {folder}; expected {', '.join(sorted(_SUFFIXES))}, or a folder of them for each class."
        )
    return (alone, []) if alone else (files, classes)


def _images_of(entries: Iterable[Path]) -> list[Path]:
    return sorted(file for file in entries if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."))


def _read(file: Path | io.BytesIO, name: str, size: tuple[int, int], colours: str) -> np.ndarray:
    from keras.utils import img_to_array, load_img
    from PIL import UnidentifiedImageError

    try:
        image = load_img(file, color_mode=colours, target_size=size, interpolation="bilinear")
        return img_to_array(image, data_format="channels_last")
    except UnidentifiedImageError as error:
        raise CalibrationDataError(f"cannot read the image {name}: it is damaged, or no image.") from error
    # A damaged image makes Pillow raise almost anything.
    except Exception as error:
        raise CalibrationDataError(f"cannot read the image {name}: {error}") from error
