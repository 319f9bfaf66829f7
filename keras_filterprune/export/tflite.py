"""`export_tflite`: convert, check, then put the file in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import (
    check_flags,
    check_number,
    check_option,
    check_packages,
    entries,
    renamed_arguments,
    wrong,
)
from keras_filterprune.errors import CalibrationDataError, ExportError, InvalidValueError
from keras_filterprune.export.advice import ExportWarning, advise
from keras_filterprune.export.calibration import calibration_samples, random_samples
from keras_filterprune.export.convert import INTEGER_MODES, convert, convert_to_integers
from keras_filterprune.export.file_operators import FileOperator, read_operators, refuse_operators
from keras_filterprune.export.metadata import Metadata, check_metadata, embed, pixel_ranges
from keras_filterprune.export.other_backends import convert_elsewhere
from keras_filterprune.export.parity import Parity, measure_parity
from keras_filterprune.export.precision import in_float32
from keras_filterprune.export.signature import InputPort, input_ports, output_keys, output_structure
from keras_filterprune.export.tflite_file import TFLiteFile
from keras_filterprune.files import check_destination, replacing, unfinished
from keras_filterprune.interrupts import interruptible
from keras_filterprune.quiet import quiet
from keras_filterprune.summarised import Summarised

MODES = ("float32", "float16", "dynamic", "int8", "int16x8")
PARITY_SAMPLES = 16
# Largest root mean square of the differences relative to the outputs'. Measured over tests/zoo, a trained
# ResNet-20 and keras.applications: up to 1e-5, 4e-3, 5e-2, 0.13 and 4e-2. Files that were really wrong (a transposed
# layout, sums with another tensor's range) measured 0.29 to 1.5.
_TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "dynamic": 0.1, "int8": 0.25, "int16x8": 0.1}
# Fewer of the same class is said in a warning: two of the compared samples have another class.
_AGREEMENT = 0.9


@dataclass(frozen=True)
class ExportResult(Summarised):
    """What `export_tflite` wrote.

    Attributes:
        path: the file.
        bytes: its size in bytes.
        quantize: `"float32"`, `"float16"`, `"dynamic"`, `"int8"` or `"int16x8"`.
        ops: `{TFLite operator name: count}`.
        max_abs_difference: largest absolute difference between the file's outputs and the Keras model's;
            None with `verify=False`.
        relative_difference: root mean square of the differences over that of the outputs; None with `verify=False`.
        top1_agreement: share of the compared samples with the same highest class, 0 to 1; None with
            `verify=False` or when the output is not a single (batch, classes) tensor.
        warnings: what makes the file slow, by which layer, and what to do about it.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])
        >>> result = kfp.export_tflite(model, "model.tflite", quantize="float16", overwrite=True)
        >>> result.quantize, result.relative_difference < 1e-2, result.warnings
        ('float16', True, ())
    """

    path: Path
    bytes: int
    quantize: str
    ops: dict[str, int]
    max_abs_difference: float | None
    relative_difference: float | None
    top1_agreement: float | None
    warnings: tuple[ExportWarning, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values.

        Returns:
            A dict with the path as a string and the warnings as dicts.
        """
        return asdict(self) | {
            "path": os.fspath(self.path),
            "warnings": [warning.to_dict() for warning in self.warnings],
        }

    def summary(self) -> str:
        """Say what was written.

        Returns:
            A line on the file, one on its differences, and one for each warning.
        """
        lines = [f"{self.path}: {self.quantize}, {self.bytes:,} bytes, {sum(self.ops.values())} operators"]
        if self.max_abs_difference is not None:
            agreement = "" if self.top1_agreement is None else f", same class for {100 * self.top1_agreement:.1f} %"
            lines.append(f"largest difference from Keras {self.max_abs_difference:.1e}{agreement}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


@renamed_arguments(calibration="data")
def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    data: Any = None,
    keep_float: Sequence[str] = (),
    integer_io: bool | str = False,
    dynamic_batch: bool = False,
    tolerance: float | None = None,
    metadata: Metadata | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> ExportResult:
    """Write a model as a `.tflite` file, and check it with the LiteRT runtime.

    The file holds TFLite's own operators only. What Keras computes in half precision is float32 in the file.

    | `quantize` | weights | activations | for |
    |---|---|---|---|
    | None, `"float32"` | float32 | float32 | the reference |
    | `"float16"` | float16 | float32 | half the bytes, nothing else changes |
    | `"dynamic"` | int8, from 1 024 values on | float32, int8 inside convolutions | no data; slow depthwise layers |
    | `"int8"` | int8 | int8 | the smallest and fastest file; needs `data` |
    | `"int16x8"` | int8 | int16 | accelerators that compute in int16; very slow on a CPU; needs `data` |

    Args:
        model: a built functional or Sequential model with fixed input sizes; compiled or not; not modified.
        path: the file to write.
        quantize: a mode from the table (None).
        data: inputs like the ones met in use, about 100: an array `(samples, *input_shape)`, a list of one array per
            input, a dict by input name, anything else that `fit` takes, or TensorFlow's `representative_dataset`. The
            first 16 also serve the check (None: it draws seeded random inputs).
        keep_float: operators (TFLite's names, such as `"HARD_SWISH"`) and layers that an integer mode leaves in
            float32, because they are slow or inaccurate in integers (none).
        integer_io: inputs and outputs of an integer mode are integers too (int8 or int16), for callers without
            floating-point numbers; "uint8" for int8, as cameras and MediaPipe have them: with a normalization in
            `metadata`, a byte is a pixel. Scales and zero points stand in the file (False).
        dynamic_batch: leave the batch size open instead of 1, which every delegate takes (False).
        tolerance: largest accepted root mean square of the differences from Keras, relative to that of the outputs
            (None: 1e-3 for float32, 0.02 for float16, 0.1 for dynamic, 0.25 for int8, 0.1 for int16x8; at least
            0.02 for models that compute in float16 and 0.1 for those in bfloat16).
        metadata: labels, normalisation and pruning plan to write into the file (None).
        overwrite: replace an existing file (False).
        verify: compare the file with the model before putting it in place (True).

    Returns:
        Size, operators, the measured differences, and warnings.

    Raises:
        ExportError: the model cannot be converted, or the file differs by more than `tolerance`. Nothing is left over.
        FileError, MissingPackageError: the file exists, or cannot be written; a package of `tflite` is missing.
        InvalidValueError: an option is out of range or belongs to another mode, or the metadata do not fit the model.
        CalibrationDataError: `data` is missing for an integer mode, empty, not finite or of the wrong shape.
        PlanMismatchError, UnsupportedModelError: the plan is of another model; the model is subclassed or not built.
        UnknownNameError: `quantize` is not a known mode, or `keep_float` names nothing in the file.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> export_tflite(model, "model.tflite", overwrite=True).ops
        {'CONV_2D': 1}
    """
    mode = "float32" if quantize is None else quantize
    _check_options(mode, keep_float, tolerance, integer_io, dynamic_batch=dynamic_batch, verify=verify)
    path, ports = check_destination(path, overwrite), input_ports(model)
    samples, fixed = _samples(ports, mode, data), _fixed(metadata, model, ports, integer_io)
    converted, halves, rounding = in_float32(model)
    with replacing(path, overwrite) as draft, quiet(), interruptible():
        file = _converted(converted, ports, mode, dynamic_batch)
        kept: list[FileOperator] = []
        if mode in INTEGER_MODES:
            file, kept = convert_to_integers(file, converted, mode, samples, keep_float, integer_io, fixed)
        file = file.in_order([port.key for port in ports], output_keys(output_structure(model)))
        file = file if metadata is None else embed(file, metadata, model.name, ports)
        parity = measure_parity(model, file.content, ports, first_samples(samples), dynamic_batch) if verify else None
        _refuse_differences(model, max(_TOLERANCES[mode], rounding) if tolerance is None else tolerance, parity)
        warnings = _in_float32(halves) + _of_parity(parity) + _of_signed_pixels(metadata, mode, integer_io)
        warnings += advise(read_operators(file, converted), mode, kept)
        draft.write_bytes(file.content)
    return export_result(path, mode, file, parity, warnings)


def _fixed(
    metadata: Metadata | None, model: keras.Model, ports: tuple[InputPort, ...], integer_io: bool | str
) -> dict[str, tuple[float, float]] | None:
    """Ranges of inputs that the metadata, which are checked, say for bytes."""
    if metadata is None:
        return None
    check_metadata(metadata, model, ports)
    return pixel_ranges(metadata, ports) if integer_io == "uint8" else None


def _converted(model: keras.Model, ports: Sequence[InputPort], mode: str, dynamic_batch: bool) -> TFLiteFile:
    keys = [port.key for port in ports]
    if keras.config.backend() == "tensorflow":
        file = TFLiteFile(convert(model, keys, mode, dynamic_batch))
    else:
        with unfinished() as folder:
            file = TFLiteFile(convert_elsewhere(model, keys, folder / "work", mode, dynamic_batch))
    refuse_operators(file, model)
    return file


def _samples(ports: tuple[InputPort, ...], mode: str, data: Any) -> dict[str, np.ndarray]:
    if data is not None:
        return calibration_samples(ports, data)
    if mode in INTEGER_MODES:
        raise CalibrationDataError(
            f"quantize={mode!r} needs data=: about 100 inputs like the ones met in use, as an array "
            f"or a dict by input name. The inputs are {', '.join(f'{p.name!r} {p.shape}' for p in ports)}."
        )
    return random_samples(ports, PARITY_SAMPLES)


def first_samples(samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those that serve the check."""
    return {key: array[:PARITY_SAMPLES] for key, array in samples.items()}


def export_result(
    path: Path, mode: str, file: TFLiteFile, parity: Parity | None, warnings: Sequence[ExportWarning]
) -> ExportResult:
    """The result of an export, from what is known of the file."""
    return ExportResult(
        path=path,
        bytes=len(file.content),
        quantize=mode,
        ops=file.count_operators(),
        max_abs_difference=parity.max_abs_difference if parity else None,
        relative_difference=parity.relative_difference if parity else None,
        top1_agreement=parity.top1_agreement if parity else None,
        warnings=tuple(warnings),
    )


def _check_options(
    mode: str, keep_float: Sequence[str], tolerance: float | None, integer_io: Any, **flags: bool
) -> None:
    check_option("quantize", mode, MODES, ", or None")
    check_flags(**flags)
    check_integer_io(integer_io)
    check_number("tolerance", tolerance, above=0, optional=True)
    if isinstance(keep_float, str) or not all(isinstance(name, str) for name in entries(keep_float)):
        raise wrong("keep_float", keep_float, "a sequence of names")
    if integer_io == "uint8" and mode != "int8":
        raise InvalidValueError(f"integer_io='uint8' belongs to int8. Received: quantize={mode!r}.")
    if mode not in INTEGER_MODES and (keep_float or integer_io):
        raise InvalidValueError(
            f"keep_float and integer_io belong to {' and '.join(INTEGER_MODES)}. Received: quantize={mode!r}, "
            f"keep_float={tuple(keep_float)!r}, integer_io={integer_io!r}."
        )
    _check_environment(mode)


def _in_float32(layers: Sequence[str]) -> list[ExportWarning]:
    if not layers:
        return []
    problem = "computed in half precision by Keras, in float32 by the file"
    remedy = "Nothing to do; expect differences of about 1e-3 from the model, which is what the file is compared with."
    return [ExportWarning((), tuple(f"layer {name!r}" for name in layers), problem, remedy)]


def check_integer_io(integer_io: Any) -> Any:
    """True, False or "uint8"."""
    if isinstance(integer_io, bool | np.bool_) or (isinstance(integer_io, str) and integer_io == "uint8"):
        return integer_io
    raise wrong("integer_io", integer_io, "True, False or 'uint8'")


def _of_parity(parity: Parity | None) -> list[ExportWarning]:
    if parity is None or parity.top1_agreement is None or parity.top1_agreement >= _AGREEMENT:
        return []
    problem = (
        f"another highest class than Keras' for {1 - parity.top1_agreement:.0%} of the compared samples; at most "
        f"{1 - _AGREEMENT:.0%} is expected"
    )
    remedy = "Give data like that met in use, and measure how accurate the file is; keep layers in float32."
    return [ExportWarning((), ("the outputs",), problem, remedy)]


def _of_signed_pixels(metadata: Metadata | None, mode: str, integer_io: bool | str) -> list[ExportWarning]:
    if metadata is None or metadata.normalization is None or mode != "int8" or integer_io is not True:
        return []
    problem = "int8, which MediaPipe and camera code, the readers of a normalization, do not take"
    return [ExportWarning((), ("the inputs",), problem, "Use integer_io='uint8', or float inputs.")]


def _check_environment(mode: str) -> None:
    quantizer = ("ai_edge_quantizer",) if mode in INTEGER_MODES else ()
    check_packages("export_tflite", "tensorflow", "tensorflow")
    check_packages("export_tflite", "tflite", "ai_edge_litert.interpreter", *quantizer)


def _refuse_differences(model: keras.Model, tolerance: float, parity: Parity | None) -> None:
    if parity and parity.relative_difference > tolerance:
        raise ExportError(
            f"the converted file differs from model {model.name!r} by {parity.relative_difference:.2g} of the "
            f"outputs (root mean square), at most {tolerance:g} is expected; nothing was written. Look for layers that "
            "act differently while they are traced, or that draw random numbers at inference; with integers also for "
            "calibration inputs unlike those met in use, and layers to leave in float32 with keep_float=. "
            "tolerance= accepts more."
        )
