"""Calibration data in every form that `fit` takes: its first samples, read once and held, as flat model inputs."""

from __future__ import annotations

import functools
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, overload

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.ragged import dense, even, padding_of

# Samples that are read of any data, whatever is measured on them.
SAMPLES = 2048
_PART = 128
_HOW_TO_READ = " np.load reads files of arrays, keras.utils.image_dataset_from_directory folders of images."
# The most values of all samples' inputs together (512 MiB in float32).
_HELD_VALUES = 2**27


class Part(NamedTuple):
    """Some samples: flat inputs, and labels and weights as they were given, None where there are none."""

    inputs: list[np.ndarray]
    labels: Any = None
    weights: Any = None

    def cut(self, which: slice) -> Part:
        """Some of them."""
        return Part(*(_cut(given, which) for given in self))


class Samples:
    """The first samples of calibration data: read when they are asked for, once, and held.

    What criteria and compensators are given as `data`: generators can be gone through only once, and endless data never
    ends. `read` gives arrays.

    Args:
        data: an array of shape (samples, ...); a list with one array per input or a dict by input name; a tuple
            `(inputs, labels)` or `(inputs, labels, sample weights)`; or batches of these: a list, a generator, a
            `tf.data.Dataset`, a `keras.utils.PyDataset` (of unknown length, too), a PyTorch `DataLoader`, or any other
            iterable; or a function that yields batches (TensorFlow Lite's `representative_dataset`). Weights of samples
            count where the compiled loss does.

    Attributes:
        share: of the rows that are sampled of what layers read, how many are worth it for these samples (1).

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> graph = kfp.analyze(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)]))
        >>> data = kfp.criteria.Samples((np.zeros((200, 8, 8, 3)), np.arange(200)))
        >>> [(part.inputs[0].shape, part.labels.shape) for part in data.read(graph.view)]
        [((128, 8, 8, 3), (128,)), ((72, 8, 8, 3), (72,))]
    """

    share = 1.0

    def __init__(self, data: Any):
        self._data = data
        self._stream: Iterator[Part] | None = None
        self._parts: list[Part] = []
        self._warned = False

    @overload
    @classmethod
    def of(cls, data: None) -> None: ...

    @overload
    @classmethod
    def of(cls, data: Any) -> Samples: ...

    @classmethod
    def of(cls, data: Any) -> Samples | None:
        """Data as samples that may be read several times; None without data."""
        return data if data is None or isinstance(data, cls) else cls(data)

    def read(self, view: ModelView, most: int = SAMPLES) -> list[Part]:
        """Batches of up to 128 samples: flat inputs in the order of `view.inputs`, labels and weights as given.

        Args:
            view: the model the data is for.
            most: samples (2 048); fewer where their inputs exceed 512 MiB.

        Returns:
            [(inputs, labels)]: a list of arrays, one per input of the model, and what came with them, None without.

        Raises:
            CalibrationDataError: there is no data, or it is not finite, or does not fit the inputs.
        """
        if self._stream is None:
            self._stream = _slices(self._data, view)
        count = sum(len(part.inputs[0]) for part in self._parts)
        while count < most and (part := next(self._stream, None)) is not None:
            self._parts.append(part)
            count += len(part.inputs[0])
            most = max(2, min(most, _HELD_VALUES // max(1, sum(math.prod(x.shape[1:]) for x in part.inputs))))
        if not count:
            raise _nothing()
        taken, left = [], most
        for part in self._parts:
            if left > 0:
                taken.append(part.cut(slice(left)))
            left -= len(part.inputs[0])
        if count >= most and not self._warned:
            self._warned = _warn_if_sorted([part.labels for part in taken], view)
        return _even(taken, view)


def _even(parts: list[Part], view: ModelView) -> list[Part]:
    """Parts of one length each, sequences that are shorter padded; labels and weights of positions with zeros."""
    if len({tuple(x.shape[1:] for x in part.inputs) for part in parts}) == 1:
        return parts
    fill = [functools.partial(padding_of, view, index) for index in range(len(view.inputs))]
    inputs = even([part.inputs for part in parts], fill)
    others = [keras.tree.flatten((part.labels, part.weights)) for part in parts]
    others = even(others, [lambda _: 0] * len(others[0])) if len({len(found) for found in others}) == 1 else others
    return [
        Part(arrays, *keras.tree.pack_sequence_as((part.labels, part.weights), rest))
        for part, arrays, rest in zip(parts, inputs, others, strict=True)
    ]


def check_data(data: Any, view: ModelView) -> None:
    """Look at arrays before any work starts; streams of batches are looked at as they come."""
    data = data._data if isinstance(data, Samples) else data
    if data is not None and not _is_one_batch(data, view):
        batches_of(data)
    elif data is not None and next(_slices(data, view), None) is None:
        raise _nothing()


def _nothing() -> CalibrationDataError:
    return CalibrationDataError("calibration data holds no samples. A few hundred unlabelled ones are enough.")


def _slices(data: Any, view: ModelView) -> Iterator[Part]:
    """Go through data once, in slices of a batch; nothing of an array is copied or looked at before it is reached."""
    for batch in [data] if _is_one_batch(data, view) else batches_of(data):
        inputs, labels, weights = _split(batch, view)
        inputs, labels, weights = _arrays(inputs, view), _labels(labels), _labels(weights)
        _check_shapes(inputs, labels, view)
        for start in range(0, len(inputs[0]), _PART):
            cut = Part(inputs, labels, weights).cut(slice(start, start + _PART))
            _check_finite(cut.inputs, view)
            yield cut


def _is_one_batch(data: Any, view: ModelView) -> bool:
    """Whether the data is one structure of arrays, not a stream of them."""
    if not isinstance(data, list):
        return isinstance(data, np.ndarray | tuple | Mapping) or keras.ops.is_tensor(data)
    if data and all(isinstance(entry, tuple | Mapping) for entry in data):
        return False
    # Several arrays for a model of one input are batches of it.
    expected = [view.calls[ref.call].op.shape for ref in view.inputs]
    return len(expected) != 1 or len(data) < 2 or any(rank(entry) != len(expected[0]) for entry in data)


def batches_of(data: Any) -> Iterable[Any]:
    """Data that is no single batch, batch by batch."""
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        return (data[i] for i in (itertools.count() if count is None else range(count)))
    if callable(data) and not isinstance(data, Iterable | keras.Layer):
        data = data()
    if isinstance(data, str | bytes | os.PathLike) or not isinstance(data, Iterable):
        named = isinstance(data, str | os.PathLike)
        raise CalibrationDataError(
            f"calibration data is an array, a list or dict of arrays, (x, y), or batches of them. Received: "
            f"{type(data).__name__}.{_HOW_TO_READ * named}"
        )
    return data


def _split(batch: Any, view: ModelView) -> tuple[list[Any], Any, Any]:
    """Flat inputs, labels and weights of one batch."""
    names = [view.calls[ref.call].path for ref in view.inputs]
    labels = weights = None
    if (isinstance(batch, tuple) and batch) or (isinstance(batch, list) and len(batch) > 1 and _nested(batch[0])):
        batch, labels, weights = (*batch, None, None)[:3]
    elif isinstance(batch, list) and len(names) < len(batch) <= len(names) + 2:
        # PyTorch's loaders hand over flat lists: all inputs, labels, sample weights.
        batch, labels, weights = batch[: len(names)], *(*batch[len(names) :], None)[:2]
    if isinstance(batch, Mapping):
        if not set(names) <= set(batch):
            keys = sorted(map(str, batch))
            raise CalibrationDataError(f"expected one array per model input {names}. Received: keys={keys}.")
        return [batch[name] for name in names], labels, weights
    arrays = list(batch) if isinstance(batch, list | tuple) else [batch]
    if len(arrays) != len(names):
        raise CalibrationDataError(f"expected one array per model input {names}. Received: {len(arrays)} arrays.")
    return arrays, labels, weights


def rank(value: Any) -> int | None:
    """Number of axes of an array, None for what is ragged."""
    try:
        return np.ndim(value)
    except ValueError:
        return None


def _nested(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping)


def _arrays(values: list[Any], view: ModelView) -> list[np.ndarray]:
    dtypes = [view.calls[ref.call].op.dtype for ref in view.inputs]
    return [
        _array(dense(value, view, index), dtype == "string")
        for index, (value, dtype) in enumerate(zip(values, dtypes, strict=True))
    ]


def _array(value: Any, text: bool) -> np.ndarray:
    try:
        array = keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else np.asarray(value)
    except ValueError as error:
        raise CalibrationDataError(f"calibration data is ragged: {error}. Expected arrays of one shape.") from error
    if array.dtype.kind not in ("SUO" if text else "fiub"):
        raise CalibrationDataError(f"calibration data is numeric. Received: {type(value).__name__} of {array.dtype}.")
    return array


def _labels(labels: Any) -> Any:
    """Labels as arrays where they are that; what cannot be one is found out by whoever looks at them."""
    if isinstance(labels, list | tuple) and labels and all(np.ndim(entry) == 0 for entry in labels):
        return np.asarray(labels)

    def array(value: Any) -> Any:
        try:
            return value if value is None else np.asarray(value)
        except ValueError:
            return np.array("ragged")

    return None if labels is None else keras.tree.map_structure(array, labels)


def _cut(labels: Any, part: slice) -> Any:
    return labels if labels is None else keras.tree.map_structure(lambda a: a[part] if np.ndim(a) else a, labels)


def _check_shapes(inputs: list[np.ndarray], labels: Any, view: ModelView) -> None:
    for array, ref in zip(inputs, view.inputs, strict=True):
        call = view.calls[ref.call]
        expected = tuple(call.op.shape)
        if not _fits(array.shape, expected):
            shape = ", ".join(map(str, expected[1:]))
            single = _fits((1, *array.shape), expected)
            raise CalibrationDataError(
                f"calibration data for input '{call.path}' has shape {array.shape}; expected (samples, {shape})."
                + " These are single samples: put them into batches, dataset.batch(32)." * single
            )
        if len(array) != len(inputs[0]):
            counts = [len(x) for x in inputs]
            raise CalibrationDataError(f"every input needs the same number of samples. Received: {counts}.")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(e in (None, n) for n, e in zip(shape[1:], expected[1:], strict=True))


def _check_finite(inputs: list[np.ndarray], view: ModelView) -> None:
    for array, ref in zip(inputs, view.inputs, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            path = view.calls[ref.call].path
            raise CalibrationDataError(f"calibration data for input '{path}' holds NaN or infinite values.")


def classes_of(view: ModelView) -> int | None:
    """Number of classes of a model with one output of class scores, else None."""
    shapes = [view.calls[ref.call].output_shapes[ref.index] for ref in view.outputs]
    classes = shapes[0][-1] if len(shapes) == 1 and len(shapes[0]) == 2 else None
    return None if classes is None else max(2, classes)


def class_numbers_of(labels: Any) -> np.ndarray | None:
    """Class numbers (samples,) of labels that are those, or one-hot; else None."""
    if not isinstance(labels, np.ndarray) or labels.ndim == 0 or labels.dtype.kind not in "fiub":
        return None
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1 or (labels != np.round(labels)).any():
        return None
    return labels[:, 0].astype(int)


def _warn_if_sorted(labels: list[Any], view: ModelView) -> bool:
    """Warn where the first samples, which alone are read, are sorted by class: they are those of the first classes."""
    classes = classes_of(view)
    parts = [part for part in map(class_numbers_of, labels) if part is not None]
    if classes is None or len(parts) < len(labels):
        return False
    numbers = np.concatenate(parts)
    found = len(np.unique(numbers))
    if found == classes or (np.diff(numbers) < 0).any():
        return False
    warnings.warn(
        f"the first {len(numbers):,} samples, which are all that is read, are sorted by class and hold {found} of "
        f"{classes}: what is measured on them says little of the others. Shuffle the data first.",
        stacklevel=2,
    )
    return True
