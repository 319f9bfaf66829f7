"""Sample inputs for quantisation and for the parity check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.export.signature import InputPort
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.data import batches_of
from keras_filterprune.probe.inputs import calibration_inputs


def calibration_samples(ports: Sequence[InputPort], data: Any) -> dict[str, np.ndarray]:
    """Check calibration data against the model's inputs.

    Args:
        ports: the model's inputs.
        data: an array of shape `(samples, *input_shape)`, a list or tuple of one array per input, or a
            dict of them by input name; or anything else that `fit` takes, or a function that yields batches, as
            `tf.lite.TFLiteConverter.representative_dataset` is: of these 2 048 samples are read, and no labels.

    Returns:
        `{port.key: array}`, each in the input's dtype and all with the same number of samples.

    Raises:
        CalibrationDataError: the data is empty, not finite, not numeric, or does not fit the inputs.
    """
    if _comes_in_batches(ports, data):
        data = _first_samples(ports, data)
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


def _comes_in_batches(ports: Sequence[InputPort], data: Any) -> bool:
    """Whether data is a stream of batches, or has labels beside the inputs; not one array per input."""
    if isinstance(data, np.ndarray | Mapping | str | bytes) or keras.ops.is_tensor(data):
        return False
    if not isinstance(data, list | tuple):
        return callable(data) or isinstance(data, Iterable | keras.utils.PyDataset)
    if any(isinstance(entry, list | tuple | Mapping) and _holds_arrays(entry) for entry in data):
        return True
    labelled = isinstance(data, tuple) and len(ports) == 1 and len(data) in (2, 3)
    whole = len(data) > 1 == len(ports) and all(np.ndim(entry) == 1 + len(ports[0].shape) for entry in data)
    return labelled or whole


def _holds_arrays(entry: Any) -> bool:
    values = list(entry.values()) if isinstance(entry, Mapping) else entry
    return any(isinstance(value, np.ndarray) or keras.ops.is_tensor(value) for value in values)


def _first_samples(ports: Sequence[InputPort], data: Any) -> list[np.ndarray]:
    """The first samples of data as `fit` takes it, an array per input."""
    named = [keras.Input(port.shape, name=port.name, dtype=port.dtype) for port in ports]
    same = [keras.layers.Identity(name=f"same_{number}")(x) for number, x in enumerate(named)]
    view = view_model(keras.Model(named, same, name="inputs"))
    if not isinstance(data, tuple):
        # A tuple of as many arrays as there are inputs has no labels.
        data = (list(b) if isinstance(b, tuple) and len(b) == len(ports) > 1 else b for b in batches_of(data))
    return calibration_inputs(data, view, least=1).arrays()


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
