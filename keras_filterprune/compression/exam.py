"""What networks and files still know, on samples that nothing else has looked at."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.export.runtime import SignatureRunner
from keras_filterprune.export.signature import InputPort, input_structure, output_keys, output_structure
from keras_filterprune.graph.keras_view import output_names
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.accuracy import above, accuracy_of
from keras_filterprune.probe.data import SAMPLES, Samples
from keras_filterprune.probe.inputs import Inputs, inputs_and_labels

# Every so many samples one is left for the exam.
_EVERY = 4
_LEAST = 32
_BATCH = 64


class Split(NamedTuple):
    """Samples for calibration, one array per input; and others, with their labels, None where there are none."""

    calibration: list[np.ndarray]
    held_out: list[np.ndarray]
    labels: np.ndarray | None
    inputs: Inputs
    all_labels: Any


def split(data: Any, view: ModelView) -> Split:
    """Divide data, of which at most 8 192 samples are read: a quarter of them is held out.

    Raises:
        CalibrationDataError: there are fewer than 32 samples, or they do not fit.
    """
    if data is None:
        raise CalibrationDataError(
            "compress needs calibration data: inputs like those met in use. Received: data=None."
        )
    samples = Samples.of(data)
    parts = samples.read(view, _EVERY * SAMPLES)
    if all(part.labels is None for part in parts):
        inputs, labels = Inputs(parts, view), None
    else:
        inputs, labels, _ = inputs_and_labels(samples, view, "compress", _EVERY * SAMPLES)
    if len(inputs) < _LEAST:
        raise CalibrationDataError(
            f"compress expects at least {_LEAST} samples, better some hundreds: a quarter of them is held out to "
            f"measure what is made with the others. Received: {len(inputs)}."
        )
    held_out = np.arange(0, len(inputs), _EVERY)
    others = np.setdiff1d(np.arange(len(inputs)), held_out)[:SAMPLES]
    # Labels of one output may come by its name, or in a list, as `fit` takes them.
    arrays = keras.tree.flatten(labels)
    single = arrays[0] if len(arrays) == 1 and isinstance(arrays[0], np.ndarray) and arrays[0].ndim else None
    if single is not None and len(single) != len(inputs):
        raise CalibrationDataError(
            f"labels have a row for each of {len(inputs)} samples. Received: labels of shape {single.shape}."
        )
    single = None if single is None else single[held_out]
    return Split(inputs.take(others), inputs.take(held_out), single, inputs, labels)


class Found(NamedTuple):
    """What a file knows: its accuracy, and how it agrees with the network that it was made of; None if not known."""

    accuracy: float | None
    agreement: float | None
    difference: float


def _judge(model: keras.Model, samples: Split) -> Callable[[Any, Any], Any] | None:
    """What tells of labels and outputs which are right; None without labels."""
    if samples.all_labels is None:
        return None
    if samples.labels is None or len(model.outputs) != 1:
        raise CalibrationDataError(
            f"it is that of one output, by an array of labels. Received: {len(model.outputs)} outputs, "
            f"{len(keras.tree.flatten(samples.all_labels))} arrays of labels. budget= needs no accuracy."
        )
    return accuracy_of(samples.labels, tuple(model.outputs[0].shape), output_names(model)[0])


class Exam:
    """Measures networks and files.

    Args:
        model: the original.
        samples: what `split` gives.
        needed: labels have to be there, and right for an accuracy (False).

    Raises:
        CalibrationDataError: they are not.
    """

    def __init__(self, model: keras.Model, samples: Split, needed: bool = False):
        self._inputs, self._labels = samples.held_out, samples.labels
        self._right: Callable[[Any, Any], Any] | None = None
        if needed and samples.all_labels is None:
            raise CalibrationDataError(
                "accuracy_drop needs labels, one row per sample: pass data=(x, y); on the command line, an .npz "
                "archive of x and y, or a folder of images for each class. Received: no labels. budget= needs none."
            )
        try:
            self._right = _judge(model, samples)
        except CalibrationDataError as error:
            if needed:
                raise
            warnings.warn(f"accuracy is not measured: {error}", stacklevel=3)

    def __len__(self) -> int:
        return len(self._inputs[0])

    def outputs(self, model: keras.Model) -> list[np.ndarray]:
        """What a network gives, one array per output."""
        structure, found = input_structure(model), []
        for start in range(0, len(self), _BATCH):
            arrays = [keras.ops.convert_to_tensor(x[start : start + _BATCH]) for x in self._inputs]
            given = model(keras.tree.pack_sequence_as(structure, arrays), training=False)
            found.append([keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(given)])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def accuracy(self, outputs: Sequence[np.ndarray]) -> float | None:
        """Share that is right, None without labels that say so."""
        return None if self._right is None else float(np.mean(self._right(self._labels, outputs[0])))

    def of_file(
        self, content: bytes, model: keras.Model, ports: Sequence[InputPort], wanted: Sequence[np.ndarray]
    ) -> Found:
        """Measure a `.tflite` file.

        Args:
            content: its bytes.
            model: what it was made of.
            ports: the model's inputs.
            wanted: the model's outputs.
        """
        run, keys = SignatureRunner(model_content=content), output_keys(output_structure(model))
        rows = []
        for number in range(len(self)):
            inputs = {port.key: x[number : number + 1] for port, x in zip(ports, self._inputs, strict=True)}
            given = run(inputs)
            rows.append([np.atleast_1d(given[key]) for key in keys])
        found = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        return Found(self.accuracy(found), _agreement(wanted, found), _difference(wanted, found))


def _agreement(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float | None:
    """Share of the same classes, None where the output is none of classes."""
    if len(wanted) != 1 or wanted[0].ndim < 2:
        return None
    one, other = wanted[0], found[0]
    if one.shape[-1] > 1:
        return float(np.mean(one.argmax(-1) == other.argmax(-1)))
    return float(np.mean(above(one) == above(other))) if one.min() >= 0 and one.max() <= 1 else None


def _difference(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Root mean square of the differences over that of the outputs, the largest of all outputs."""
    ratios = []
    for one, other in zip(wanted, found, strict=True):
        size = np.sqrt(np.mean(np.square(one, dtype=np.float64)))
        ratios.append(float(np.sqrt(np.mean(np.square(other - one, dtype=np.float64))) / (size or 1.0)))
    return max(ratios)
