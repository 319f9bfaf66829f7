"""`export_tflite`: convert, check, then put the file in place."""

import importlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError, ExportError, UnknownNameError
from keras_filterprune.export.calibration import calibration_samples, random_samples
from keras_filterprune.export.convert import convert, quiet
from keras_filterprune.export.metadata import Metadata, check_metadata, embed
from keras_filterprune.export.other_backends import convert_elsewhere
from keras_filterprune.export.parity import Parity, count_operators, measure_parity
from keras_filterprune.export.signature import input_ports
from keras_filterprune.files import check_destination, replacing

_MODES = ("float32", "float16", "int8")
_PARITY_SAMPLES = 16
# Largest difference relative to the outputs. float32 files measure 1e-7 to 1e-5, float16 weights are rounded to 5e-4
# each; a wrong weight or layout shows up at 1e-1 and above. What int8 may differ by depends on the network.
_TOLERANCES = {"float32": 1e-3, "float16": 2e-2}


@dataclass(frozen=True)
class ExportResult:
    """What `export_tflite` wrote.

    Args:
        path: The file.
        bytes: Its size in bytes.
        quantize: `"float32"`, `"float16"` or `"int8"`.
        ops: `{TFLite operator name: count}`.
        max_abs_difference: Largest absolute difference between the file's outputs and the Keras model's;
            None with `verify=False`.
        top1_agreement: Share of the compared samples with the same highest class, 0 to 1; None with
            `verify=False` or when the output is not a single (batch, classes) tensor.
    """

    path: Path
    bytes: int
    quantize: str
    ops: dict[str, int]
    max_abs_difference: float | None
    top1_agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values.

        Returns:
            A dict with the path as a string.
        """
        return asdict(self) | {"path": os.fspath(self.path)}


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    calibration: Any = None,
    metadata: Metadata | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> ExportResult:
    """Write a model as a `.tflite` file of batch size 1, and check it with the LiteRT runtime.

    The file holds TFLite's own operators only; its inputs and outputs keep the model's dtypes. In `"int8"` an operator
    without an int8 kernel stays float32 (`ExportResult.ops` then lists DEQUANTIZE and QUANTIZE around it).

    Args:
        model: A built functional or Sequential model with fixed input sizes; compiled or not; not modified.
        path: The file to write.
        quantize: None or `"float32"` (default); `"float16"` for weights in half the bytes, computed with in float32; or
            `"int8"` for weights and activations by post-training quantisation.
        calibration: Inputs like the ones met in use, about 100: an array `(samples, *input_shape)`, a list of one
            array per input, or a dict by input name. Needed for `"int8"`; its first 16 samples also serve the
            check. Default: the check draws seeded random inputs.
        metadata: Labels, normalisation and pruning plan to write into the file. Default: none.
        overwrite: Replace an existing file. Default False.
        verify: Compare the file with the model before putting it in place. Default True.

    Returns:
        Size, operators and the measured differences.

    Raises:
        ExportError: The model cannot be converted, the file cannot be written, or a float32 (float16) file
            differs by more than 1e-3 (2e-2) of an output's largest magnitude, or the metadata do not fit the model.
            Nothing is left behind, an existing file is untouched.
        CalibrationDataError: `calibration` is missing for `"int8"`, empty, not finite or of the wrong shape.
        PlanMismatchError: The plan in `metadata` was made for another model.
        UnsupportedModelError: The model is subclassed or not built.
        UnknownNameError: `quantize` is not a known mode.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> export_tflite(model, "model.tflite", overwrite=True).ops
        {'CONV_2D': 1}
    """
    path = Path(path)
    mode = "float32" if quantize is None else quantize
    if mode not in _MODES:
        raise UnknownNameError(f"quantize must be None or one of {', '.join(map(repr, _MODES))}, got {quantize!r}.")
    _check_environment()
    check_destination(path, overwrite)
    ports = input_ports(model)
    if mode == "int8" and calibration is None:
        raise CalibrationDataError(
            "quantize='int8' needs calibration=: about 100 inputs like the ones met in use, as an array "
            f"or a dict by input name. The inputs are {', '.join(f'{p.name!r} {p.shape}' for p in ports)}."
        )
    if metadata is not None:
        check_metadata(metadata, model, ports)
    samples = random_samples(ports, _PARITY_SAMPLES) if calibration is None else calibration_samples(ports, calibration)
    with replacing(path) as draft, quiet():
        if keras.config.backend() == "tensorflow":
            content = convert(model, ports, draft.parent / "saved_model", mode, samples)
        else:
            content = convert_elsewhere(model, draft.parent / "conversion", mode, samples)
        if metadata is not None:
            content = embed(content, metadata, model.name, ports)
        few = {key: array[:_PARITY_SAMPLES] for key, array in samples.items()}
        parity = measure_parity(model, content, ports, few) if verify else None
        _refuse_differences(model, mode, parity)
        draft.write_bytes(content)
    return ExportResult(
        path=path,
        bytes=len(content),
        quantize=mode,
        ops=count_operators(content),
        max_abs_difference=parity.max_abs_difference if parity else None,
        top1_agreement=parity.top1_agreement if parity else None,
    )


def _check_environment() -> None:
    for module in ("tensorflow", "ai_edge_litert.interpreter"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ExportError(
                f"export_tflite needs {module.partition('.')[0]}, which cannot be imported ({error}). "
                'Install it: pip install "keras-filterprune[tflite]"'
            ) from error


def _refuse_differences(model: keras.Model, mode: str, parity: Parity | None) -> None:
    tolerance = _TOLERANCES.get(mode, np.inf)
    if parity and parity.max_relative_difference > tolerance:
        raise ExportError(
            f"the converted file differs from model {model.name!r} by {parity.max_relative_difference:.2g} of the "
            f"output's largest magnitude, at most {tolerance:g} is expected; nothing was written. Look for "
            "layers that act differently while they are traced, or that draw random numbers at inference."
        )
