"""The operators of a `.tflite` file: which Keras layer each comes from, and whether XNNPACK takes it."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras

from keras_filterprune.errors import ExportError
from keras_filterprune.export.signature import output_layers
from keras_filterprune.handlers.registry import keras_name

_VARIABLES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "CONV_3D")
_FLOATS = ("FLOAT32", "FLOAT16")


@dataclass(frozen=True)
class FileOperator:
    """One operator of a file's main graph.

    Args:
        kind: TFLite's name, for example CONV_2D.
        layer: Path of the Keras layer, such as `"stem"` or `"inner/stem"`; None where it is not known.
        place: What to call it in a sentence: the layer, or what it comes after.
        layer_class: Class name of the layer, or of the Keras layer that it is registered like; `""` where it is not
            known.
        output: Name of its first output tensor.
        data_type: TFLite's name for the type of that tensor, for example INT8.
        delegated: Whether LiteRT hands it to XNNPACK, its CPU delegate.
        folded: Whether XNNPACK makes it part of the convolution behind it.
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


class LayerNames:
    """Finds Keras layers by the names that TensorFlow gives to what they compute.

    Args:
        model: The model that was converted.
    """

    def __init__(self, model: keras.Model):
        self._model = model

    def find(self, tensor_name: str, kind: str = "") -> tuple[str, Any] | None:
        """Path and layer that compute a tensor, by its name; None if that mentions none.

        Names of fused operators mention several layers: convolutions and products go to the one with the weights,
        others (`kind` is the operator) to the first.
        """
        found = list(filter(None, map(self._layer_of_scope, tensor_name.split(";"))))
        if kind in _WEIGHTED:
            found.sort(key=lambda place: not hasattr(place[1], "kernel"))
        return found[0] if found else None

    def _layer_of_scope(self, scope: str) -> tuple[str, Any] | None:
        level, path, layer = self._model, [], None
        for part in scope.split("/"):
            # TensorFlow numbers every scope: layer "conv" is found as conv_1, layer "conv_1" as conv_1_2.
            names = {inner.name: inner for inner in level.layers}
            name = next((n for n in (re.sub(r"_\d+$", "", part), part) if n in names), None)
            if name is not None:
                path.append(name)
                layer = names[name]
            # The model's own scope stands first.
            if not isinstance(layer, keras.Model) and (layer is not None or part != scope.split("/")[0]):
                break
            level = layer or level
        return ("/".join(path), layer) if layer is not None else None


def count_operators(content: bytes) -> dict[str, int]:
    """Count the operators of a `.tflite` file.

    Args:
        content: The bytes of the file.

    Returns:
        `{TFLite operator name: count}`, sorted by name.
    """
    model = unpack(content)
    counts = Counter(_kind(model, operator) for graph in model.subgraphs for operator in graph.operators)
    return dict(sorted(counts.items()))


def read_operators(content: bytes, model: keras.Model) -> list[FileOperator]:
    """List the operators of a file's main graph in the order of execution.

    Args:
        content: The bytes of the file.
        model: The Keras model that it was made from.

    Returns:
        The operators.
    """
    parsed, layers = unpack(content), LayerNames(model)
    graph, types = parsed.subgraphs[0], _names_of("TensorType")
    kinds = [_kind(parsed, operator) for operator in graph.operators]
    delegated, from_outputs = _delegated(content), _output_layers(parsed, kinds, model)
    found, places = [], {}
    for index, (kind, operator) in enumerate(zip(kinds, graph.operators, strict=True)):
        first = graph.tensors[operator.outputs[0]]
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
                delegated=index in delegated,
                folded=_folds(graph, kinds, index, delegated),
            )
        )
    return found


def refuse_operators(content: bytes, model: keras.Model) -> None:
    """Raise unless LiteRT can run every operator of the file, with no state between two runs.

    Args:
        content: The bytes of the file.
        model: The Keras model that it was made from.

    Raises:
        ExportError: The file holds a custom or TensorFlow ("Flex") operator, or a variable.
    """
    parsed, layers = unpack(content), LayerNames(model)
    for graph in parsed.subgraphs:
        for operator in graph.operators:
            kind = _kind(parsed, operator)
            name = graph.tensors[operator.outputs[0]].name.decode() if len(operator.outputs) else ""
            place = layers.find(name)
            where = f"layer {place[0]!r}" if place else f"tensor {name!r}"
            if kind in _VARIABLES:
                raise ExportError(
                    f"the converted file of model {model.name!r} holds a variable ({kind} for {where}), which LiteRT "
                    "would start from nothing. Make the layer stateless, or assign the variable to an attribute of it."
                )
            if kind.startswith("CUSTOM"):
                raise ExportError(
                    f"the converted file of model {model.name!r} needs the operator {kind} for {where}, which LiteRT "
                    "does not have. Replace the layer, or cut the model before it."
                )


def _names_of(enumeration: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(getattr(schema, enumeration)).items() if isinstance(code, int)}


def _kind(parsed: Any, operator: Any) -> str:
    code = parsed.operatorCodes[operator.opcodeIndex]
    # Codes below 127 stand in the old one-byte field, later ones only in the new field.
    kind = _names_of("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return f"CUSTOM:{code.customCode.decode()}" if kind == "CUSTOM" else kind


def _folds(graph: Any, kinds: list[str], index: int, delegated: set[int]) -> bool:
    """Whether an operator pads the input of one convolution alone, which computes with the types it is given."""
    output = graph.operators[index].outputs[0]
    readers = [number for number, other in enumerate(graph.operators) if output in other.inputs]
    if kinds[index] != "PAD" or len(readers) != 1 or not {index, *readers} <= delegated:
        return False
    if kinds[readers[0]] not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return False
    options = graph.operators[readers[0]].builtinOptions
    # TFLite's padding 1 is VALID.
    if options.padding != 1 and (options.strideH, options.strideW) != (1, 1):
        return False
    weights = graph.tensors[graph.operators[readers[0]].inputs[1]]
    # Between float32 activations and int8 weights stands a conversion.
    hybrid = _names_of("TensorType")[graph.tensors[output].type] == "FLOAT32" and weights.quantization is not None
    return not (hybrid and weights.quantization.scale is not None)


def _output_layers(parsed: Any, kinds: list[str], model: keras.Model) -> dict[int, str]:
    """{index of an output tensor: its layer}, because the converter gives outputs names of its own."""
    names, graph = output_layers(model), parsed.subgraphs[0]
    layers = {
        entry.tensorIndex: names[entry.name.decode()]
        for signature in parsed.signatureDefs or ()
        for entry in signature.outputs
        if entry.name.decode() in names
    }
    for kind, operator in zip(kinds, graph.operators, strict=True):
        if kind in ("QUANTIZE", "DEQUANTIZE") and operator.outputs[0] in layers:
            layers[operator.inputs[0]] = layers[operator.outputs[0]]
    return layers


def _delegated(content: bytes) -> set[int]:
    """Indices of the operators that run inside XNNPACK, read off what LiteRT does with the file on this computer."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"LiteRT cannot run the converted file: {error}") from error
    # No public name gives the plan; after the file's own operators it lists each delegate with what goes in and out.
    plan = interpreter._get_ops_details()
    own = [node for node in plan if node["op_name"] != "DELEGATE"]
    producers = {int(tensor): node for node in own for tensor in node["outputs"]}
    inside: set[int] = set()
    for delegate in plan[len(own) :]:
        border = set(map(int, delegate["inputs"]))
        waiting = list(map(int, delegate["outputs"]))
        while waiting:
            tensor = waiting.pop()
            node = None if tensor in border else producers.get(tensor)
            if node is not None and node["index"] not in inside:
                inside.add(node["index"])
                waiting += map(int, node["inputs"])
    return inside


def unpack(content: bytes) -> Any:
    """The `ModelT` of LiteRT's schema that a file holds."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(content, 0)


def pack(model: Any) -> bytes:
    """The content of a file that holds this `ModelT`."""
    # ai-edge-litert's schema stands on flatbuffers, which therefore is there too.
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
