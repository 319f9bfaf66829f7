"""Which outputs are right, by what their labels are; and how far outputs are from those of the whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.probe.labels import fits


def accuracy_of(labels: np.ndarray, shape: tuple[int | None, ...], key: str) -> Callable[[Any, Any], Any]:
    """Whether labels of an output are right, by what they are: class numbers, one-hot, or units right or wrong each."""
    if labels.dtype.kind in "USO":
        raise CalibrationDataError(f"'accuracy' expects class numbers at output '{key}'. Received: '{labels.flat[0]}'.")
    classes, single = shape[-1], len(shape) > 1 and shape[-1] == 1
    whole = labels.size > 0 and not (labels != np.round(labels)).any()
    numbers = len(shape) > 1 and (fits(labels.shape, shape[:-1]) or fits(labels.shape, (*shape[:-1], 1)))
    if numbers and whole:
        top = 1 if single else labels.max() if classes is None else classes - 1
        if not 0 <= labels.min() <= labels.max() <= top:
            raise CalibrationDataError(
                f"'accuracy' expects class numbers from 0 to {top} at output '{key}', which the model has outputs for. "
                f"Received: {labels.min():g} to {labels.max():g}."
            )
        return _right_units if single else _right_classes
    if len(shape) > 1 and not single and fits(labels.shape, shape):
        if labels.min(initial=0) >= 0 and np.allclose(labels.sum(axis=-1), 1, atol=1e-3):
            return _right_classes
        if whole and 0 <= labels.min() <= labels.max() <= 1:
            return _right_units
    what = "sample" if len(shape) < 3 else "sample and position"
    raise CalibrationDataError(
        f"'accuracy' expects one class number per {what} at output '{key}' of shape {shape}, one-hot or not. Received: "
        f"labels of shape {labels.shape}{' with fractions' * (not whole)}. measure='loss' is the compiled one."
    )


def _right_classes(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    one_hot = labels.shape == outputs.shape
    wanted = labels.argmax(axis=-1) if one_hot else labels.reshape(outputs.shape[:-1])
    return flat(outputs.argmax(axis=-1) == wanted).mean(axis=1)


def _right_units(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return flat(above(outputs) == labels.reshape(outputs.shape)).mean(axis=1)


def above(outputs: np.ndarray) -> np.ndarray:
    """Whether single units say yes: they are probabilities, or logits where one leaves [0, 1]."""
    return outputs > (0.5 if outputs.min() >= 0 and outputs.max() <= 1 else 0)


def class_numbers(outputs: np.ndarray) -> np.ndarray:
    """Class numbers (samples,) of class scores (samples, classes), or (samples, 1) for two classes."""
    return outputs.argmax(axis=1) if outputs.shape[1] > 1 else above(outputs[:, 0]).astype(int)


def minus_error(whole: list[np.ndarray], outputs: list[np.ndarray]) -> np.ndarray:
    """Minus the squared error of all outputs of every sample, relative to the variance of the whole network's."""
    wanted, found = (np.concatenate(list(map(flat, arrays)), axis=1) for arrays in (whole, outputs))
    spread = np.square(wanted - wanted.mean(axis=0)).sum() / len(wanted)
    return -np.square(found - wanted).sum(axis=1) / max(spread, np.finfo(float).tiny)


def flat(array: np.ndarray) -> np.ndarray:
    """float64 of shape (samples, values)."""
    return array.reshape(len(array), -1).astype(np.float64)
