"""Does the file compute what the Keras model computes?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import ExportError
from keras_filterprune.export.runtime import SignatureRunner
from keras_filterprune.export.signature import InputPort, input_structure, output_keys


@dataclass(frozen=True)
class Parity:
    """How far a file's outputs are from the Keras model's, over a few samples.

    Attributes:
        max_abs_difference: largest absolute difference over all outputs.
        relative_difference: root mean square of an output's differences over that of the output; the largest of all
            outputs.
        top1_agreement: share of the samples with the same highest class, 0 to 1; None unless the model has one output
            of shape (batch, classes).
    """

    max_abs_difference: float
    relative_difference: float
    top1_agreement: float | None


def measure_parity(
    model: keras.Model,
    content: bytes,
    ports: tuple[InputPort, ...],
    samples: dict[str, np.ndarray],
    dynamic_batch: bool = False,
) -> Parity:
    """Run a converted model with LiteRT and with Keras on the same samples.

    Args:
        model: the Keras model.
        content: the bytes of the `.tflite` file.
        ports: the model's inputs.
        samples: `{port.key: array of shape (samples, *port.shape)}`.
        dynamic_batch: the file's batch size is open.

    Returns:
        The differences.

    Raises:
        ExportError: LiteRT refuses the file, its outputs have other names or shapes, or either side is not finite.
    """
    expected = _run_keras(model, ports, _slices(samples, range(_count(samples) + 1)))
    return compare_outputs(model.name, expected, content, samples, dynamic_batch)


def compare_outputs(
    name: str,
    expected: dict[str, np.ndarray],
    content: bytes,
    samples: dict[str, np.ndarray],
    dynamic_batch: bool = False,
) -> Parity:
    """Run a converted model with LiteRT and compare it with what it should give.

    Args:
        name: name of the Keras model, for messages.
        expected: `{output key: array of shape (samples, ...)}`.
        content: the bytes of the `.tflite` file.
        samples: `{port.key: array of shape (samples, *port.shape)}`.
        dynamic_batch: the file's batch size is open.

    Returns:
        The differences.

    Raises:
        ExportError: LiteRT refuses the file, its outputs have other names or shapes, or either side is not finite.
    """
    count = _count(samples)
    # An open batch size has to hold for a batch of one and for one of many.
    actual = _run_litert(content, _slices(samples, sorted({0, 1, count}) if dynamic_batch else range(count + 1)))
    absolute, relative = 0.0, 0.0
    for key, reference in expected.items():
        if key not in actual or actual[key].shape != reference.shape:
            received = {other: output.shape for other, output in actual.items()}
            raise ExportError(
                f"output {key!r} of model {name!r} has shape {reference.shape} for {count} samples, but the "
                f"converted file has {received}. Give every layer a static output shape, with the batch as first axis."
            )
        for owner, output in (("the Keras model", reference), ("the converted file", actual[key])):
            if not np.isfinite(output).all():
                raise ExportError(
                    f"{owner} computes NaN or infinite values in output {key!r} of model {name!r}; "
                    "check its weights, and pass data=real inputs if random ones are out of its range."
                )
        difference = actual[key] - reference
        absolute = max(absolute, float(np.abs(difference).max(initial=0.0)))
        relative = max(relative, _root_mean_square(difference) / (_root_mean_square(reference) or 1.0))
    return Parity(absolute, relative, _top1_agreement(expected, actual))


def _run_litert(content: bytes, batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    try:
        run = SignatureRunner(model_content=content)
        outputs = [run(batch) for batch in batches]
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"LiteRT cannot run the converted file: {error}") from error
    return {
        key: np.concatenate([np.atleast_1d(output[key]).astype(np.float64) for output in outputs]) for key in outputs[0]
    }


def _run_keras(
    model: keras.Model, ports: tuple[InputPort, ...], batches: list[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    structure = input_structure(model)
    collected: dict[str, list[Any]] = {}
    for batch in batches:
        inputs = keras.tree.pack_sequence_as(structure, [batch[port.key] for port in ports])
        outputs = model(inputs, training=False)
        for key, tensor in zip(output_keys(outputs), keras.tree.flatten(outputs), strict=True):
            collected.setdefault(key, []).append(np.atleast_1d(keras.ops.convert_to_numpy(tensor)).astype(np.float64))
    return {key: np.concatenate(arrays) for key, arrays in collected.items()}


def _slices(samples: dict[str, np.ndarray], borders: Sequence[int]) -> list[dict[str, np.ndarray]]:
    return [{key: array[start:end] for key, array in samples.items()} for start, end in itertools.pairwise(borders)]


def _count(samples: dict[str, np.ndarray]) -> int:
    return len(next(iter(samples.values())))


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _top1_agreement(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> float | None:
    if len(expected) != 1:
        return None
    (key, reference), *_ = expected.items()
    if reference.ndim != 2 or reference.shape[-1] < 2:
        return None
    return float(np.mean(reference.argmax(-1) == actual[key].argmax(-1)))
