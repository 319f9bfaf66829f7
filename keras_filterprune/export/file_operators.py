"""The operators of a `.tflite` file: which Keras layer each comes from, and whether XNNPACK takes it."""

from __future__ import annotations

from dataclasses import dataclass

import keras

from keras_filterprune.errors import ExportError
from keras_filterprune.export.layer_names import LayerNames
from keras_filterprune.export.signature import output_layers
from keras_filterprune.export.tflite_file import TFLiteFile, names_of
from keras_filterprune.handlers.registry import keras_name

_VARIABLES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
_FLOATS = ("FLOAT32", "FLOAT16")


@dataclass(frozen=True)
class FileOperator:
    """One operator of a file's main graph.

    Attributes:
        kind: TFLite's name, for example CONV_2D.
        layer: path of the Keras layer, such as `"stem"` or `"inner/stem"`; None where it is not known.
        place: what to call it in a sentence: the layer, or what it comes after.
        layer_class: class name of the layer, or of the Keras layer that it is registered like; `""` where it is not
            known.
        output: name of its first output tensor.
        data_type: TFLite's name for the type of that tensor, for example INT8.
        delegated: whether LiteRT hands it to XNNPACK, its CPU delegate.
        folded: whether XNNPACK makes it part of the convolution behind it.
    """

    kind: str
    layer: str | None
    place: str
    layer_class: str
    output: str
    data_type: str
    delegated: bool
    folded: bool

    @property
    def is_float(self) -> bool:
        """Whether it computes floating-point numbers."""
        return self.data_type in _FLOATS


def read_operators(file: TFLiteFile, model: keras.Model) -> list[FileOperator]:
    """List the operators of a file's main graph in the order of execution.

    Args:
        file: the file.
        model: the Keras model that it was made from.

    Returns:
        The operators.
    """
    layers, from_outputs, folded = LayerNames(model), _output_layers(file, model), _folded(file)
    types = names_of("TensorType")
    found: list[FileOperator] = []
    places: dict[int, str] = {}
    for index, (kind, operator) in enumerate(zip(file.kinds[0], file.graph.operators, strict=True)):
        first = file.graph.tensors[operator.outputs[0]]
        path, layer = layers.find(first.name.decode(), kind) or (from_outputs.get(operator.outputs[0]), None)
        before = next((places[tensor] for tensor in operator.inputs if tensor in places), "the input")
        place = f"layer {path!r}" if path else f"after {before.removeprefix('after ')}"
        places |= dict.fromkeys(operator.outputs, place)
        found.append(
            FileOperator(
                kind=kind,
                layer=path,
                place=place,
                layer_class=(keras_name(layer) or type(layer).__name__) if layer is not None else "",
                output=first.name.decode(),
                data_type=types[first.type],
                delegated=index in file.delegated,
                folded=index in folded,
            )
        )
    return found


def refuse_operators(file: TFLiteFile, model: keras.Model) -> None:
    """Raise unless LiteRT can run every operator of the file, with no state between two runs.

    Args:
        file: the file.
        model: the Keras model that it was made from.

    Raises:
        ExportError: the file holds a custom or TensorFlow ("Flex") operator, or a variable.
    """
    layers = LayerNames(model)
    for graph, kinds in zip(file.model.subgraphs, file.kinds, strict=True):
        for kind, operator in zip(kinds, graph.operators, strict=True):
            if kind not in _VARIABLES and not kind.startswith("CUSTOM"):
                continue
            name = graph.tensors[operator.outputs[0]].name.decode() if len(operator.outputs) else ""
            place = layers.find(name)
            where = f"layer {place[0]!r}" if place else f"tensor {name!r}"
            if kind in _VARIABLES:
                raise ExportError(
                    f"the converted file of model {model.name!r} holds a variable ({kind} for {where}), which LiteRT "
                    "would start from nothing. Make the layer stateless, or assign the variable to an attribute of it."
                )
            raise ExportError(
                f"the converted file of model {model.name!r} needs the operator {kind} for {where}, which LiteRT "
                "does not have. Replace the layer, or cut the model before it."
            )


def _folded(file: TFLiteFile) -> set[int]:
    """Numbers of those that pad the input of one convolution alone, which computes with the types it is given."""
    graph, kinds = file.graph, file.kinds[0]
    readers: dict[int, list[int]] = {}
    for number, operator in enumerate(graph.operators):
        for tensor in set(map(int, operator.inputs)):
            readers.setdefault(tensor, []).append(number)
    found = set()
    for index in (index for index, kind in enumerate(kinds) if kind == "PAD"):
        output = graph.operators[index].outputs[0]
        behind = readers.get(output, [])
        if len(behind) == 1 and {index, *behind} <= file.delegated and _takes_padding(file, behind[0], output):
            found.add(index)
    return found


def _takes_padding(file: TFLiteFile, index: int, padded: int) -> bool:
    if file.kinds[0][index] not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return False
    graph, operator = file.graph, file.graph.operators[index]
    options = operator.builtinOptions
    # TFLite's padding 1 is VALID.
    if options.padding != 1 and (options.strideH, options.strideW) != (1, 1):
        return False
    weights = graph.tensors[operator.inputs[1]]
    # Between float32 activations and int8 weights stands a conversion.
    hybrid = names_of("TensorType")[graph.tensors[padded].type] == "FLOAT32" and weights.quantization is not None
    return not (hybrid and weights.quantization.scale is not None)


def _output_layers(file: TFLiteFile, model: keras.Model) -> dict[int, str]:
    """{index of an output tensor: its layer}, because the converter gives outputs names of its own."""
    names = output_layers(model)
    layers = {
        entry.tensorIndex: names[entry.name.decode()]
        for signature in file.model.signatureDefs or ()
        for entry in signature.outputs
        if entry.name.decode() in names
    }
    for kind, operator in zip(file.kinds[0], file.graph.operators, strict=True):
        if kind in ("QUANTIZE", "DEQUANTIZE") and operator.outputs[0] in layers:
            layers[operator.inputs[0]] = layers[operator.outputs[0]]
    return layers
