"""Calibration inputs held in memory, as many as fit."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.data import labelled_batches

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


def labelled_inputs(data: Any, view: ModelView, purpose: str, most: int = SAMPLES) -> tuple[list[Any], np.ndarray]:
    """`calibration_inputs` with their class numbers, int64 of shape (samples,); one-hot labels are converted.

    Args:
        purpose: what needs the labels, for messages.

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
    return inputs, labels[:, 0].astype(int)


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
