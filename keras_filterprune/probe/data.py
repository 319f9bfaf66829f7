"""Calibration data in every form Keras users have it, as batches of flat model inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ModelView

BATCH = 128


def input_batches(data: Any, view: ModelView) -> Iterator[list[np.ndarray]]:
    """Go through calibration data once, labels left out; see `labelled_batches`."""
    for inputs, _ in labelled_batches(data, view, labelled=False):
        yield inputs


def labelled_batches(
    data: Any, view: ModelView, labelled: bool = True
) -> Iterator[tuple[list[np.ndarray], np.ndarray | None]]:
    """Go through calibration data once.

    Args:
        data: an array of shape (samples, ...); a list with one array per input or a dict by input name; a tuple
            `(inputs, labels)`; or a `tf.data.Dataset`, `keras.utils.PyDataset` or other iterable of batches of these.
        view: the model the data is for.
        labelled: look at the labels (True).

    Yields:
        (inputs, labels): flat inputs of one batch, arrays of shape (batch, ...), in the order of `view.inputs`; the
        second entry of the tuple, or None.

    Raises:
        CalibrationDataError: there is no data, or it is not finite, or does not fit the inputs.
    """
    found = False
    for batch in [data] if _is_batch(data) else _iterate(data):
        inputs = [_array(x) for x in _flat(batch, view)]
        _check(inputs, view)
        labels = _labels(batch[1]) if labelled and isinstance(batch, tuple) and len(batch) > 1 else None
        for start in range(0, len(inputs[0]), BATCH):
            found = True
            part = slice(start, start + BATCH)
            yield [x[part] for x in inputs], None if labels is None else labels[part]
    if not found:
        raise CalibrationDataError("calibration data holds no samples. A few hundred unlabelled ones are enough.")


def _is_batch(data: Any) -> bool:
    """Whether the data is one structure of arrays, not a stream of them."""
    return isinstance(data, np.ndarray | list | tuple | Mapping) or keras.ops.is_tensor(data)


def _iterate(data: Any) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(len(data)))
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise CalibrationDataError(
            f"calibration data is an array, a list or dict of arrays, (x, y), or batches of them. Received: "
            f"{type(data).__name__}."
        )
    return data


def check_data(data: Any, view: ModelView) -> None:
    """Look at arrays before any work starts; streams of batches are looked at as they come."""
    if data is not None and not _is_batch(data):
        _iterate(data)
    elif data is not None:
        next(input_batches(data, view))


def _flat(batch: Any, view: ModelView) -> list[Any]:
    names = [view.calls[ref.call].path for ref in view.inputs]
    if isinstance(batch, tuple) and batch:
        batch = batch[0]
    if isinstance(batch, Mapping):
        if not set(names) <= set(batch):
            keys = sorted(map(str, batch))
            raise CalibrationDataError(f"expected one array per model input {names}. Received keys: {keys}.")
        return [batch[name] for name in names]
    arrays = list(batch) if isinstance(batch, list | tuple) else [batch]
    if len(arrays) != len(names):
        raise CalibrationDataError(f"expected one array per model input {names}. Received: {len(arrays)} arrays.")
    return arrays


def _labels(value: Any) -> np.ndarray | None:
    try:
        array = None if value is None else np.asarray(value)
    except ValueError:
        array = np.array("ragged")
    if array is not None and (array.ndim == 0 or array.dtype.kind not in "fiub"):
        raise CalibrationDataError(f"'accuracy' expects one class number per sample. Received: {type(value).__name__}.")
    return array


def _array(value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise CalibrationDataError(f"calibration data is ragged: {error}. Expected arrays of one shape.") from error
    if array.dtype.kind not in "fiub":
        raise CalibrationDataError(f"calibration data is numeric. Received: {type(value).__name__} of {array.dtype}.")
    return array


def _check(inputs: list[np.ndarray], view: ModelView) -> None:
    for array, ref in zip(inputs, view.inputs, strict=True):
        call = view.calls[ref.call]
        expected = tuple(call.op.shape)
        fits = array.ndim == len(expected) and all(
            e in (None, n) for n, e in zip(array.shape[1:], expected[1:], strict=True)
        )
        if not fits:
            raise CalibrationDataError(
                f"calibration data for input '{call.path}' has shape {array.shape}; expected (samples, "
                f"{', '.join(map(str, expected[1:]))})."
            )
        if len(array) != len(inputs[0]):
            counts = [len(x) for x in inputs]
            raise CalibrationDataError(f"every input needs the same number of samples. Received: {counts}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CalibrationDataError(f"calibration data for input '{call.path}' holds NaN or infinite values.")


SAMPLES = 2048
# The largest activation of all samples together, in float32 values: 256 MiB.
_LARGEST = 2**26


def calibration_inputs(data: Any, view: ModelView, most: int = SAMPLES) -> list[Any]:
    """Flat model inputs for a pass that keeps activations in memory: the first samples, at most `most` (2 048).

    Fewer are taken where the largest activation would exceed 256 MiB: wide images give many rows each.

    Raises:
        CalibrationDataError: see `labelled_batches`; or there is a single sample, which has no variance.
    """
    return _collected(data, view, most, labelled=False)[0]


def labelled_inputs(
    data: Any, view: ModelView, purpose: str, most: int = SAMPLES, classes: bool = True
) -> tuple[list[Any], np.ndarray]:
    """`calibration_inputs` with their class numbers, int64 of shape (samples,); one-hot labels are converted.

    Args:
        purpose: what needs the labels, for messages.
        classes: labels are numbers of the model's classes (True).

    Raises:
        CalibrationDataError: also if there are no labels, or not one class number per sample.
    """
    inputs, labels = _collected(data, view, most, labelled=True)
    if labels is None:
        raise CalibrationDataError(
            f"{purpose} needs labelled samples: pass data=(x, y) or batches of them, not from the test split. What "
            "measures an 'error' needs no labels."
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1 or len(labels) != len(inputs[0]) or (labels != np.round(labels)).any():
        raise CalibrationDataError(
            f"{purpose} expects one class number per sample. Received: labels of shape {labels.shape} for "
            f"{len(inputs[0])} samples."
        )
    if classes:
        _check_classes(labels, view, purpose)
    return inputs, labels[:, 0].astype(int)


def _check_classes(labels: np.ndarray, view: ModelView, purpose: str) -> None:
    shape = view.calls[view.outputs[0].call].output_shapes[view.outputs[0].index]
    # One score tells two classes apart; what has other outputs is refused elsewhere.
    last = max(shape[-1], 2) - 1
    if len(view.outputs) == 1 and len(shape) == 2 and not 0 <= labels.min() <= labels.max() <= last:
        raise CalibrationDataError(
            f"{purpose} expects class numbers from 0 to {last}, as the model's output has. Received: labels from "
            f"{labels.min():g} to {labels.max():g}."
        )


def check_class_scores(view: ModelView, purpose: str) -> None:
    """Raise `CalibrationDataError` unless a model has one output of class scores."""
    shapes = [view.calls[ref.call].output_shapes[ref.index] for ref in view.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise CalibrationDataError(
            f"{purpose} needs a model with one output of class scores, (samples, classes). Received: outputs of shapes "
            f"{[shape[1:] for shape in shapes]} per sample. What measures an 'error' takes any outputs."
        )


def _collected(data: Any, view: ModelView, most: int, labelled: bool) -> tuple[list[Any], np.ndarray | None]:
    largest = max(math.prod(s[1:]) for call in view.calls for s in call.output_shapes if s and None not in s[1:])
    limit = max(2, min(most, _LARGEST // largest))
    batches, labels, found = [], [], 0
    for batch, own in labelled_batches(data, view, labelled):
        batches.append(batch)
        labels.append(own)
        found += len(batch[0])
        if found >= limit:
            break
    if found < 2:
        raise CalibrationDataError("calibration needs at least 2 samples, better a few hundred. Received: 1.")
    inputs = [np.concatenate(parts)[:limit] for parts in zip(*batches, strict=True)]
    tensors = [
        keras.ops.convert_to_tensor(x, view.calls[ref.call].op.dtype)
        for x, ref in zip(inputs, view.inputs, strict=True)
    ]
    return tensors, None if any(part is None for part in labels) else np.concatenate(labels)[:limit]
