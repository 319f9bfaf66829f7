"""Does the file compute what the Keras model computes, and with which operators?"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import ExportError
from keras_filterprune.export.signature import InputPort, input_structure, output_keys


@dataclass(frozen=True)
class Parity:
    """How far a file's outputs are from the Keras model's, over a few samples.

    Args:
        max_abs_difference: Largest absolute difference over all outputs.
        max_relative_difference: The same per output, divided by that output's largest magnitude.
        top1_agreement: Share of the samples with the same highest class; None unless the model has one output
            of shape (batch, classes).
    """

    max_abs_difference: float
    max_relative_difference: float
    top1_agreement: float | None


def measure_parity(
    model: keras.Model, content: bytes, ports: tuple[InputPort, ...], samples: dict[str, np.ndarray]
) -> Parity:
    """Run a converted model with LiteRT and with Keras on the same samples.

    Args:
        model: The Keras model.
        content: The bytes of the `.tflite` file.
        ports: The model's inputs.
        samples: `{port.key: array of shape (samples, *port.shape)}`.

    Returns:
        The differences.

    Raises:
        ExportError: LiteRT refuses the file, its outputs have other names or shapes, or either side is not finite.
    """
    return compare_outputs(model.name, _run_keras(model, ports, _one_by_one(samples)), content, samples)


def compare_outputs(
    name: str, expected: dict[str, np.ndarray], content: bytes, samples: dict[str, np.ndarray]
) -> Parity:
    """Run a converted model with LiteRT and compare it with what it should give.

    Args:
        name: Name of the Keras model, for messages.
        expected: `{output key: array of shape (samples, 1, ...)}`.
        content: The bytes of the `.tflite` file.
        samples: `{port.key: array of shape (samples, *port.shape)}`.

    Returns:
        The differences.

    Raises:
        ExportError: LiteRT refuses the file, its outputs have other names or shapes, or either side is not finite.
    """
    count = len(next(iter(samples.values())))
    actual = _run_litert(content, _one_by_one(samples))
    absolute, relative = 0.0, 0.0
    for key, reference in expected.items():
        if key not in actual or actual[key].shape != reference.shape:
            received = {other: output.shape for other, output in actual.items()}
            raise ExportError(
                f"output {key!r} of model {name!r} has shape {reference.shape[1:]}, but the converted file has "
                f"{received} for {count} samples. Give every layer a static output shape."
            )
        for owner, output in (("the Keras model", reference), ("the converted file", actual[key])):
            if not np.isfinite(output).all():
                raise ExportError(
                    f"{owner} computes NaN or infinite values in output {key!r} of model {name!r}; "
                    "check its weights, and pass calibration=real inputs if random ones are out of its range."
                )
        difference = float(np.abs(actual[key] - reference).max(initial=0.0))
        scale = float(np.abs(reference).max(initial=0.0))
        absolute = max(absolute, difference)
        relative = max(relative, difference / (scale or 1.0))
    return Parity(absolute, relative, _top1_agreement(expected, actual))


def count_operators(content: bytes) -> dict[str, int]:
    """Count the operators of a `.tflite` file.

    Args:
        content: The bytes of the file.

    Returns:
        `{TFLite operator name: count}`, sorted by name.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    parsed = schema.Model.GetRootAs(content, 0)
    counts: Counter[str] = Counter()
    for subgraph in map(parsed.Subgraphs, range(parsed.SubgraphsLength())):
        for operator in map(subgraph.Operators, range(subgraph.OperatorsLength())):
            code = parsed.OperatorCodes(operator.OpcodeIndex())
            # Codes below 127 stand in the old one-byte field, later ones only in the new field.
            counts[names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]] += 1
    return dict(sorted(counts.items()))


def _one_by_one(samples: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    count = len(next(iter(samples.values())))
    return [{key: array[index : index + 1] for key, array in samples.items()} for index in range(count)]


def _run_litert(content: bytes, batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    try:
        runner = Interpreter(model_content=content, num_threads=1).get_signature_runner()
        outputs = [runner(**batch) for batch in batches]
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"LiteRT cannot run the converted file: {error}") from error
    return {key: np.stack([np.asarray(output[key], np.float64) for output in outputs]) for key in outputs[0]}


def _run_keras(
    model: keras.Model, ports: tuple[InputPort, ...], batches: list[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    structure = input_structure(model)
    collected: dict[str, list[Any]] = {}
    for batch in batches:
        inputs = keras.tree.pack_sequence_as(structure, [batch[port.key] for port in ports])
        outputs = model(inputs, training=False)
        for key, tensor in zip(output_keys(outputs), keras.tree.flatten(outputs), strict=True):
            collected.setdefault(key, []).append(keras.ops.convert_to_numpy(tensor).astype(np.float64))
    return {key: np.stack(arrays) for key, arrays in collected.items()}


def _top1_agreement(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> float | None:
    if len(expected) != 1:
        return None
    (key, reference), *_ = expected.items()
    # (samples, batch of 1, classes)
    if reference.ndim != 3 or reference.shape[-1] < 2:
        return None
    return float(np.mean(reference.argmax(-1) == actual[key].argmax(-1)))
