"""int8 and int16x8: a float32 `.tflite` file in, one with integer weights and activations out (ai-edge-quantizer).

Why this engine and not the converter's own calibration: measured on TensorFlow 2.21 and ai-edge-quantizer 0.10, both
give files of the same size and speed, and on a ResNet-20 (CIFAR-10) and a MobileNetV2 the same accuracy, but over 80
small networks of every structure the converter's int8 was wrong without a word for two (a broadcast product, a
transposed layout), its int16x8 for four, and its calibrator ends the process when it meets a loop. Only this engine
can leave chosen operators in float32.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_filterprune.export.file_operators import FileOperator
from keras_filterprune.export.outputs_apart import with_outputs_apart
from keras_filterprune.export.tflite_file import TFLiteFile
from keras_filterprune.export.unsigned import with_unsigned_io

_ACTIVATION_BITS = {"int8": 8, "int16x8": 16}
# What the two call differently.
_QUANTIZER_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
# ai-edge-quantizer 0.10 fails on a maximum with a constant vector.
_ALWAYS_FLOAT = ("MAXIMUM",)
_INFINITY = 3e38


def quantize_statically(
    file: TFLiteFile,
    mode: str,
    samples: dict[str, np.ndarray],
    keep_float: Sequence[FileOperator] = (),
    integer_io: bool | str = False,
    fixed: Mapping[str, tuple[float, float]] | None = None,
) -> TFLiteFile:
    """Quantize weights and activations of a float32 file.

    Args:
        file: the float32 file.
        mode: "int8" or "int16x8".
        samples: `{input key: array of shape (samples, *input shape)}`; the ranges of activations are the smallest and
            largest values met with them.
        keep_float: operators of the file that stay in float32.
        integer_io: inputs and outputs are integers too, instead of float32; "uint8": those of int8 are uint8.
        fixed: `{input key: (smallest, largest value)}` of inputs whose range is known (None).

    Returns:
        The quantized file.

    Raises:
        ValueError, RuntimeError: the quantizer cannot handle the file.
    """
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

    file = with_outputs_apart(file)
    if mode == "int16x8":
        file = _without_power_of_two_sums(file)
    names = qtyping.TFLOperationName
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", names.ALL_SUPPORTED, _ACTIVATION_BITS[mode], 8)
    known = {name.value for name in names}
    floats = [(".*", kind) for kind in (*_ALWAYS_FLOAT, *(() if integer_io else ("INPUT", "OUTPUT")))]
    # The quantizer finds an operator by the name of its output, followed by a semicolon.
    floats += [(f"^{re.escape(op.output)};", _QUANTIZER_NAMES.get(op.kind, op.kind)) for op in keep_float]
    floats += [(f"^{re.escape(name)};", "SPLIT") for name in _splits_with_unread_parts(file)]
    for scope, kind in floats:
        if kind in known:
            recipe.add_quantization_config(
                scope, names(kind), algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
            )
    result = quantizer.Quantizer(file.content, recipe.get_quantization_recipe()).quantize(
        _ranges(file, samples) | _fixed_ranges(file, fixed or {}),
        enable_progress_bar=False,
        enable_progress_report=False,
    )
    quantized = _with_weights_inside(TFLiteFile(bytes(result.quantized_model)))
    return with_unsigned_io(quantized) if integer_io == "uint8" else quantized


def _with_weights_inside(file: TFLiteFile) -> TFLiteFile:
    """From 256 KiB on the quantizer puts weights behind the flatbuffer, where tools that rewrite the file lose them."""
    outside = [buffer for buffer in file.model.buffers if buffer.offset]
    for buffer in outside:
        buffer.data = np.frombuffer(file.content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return TFLiteFile.holding(file.model) if outside else file


def _ranges(file: TFLiteFile, samples: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{activation: its smallest and largest value}, as ai-edge-quantizer takes them; it knows weights by channel.

    Its own calibration averages over the samples, which clips (agreement with Keras on a ResNet-20 falls from 99 to
    97 %), and fails on tensors that nothing reads.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=file.content,
        num_threads=1,
        # A delegate would keep what passes inside of it to itself.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    run = interpreter.get_signature_runner()
    stored = {
        tensor.name.decode() for tensor in file.graph.tensors if file.model.buffers[tensor.buffer].data is not None
    }
    ranges: dict[str, dict[str, np.ndarray]] = {}
    for index in range(len(next(iter(samples.values())))):
        run(**{key: array[index : index + 1] for key, array in samples.items()})
        for tensor in interpreter.get_tensor_details():
            if tensor["dtype"] is not np.float32 or tensor["name"] in stored:
                continue
            values = interpreter.get_tensor(tensor["index"])
            # Stands for "no value" in maxima; as a range it would leave no resolution to anything else.
            values = values[np.abs(values) < _INFINITY]
            if values.size:
                bounds = {"min": values.min(), "max": values.max()}
                old = ranges.get(tensor["name"], bounds)
                ranges[tensor["name"]] = {
                    "min": np.minimum(old["min"], bounds["min"]).reshape([1] * len(tensor["shape"])),
                    "max": np.maximum(old["max"], bounds["max"]).reshape([1] * len(tensor["shape"])),
                }
    return ranges


def _fixed_ranges(file: TFLiteFile, fixed: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, np.ndarray]]:
    """Ranges of inputs by the names of their tensors."""
    ranges = {}
    for entry in file.model.signatureDefs[0].inputs:
        if (bounds := fixed.get(entry.name.decode())) is not None:
            tensor = file.graph.tensors[entry.tensorIndex]
            low, high = (np.full([1] * len(tensor.shape), bound, np.float32) for bound in bounds)
            ranges[tensor.name.decode()] = {"min": low, "max": high}
    return ranges


def _splits_with_unread_parts(file: TFLiteFile) -> list[str]:
    """Names of their first outputs: the quantizer leaves unread outputs in float32, a mixture that XNNPACK refuses."""
    graph = file.graph
    read = {int(tensor) for operator in graph.operators for tensor in operator.inputs} | set(map(int, graph.outputs))
    return [
        graph.tensors[operator.outputs[0]].name.decode()
        for kind, operator in zip(file.kinds[0], graph.operators, strict=True)
        if kind == "SPLIT" and not read.issuperset(map(int, operator.outputs))
    ]


def _without_power_of_two_sums(file: TFLiteFile) -> TFLiteFile:
    """LiteRT takes int16 sums for ones of powers of two when the scales happen to be some, and refuses the file."""
    model = copy.copy(file.model)
    model.subgraphs = [copy.copy(graph) for graph in model.subgraphs]
    for graph, kinds in zip(model.subgraphs, file.kinds, strict=True):
        graph.operators = [
            _with_any_scale(operator) if kind in ("ADD", "SUB") else operator
            for kind, operator in zip(kinds, graph.operators, strict=True)
        ]
    return TFLiteFile.holding(model)


def _with_any_scale(operator: Any) -> Any:
    operator = copy.copy(operator)
    operator.builtinOptions = copy.copy(operator.builtinOptions)
    operator.builtinOptions.potScaleInt16 = False
    return operator
