"""Calibration samples as flat model inputs, a slice at a time, and labels next to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.data import SAMPLES, Part, Samples, class_numbers_of, classes_of
from keras_filterprune.probe.memory import MOST_SAMPLES, all_values, at_once, even_slices, live_values


class Inputs:
    """Flat model inputs of the first samples: held as they were read, and made into tensors a slice at a time.

    Args:
        parts: what `Samples.read` gives.
        view: the model the data is for.
        least: samples that are needed (2: a single one has no variance).
        share: see `Samples` (1).

    Raises:
        CalibrationDataError: there are fewer.
    """

    def __init__(self, parts: Sequence[Part], view: ModelView, least: int = 2, share: float = 1.0):
        self.share = share
        self._parts = [part.inputs for part in parts]
        self._dtypes = [view.calls[ref.call].op.dtype for ref in view.inputs]
        self._starts = np.cumsum([0, *(len(arrays[0]) for arrays in self._parts)])
        self._view = view
        if len(self) < least:
            raise CalibrationDataError(
                f"calibration needs at least {least} samples, better a few hundred. Received: {len(self)}."
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, part: slice) -> list[Any]:
        """Tensors (samples, ...) of some samples, one per input of the model."""
        return [keras.ops.convert_to_tensor(x, dtype) for x, dtype in zip(self.arrays(part), self._dtypes, strict=True)]

    def arrays(self, part: slice = slice(None)) -> list[np.ndarray]:
        """Arrays (samples, ...) of some samples, one per input of the model."""
        start, stop, _ = part.indices(len(self))
        found = [
            [x[max(start - first, 0) : stop - first] for x in arrays]
            for arrays, first in zip(self._parts, self._starts, strict=False)
            if first < stop and start < first + len(arrays[0])
        ]
        return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]

    def take(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Arrays (samples, ...) of samples by their numbers, one per input of the model, in its data types."""
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        places = list(zip(parts.tolist(), (numbers - self._starts[parts]).tolist(), strict=True))
        return [
            np.stack([self._parts[part][index][place] for part, place in places]).astype(dtype)
            for index, dtype in enumerate(self._dtypes)
        ]

    @property
    def values(self) -> int:
        """Values of one sample."""
        return sum(math.prod(x.shape[1:]) for x in self._parts[0])

    @cached_property
    def live(self) -> list[int]:
        """Values of one sample that are alive at each call."""
        return live_values(self._view, self.values)

    def spread(self, most: int) -> Inputs:
        """At most so many of the samples, at equal distances: data may be sorted."""
        step, found = -(-len(self) // most), copy.copy(self)
        parts = zip(self._starts.tolist(), self._parts, strict=False)
        found._parts = [[x[-start % step :: step] for x in arrays] for start, arrays in parts]
        found._parts = [arrays for arrays in found._parts if len(arrays[0])]
        found._starts = np.cumsum([0, *(len(arrays[0]) for arrays in found._parts)])
        return found

    def slices(self, most: int = MOST_SAMPLES) -> list[slice]:
        """Samples that are run together: at most `most` of them (512), and 512 MiB of activations."""
        return even_slices(len(self), at_once(max(self.live), most))

    def differentiable(self, samples: slice = slice(None)) -> list[slice]:
        """Some of the samples in slices of which all activations fit into memory: 128, or a lower power of two.

        TensorFlow 2.21 with oneDNN crashes in the kernel gradient of strided 1x1 convolutions over an odd number of
        channels for other numbers of samples, 3 and 17 say.
        """
        start, stop, _ = samples.indices(len(self))
        most = min(128, at_once(all_values(self._view, self.values)))
        slices = []
        while start < stop:
            size = 1 << (min(most, stop - start).bit_length() - 1)
            slices.append(slice(start, start + size))
            start += size
        return slices


def calibration_inputs(data: Any, view: ModelView, most: int = SAMPLES, least: int = 2) -> Inputs:
    """The first samples, at least `least` (2) and at most `most` (2 048), without their labels.

    Raises:
        CalibrationDataError: see `Samples` and `Inputs`.
    """
    samples = Samples.of(data)
    return Inputs(samples.read(view, most), view, least, samples.share)


def labelled_inputs(data: Any, view: ModelView, purpose: str, most: int = SAMPLES) -> tuple[Inputs, np.ndarray]:
    """`calibration_inputs` with their class numbers, int64 of shape (samples,); one-hot labels are converted.

    Args:
        purpose: what needs the labels, for messages.

    Raises:
        CalibrationDataError: also if there are no labels, or not one class of the model's per sample.
    """
    inputs, labels, _ = inputs_and_labels(data, view, purpose, most)
    found = class_numbers_of(labels)
    if found is None or len(found) != len(inputs):
        shapes = keras.tree.map_structure(np.shape, labels)
        raise CalibrationDataError(
            f"{purpose} expects one class number per sample. Received: labels of shape {shapes} for "
            f"{len(inputs)} samples."
        )
    classes = classes_of(view)
    if classes is not None and not 0 <= found.min() <= found.max() < classes:
        raise CalibrationDataError(
            f"{purpose} expects class numbers from 0 to {classes - 1}, which the model has outputs for. Received: "
            f"{found.min()} to {found.max()}."
        )
    return inputs, found


def inputs_and_labels(data: Any, view: ModelView, purpose: str, most: int = SAMPLES) -> tuple[Inputs, Any, Any]:
    """`calibration_inputs` with labels and weights of any kind: an array with a row per sample, or a structure of such.

    Weights are None where the data has none.

    Raises:
        CalibrationDataError: also if there are no labels, or they cannot be put together.
    """
    parts = Samples.of(data).read(view, most)
    if any(part.labels is None for part in parts):
        raise CalibrationDataError(
            f"{purpose} needs labelled samples: pass data=(x, y) or batches of them, not from the test split. What "
            "measures an 'error' needs no labels."
        )
    try:
        labels, weights = (
            keras.tree.map_structure(
                lambda *arrays: None if all(array is None for array in arrays) else np.concatenate(arrays), *given
            )
            for given in zip(*(part[1:] for part in parts), strict=True)
        )
    except (TypeError, ValueError) as error:
        raise CalibrationDataError(f"labels or weights differ from batch to batch: {error}.") from error
    return Inputs(parts, view), labels, weights


def check_class_scores(view: ModelView, purpose: str) -> None:
    """Raise `CalibrationDataError` unless a model has one output of class scores."""
    shapes = [view.calls[ref.call].output_shapes[ref.index] for ref in view.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise CalibrationDataError(
            f"{purpose} needs a model with one output of class scores, (samples, classes). Received: outputs of shapes "
            f"{[shape[1:] for shape in shapes]} per sample. What measures an 'error' takes any outputs."
        )
