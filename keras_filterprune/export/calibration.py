"""Sample inputs for quantisation and for the parity check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.export.signature import InputPort
from keras_filterprune.probe.data import SAMPLES


def calibration_samples(ports: Sequence[InputPort], data: Any) -> dict[str, np.ndarray]:
    """Check calibration data against the model's inputs.

    Args:
        ports: the model's inputs.
        data: an array of shape `(samples, *input_shape)`, a list or tuple of one array per input, or a
            dict of them by input name; or a function that yields batches of these, of which 2 048 are read, as
            `tf.lite.TFLiteConverter.representative_dataset` is.

    Returns:
        `{port.key: array}`, each in the input's dtype and all with the same number of samples.

    Raises:
        CalibrationDataError: the data is empty, not finite, not numeric, or does not fit the inputs.
    """
    if callable(data):
        data = _gathered(data)
    arrays = {port.key: _checked(port, value) for port, value in zip(ports, _by_port(ports, data), strict=True)}
    counts = {port.name: len(arrays[port.key]) for port in ports}
    if len(set(counts.values())) > 1:
        raise CalibrationDataError(f"data holds the same number of samples for every input. Received: {counts}.")
    return arrays


def random_samples(ports: Sequence[InputPort], count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw inputs that any model accepts: standard normal floats, and integers 0 or 1, which every vocabulary has.

    Args:
        ports: the model's inputs.
        count: number of samples.
        seed: seed of the generator.

    Returns:
        `{port.key: array of shape (count, *port.shape)}`.
    """
    generator = np.random.default_rng(seed)
    samples = {}
    for port in ports:
        shape = (count, *port.shape)
        drawn = generator.standard_normal(shape) if port.dtype.startswith("float") else generator.integers(0, 2, shape)
        samples[port.key] = drawn.astype(port.dtype)
    return samples


def _gathered(function: Callable[[], Iterable[Any]]) -> Any:
    """The first batches that a function yields, put together; it may never end."""
    batches, count = [], 0
    for batch in function():
        batches.append(batch if isinstance(batch, Mapping | list | tuple) else [batch])
        count += max([1, *(len(array) for array in keras.tree.flatten(batch) if np.ndim(array))])
        if count >= SAMPLES:
            break
    try:
        if batches and isinstance(batches[0], Mapping):
            return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationDataError(
            f"batches of data differ: {error!r}. Expected [one array of shape (samples, ...) per input] each time."
        ) from error


def _by_port(ports: Sequence[InputPort], data: Any) -> list[Any]:
    names = [port.name for port in ports]
    if isinstance(data, Mapping):
        if set(data) != set(names):
            raise CalibrationDataError(
                f"data has one array per input {sorted(names)}. Received: keys={sorted(map(str, data))}."
            )
        return [data[name] for name in names]
    if isinstance(data, (list, tuple)):
        if len(data) != len(names):
            raise CalibrationDataError(
                f"data has one array per input {names}. Received: {len(data)} arrays. "
                "Stack a list of samples with numpy.stack first."
            )
        return list(data)
    if len(names) > 1:
        raise CalibrationDataError(
            f"the model has {len(names)} inputs {names}: data is a list of arrays in this order, or a dict by name. "
            f"Received: one {type(data).__name__}."
        )
    return [data]


def _checked(port: InputPort, value: Any) -> np.ndarray:
    expected = f"data for input {port.name!r} is numeric and finite, with shape {('samples', *port.shape)}"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise CalibrationDataError(f"{expected}. Received: a ragged {type(value).__name__}: {error}.") from error
    if array.dtype.kind not in "fiub":
        raise CalibrationDataError(f"{expected}. Received: {type(value).__name__} with dtype={array.dtype}.")
    if array.shape[1:] != port.shape or array.ndim == 0:
        raise CalibrationDataError(f"{expected}. Received: shape={array.shape}.")
    if len(array) == 0:
        raise CalibrationDataError(f"{expected}. Received: shape={array.shape}, no samples. About 100 are enough.")
    finite = np.isfinite(array)
    if not finite.all():
        raise CalibrationDataError(
            f"{expected}. Received: {array.size - int(finite.sum())} NaN or infinite values of {array.size}."
        )
    return array.astype(port.dtype)
