"""A `.tflite` model of one operator with random weights, written without any converter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tflite_bench.operators.operator import Operator
from tflite_bench.runtimes import litert_module

_SEED = 0
# int8 tensors: a range of about -6 to 6, in which random inputs give outputs that are not all clipped.
_SCALE, _ZERO_POINT = 0.05, -5
# LiteRT accepts no other output quantization for these: their ranges are fixed.
_FIXED_OUTPUT = {"LOGISTIC": (1 / 256, -128), "SOFTMAX": (1 / 256, -128), "TANH": (1 / 128, 0)}


class _Tensor(NamedTuple):
    """A tensor of the file; one without data is filled in at run time. No scales: not quantized."""

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scales: np.ndarray | None = None
    zero_point: int = 0
    axis: int = 0


def operator_model(operator: Operator) -> bytes:
    """Build a `.tflite` model that holds one operator and nothing else.

    Args:
        operator: what to build.

    Returns:
        Content of a `.tflite` file: fixed shapes, batch 1, no signature. Weights are random, the same in every call.

    Raises:
        BenchError: ai-edge-litert is not installed.

    Example:
        >>> content = operator_model(Operator("CONV_2D", 3, (32, 32), filters=8, kernel=(3, 3)))
        >>> content[4:8]
        b'TFL3'
    """
    schema = litert_module("schema_py_generated")
    options_name, make_inputs = _KINDS[operator.kind]
    inputs = make_inputs(operator, np.random.default_rng(_SEED))
    scale, zero_point = _FIXED_OUTPUT.get(operator.kind, (_SCALE, _ZERO_POINT))
    tensors = [*inputs, _activation(operator, operator.output_shape, scale, zero_point)]
    code = getattr(schema.BuiltinOperator, operator.kind)
    node = schema.OperatorT(inputs=list(range(len(inputs))), outputs=[len(inputs)])
    if options_name is not None:
        node.builtinOptionsType = getattr(schema.BuiltinOptions, options_name)
        node.builtinOptions = _options(operator, schema, options_name)
    graph = schema.SubGraphT(
        tensors=[_packed(tensor, index, schema) for index, tensor in enumerate(tensors)],
        inputs=[index for index, tensor in enumerate(inputs) if tensor.data is None],
        outputs=node.outputs,
        operators=[node],
    )
    model = schema.ModelT(
        version=3,
        # The older of the two code fields holds one byte; readers take the larger value.
        operatorCodes=[schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), version=1, builtinCode=code)],
        subgraphs=[graph],
        # Buffer 0 stands for "no data", as in every .tflite file.
        buffers=[schema.BufferT(), *(schema.BufferT(data=_as_bytes(tensor)) for tensor in tensors)],
    )
    # ai-edge-litert's schema stands on flatbuffers, which therefore is there too.
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _as_bytes(tensor: _Tensor) -> np.ndarray | None:
    return None if tensor.data is None else np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)


def _packed(tensor: _Tensor, index: int, schema: Any) -> Any:
    packed = schema.TensorT(
        shape=list(tensor.shape),
        type=getattr(schema.TensorType, tensor.dtype.upper()),
        buffer=0 if tensor.data is None else index + 1,
        name=f"tensor_{index}",
    )
    if tensor.scales is not None:
        packed.quantization = schema.QuantizationParametersT(
            scale=np.asarray(tensor.scales, np.float32),
            zeroPoint=np.full(len(tensor.scales), tensor.zero_point, np.int64),
            quantizedDimension=tensor.axis,
        )
    return packed


def _options(operator: Operator, schema: Any, name: str) -> Any:
    options = getattr(schema, f"{name}T")()
    values = {
        "padding": getattr(schema.Padding, operator.padding.upper()),
        "strideH": operator.strides[0],
        "strideW": operator.strides[1],
        "dilationHFactor": operator.dilation[0],
        "dilationWFactor": operator.dilation[1],
        "filterHeight": operator.kernel[0],
        "filterWidth": operator.kernel[1],
        "depthMultiplier": operator.filters // operator.channels,
        "fusedActivationFunction": getattr(
            schema.ActivationFunctionType, "NONE" if operator.activation is None else operator.activation.upper()
        ),
        "axis": 3,
        "alpha": 0.2,
        "beta": 1.0,
        "halfPixelCenters": True,
    }
    for attribute in values.keys() & vars(options).keys():
        setattr(options, attribute, values[attribute])
    return options


# ------------------------------------------------------------------------------------------------------- tensors


def _activation(
    operator: Operator, shape: tuple[int, ...], scale: float = _SCALE, zero_point: int = _ZERO_POINT
) -> _Tensor:
    if operator.data_type == "float32":
        return _Tensor(shape, "float32")
    return _Tensor(shape, "int8", scales=np.array([scale]), zero_point=zero_point)


def _input(operator: Operator) -> _Tensor:
    return _activation(operator, (1, *operator.size, operator.channels))


def _integers(values: Any) -> _Tensor:
    data = np.array(values, np.int32)
    return _Tensor(data.shape, "int32", data)


def _weights_and_bias(
    operator: Operator, generator: np.random.Generator, shape: tuple[int, ...], axis: int
) -> tuple[_Tensor, _Tensor]:
    count = shape[axis]
    # With this deviation outputs have the size of the inputs.
    deviation = (np.prod(shape) / count) ** -0.5
    if operator.data_type == "float32":
        weights = generator.standard_normal(shape, np.float32) * np.float32(deviation)
        return _Tensor(shape, "float32", weights), _stored(operator, generator, (count,))
    weights = generator.integers(-127, 127, shape, np.int8, endpoint=True)
    scales = deviation / weights.std() * np.linspace(0.5, 1, count)
    bias = np.round(generator.standard_normal(count) / (_SCALE * scales)).astype(np.int32)
    return (
        _Tensor(shape, "int8", weights, scales, axis=axis),
        _Tensor((count,), "int32", bias, _SCALE * scales),
    )


def _stored(operator: Operator, generator: np.random.Generator, shape: tuple[int, ...]) -> _Tensor:
    if operator.data_type == "float32":
        return _Tensor(shape, "float32", generator.standard_normal(shape, np.float32))
    data = generator.integers(-127, 127, shape, np.int8, endpoint=True)
    return _Tensor(shape, "int8", data, np.array([_SCALE]), _ZERO_POINT)


def _convolution(operator: Operator, generator: np.random.Generator) -> list[_Tensor]:
    shape = (operator.filters, *operator.kernel, operator.channels // operator.groups)
    return [_input(operator), *_weights_and_bias(operator, generator, shape, axis=0)]


def _depthwise(operator: Operator, generator: np.random.Generator) -> list[_Tensor]:
    shape = (1, *operator.kernel, operator.filters)
    return [_input(operator), *_weights_and_bias(operator, generator, shape, axis=3)]


def _transposed(operator: Operator, generator: np.random.Generator) -> list[_Tensor]:
    shape = (operator.filters, *operator.kernel, operator.channels)
    weights, bias = _weights_and_bias(operator, generator, shape, axis=0)
    return [_integers(operator.output_shape), weights, _input(operator), bias]


def _fully_connected(operator: Operator, generator: np.random.Generator) -> list[_Tensor]:
    shape = (operator.filters, operator.channels)
    flat = _activation(operator, (1, operator.channels))
    return [flat, *_weights_and_bias(operator, generator, shape, axis=0)]


def _binary(operator: Operator, generator: np.random.Generator) -> list[_Tensor]:
    first = _input(operator)
    if operator.second in ("constant", "row"):
        columns = operator.size[1:] if operator.second == "row" else ()
        return [first, _stored(operator, generator, (*columns, operator.channels))]
    gate = _activation(operator, (1, 1, 1, operator.channels))
    return [first, gate if operator.second == "gate" else first]


def _mean(operator: Operator, _: np.random.Generator) -> list[_Tensor]:
    return [_input(operator), _integers([1, 2])]


def _pad(operator: Operator, _: np.random.Generator) -> list[_Tensor]:
    space = [(total // 2, total - total // 2) for total in operator.kernel]
    return [_input(operator), _integers([(0, 0), *space, (0, operator.filters - operator.channels)])]


def _concatenation(operator: Operator, _: np.random.Generator) -> list[_Tensor]:
    rest = operator.filters - operator.channels
    return [_input(operator), _activation(operator, (1, *operator.size, rest))]


def _resize(operator: Operator, _: np.random.Generator) -> list[_Tensor]:
    return [_input(operator), _integers(operator.output_size)]


def _alone(operator: Operator, _: np.random.Generator) -> list[_Tensor]:
    return [_input(operator)]


# TFLite's name of the options (None: it has none) and what makes the input tensors, in TFLite's order.
_KINDS: dict[str, tuple[str | None, Callable[[Operator, np.random.Generator], list[_Tensor]]]] = {
    "CONV_2D": ("Conv2DOptions", _convolution),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", _depthwise),
    "TRANSPOSE_CONV": ("TransposeConvOptions", _transposed),
    "FULLY_CONNECTED": ("FullyConnectedOptions", _fully_connected),
    "ADD": ("AddOptions", _binary),
    "MUL": ("MulOptions", _binary),
    "MEAN": ("ReducerOptions", _mean),
    "MAX_POOL_2D": ("Pool2DOptions", _alone),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _alone),
    "PAD": ("PadOptions", _pad),
    "CONCATENATION": ("ConcatenationOptions", _concatenation),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", _resize),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", _resize),
    "RELU": (None, _alone),
    "RELU6": (None, _alone),
    "LOGISTIC": (None, _alone),
    "TANH": (None, _alone),
    "HARD_SWISH": ("HardSwishOptions", _alone),
    "LEAKY_RELU": ("LeakyReluOptions", _alone),
    "ELU": (None, _alone),
    "GELU": ("GeluOptions", _alone),
    "SOFTMAX": ("SoftmaxOptions", _alone),
}
