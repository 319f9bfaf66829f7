"""Inputs and outputs in uint8, as cameras and MediaPipe have them, around a file that computes in int8."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_filterprune.export.tflite_file import TFLiteFile

_SHIFT = 128
_LEVELS = 255.0


def pixel_range(mean: float, std: float) -> tuple[float, float]:
    """What pixels from 0 to 255 are for a network that takes `(pixel - mean) / std`: then a byte is a pixel."""
    return -mean / std, (_LEVELS - mean) / std


def with_unsigned_io(file: TFLiteFile) -> TFLiteFile:
    """The file with a conversion between uint8 and int8 at every int8 input and output.

    Args:
        file: an int8 file with int8 inputs and outputs; those of other types stay as they are.

    Returns:
        The new file. Inputs and outputs keep their names.
    """
    from ai_edge_litert import schema_py_generated as tflite

    model = copy.copy(file.model)
    graph, signature = copy.copy(file.graph), copy.copy(model.signatureDefs[0])
    graph.tensors, model.operatorCodes = list(graph.tensors), list(model.operatorCodes)
    # Version 2 is the one from integers to integers.
    code = tflite.OperatorCodeT(
        deprecatedBuiltinCode=tflite.BuiltinOperator.QUANTIZE, builtinCode=tflite.BuiltinOperator.QUANTIZE, version=2
    )
    model.operatorCodes.append(code)
    conversions: dict[str, list[Any]] = {"inputs": [], "outputs": []}
    for side, found in conversions.items():
        places = {}
        for tensor in map(int, getattr(graph, side)):
            if graph.tensors[tensor].type == tflite.TensorType.INT8:
                places[tensor] = _outside(graph, tensor)
                ends = (places[tensor], tensor) if side == "inputs" else (tensor, places[tensor])
                found.append(_conversion(len(model.operatorCodes) - 1, *ends))
        setattr(graph, side, [places.get(int(tensor), int(tensor)) for tensor in getattr(graph, side)])
        setattr(signature, side, [_moved(entry, places) for entry in getattr(signature, side)])
    graph.operators = [*conversions["inputs"], *graph.operators, *conversions["outputs"]]
    model.subgraphs = [graph, *model.subgraphs[1:]]
    model.signatureDefs = [signature, *model.signatureDefs[1:]]
    return TFLiteFile.holding(model)


def _outside(graph: Any, number: int) -> int:
    """Number of a uint8 tensor of the same values, under the name of the int8 one."""
    from ai_edge_litert import schema_py_generated as tflite

    inside = graph.tensors[number] = copy.copy(graph.tensors[number])
    outside = copy.copy(inside)
    outside.type, outside.buffer = tflite.TensorType.UINT8, 0
    outside.quantization = copy.copy(inside.quantization)
    outside.quantization.zeroPoint = np.asarray(inside.quantization.zeroPoint) + _SHIFT
    inside.name = inside.name + b"_int8"
    graph.tensors.append(outside)
    return len(graph.tensors) - 1


def _conversion(code: int, source: int, target: int) -> Any:
    from ai_edge_litert import schema_py_generated as tflite

    return tflite.OperatorT(opcodeIndex=code, inputs=[source], outputs=[target])


def _moved(entry: Any, places: Mapping[int, int]) -> Any:
    entry = copy.copy(entry)
    entry.tensorIndex = places.get(int(entry.tensorIndex), int(entry.tensorIndex))
    return entry
