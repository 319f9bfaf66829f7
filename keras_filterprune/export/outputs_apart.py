"""Outputs that nothing in a `.tflite` file reads: ai-edge-quantizer 0.10 leaves those that are read half-quantized.

Features beside the logits that are computed from them, say: their operator would write float32 from int8, which LiteRT
refuses, or the file would have an output too many.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from keras_filterprune.export.tflite_file import TFLiteFile


def with_outputs_apart(file: TFLiteFile) -> TFLiteFile:
    """The file with a copy of every output that an operator of it reads, or that is an input, in its place."""
    graph = file.graph
    read = {int(tensor) for operator in graph.operators for tensor in operator.inputs} | set(map(int, graph.inputs))
    shared = [int(tensor) for tensor in dict.fromkeys(graph.outputs) if int(tensor) in read]
    if not shared:
        return file
    model = copy.copy(file.model)
    graph = copy.copy(graph)
    graph.tensors, graph.operators = [*graph.tensors], [*graph.operators]
    model.buffers, model.subgraphs = [*model.buffers], [graph, *model.subgraphs[1:]]
    model.operatorCodes = [*model.operatorCodes, _reshape()]
    copies = {tensor: _copied(model, graph, tensor) for tensor in shared}
    graph.outputs = [copies.get(int(tensor), int(tensor)) for tensor in graph.outputs]
    model.signatureDefs = [copy.copy(signature) for signature in model.signatureDefs]
    signature = model.signatureDefs[0]
    signature.outputs = [copy.copy(entry) for entry in signature.outputs]
    for entry in signature.outputs:
        entry.tensorIndex = copies.get(int(entry.tensorIndex), int(entry.tensorIndex))
    return TFLiteFile.holding(model)


def _reshape() -> Any:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    code.version = 1
    return code


def _copied(model: Any, graph: Any, tensor: int) -> int:
    """Number of a new tensor, which an operator makes of another one: it gives it the shape that it has."""
    from ai_edge_litert import schema_py_generated as schema

    given = graph.tensors[tensor]
    sides = [*(given.shape if given.shapeSignature is None else given.shapeSignature)]
    shape, made, buffer = schema.TensorT(), copy.copy(given), schema.BufferT()
    buffer.data = np.frombuffer(np.array(sides, np.int32).tobytes(), np.uint8)
    shape.name, shape.type, shape.shape = given.name + b"/shape", schema.TensorType.INT32, [len(sides)]
    shape.buffer, made.name, made.buffer = len(model.buffers), given.name + b"/copy", len(model.buffers) + 1
    model.buffers += [buffer, schema.BufferT()]
    graph.tensors += [shape, made]
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = [tensor, len(graph.tensors) - 2], [len(graph.tensors) - 1]
    operator.builtinOptionsType, operator.builtinOptions = (
        schema.BuiltinOptions.ReshapeOptions,
        schema.ReshapeOptionsT(),
    )
    graph.operators.append(operator)
    return len(graph.tensors) - 1
