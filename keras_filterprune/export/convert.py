"""Keras model in, bytes of a `.tflite` file out: the only file that calls the TensorFlow converter.

Which engine makes which mode was chosen by measurement (TensorFlow 2.21, ai-edge-quantizer 0.10; ResNet-20 on
CIFAR-10, MobileNetV2 and MobileNetV3Small at 96 x 96): the converter alone makes float32, float16 and dynamic, whose
files ai-edge-quantizer makes no smaller than 2.5 % and up to 3 times slower. `integers.py` says why int8 and int16x8
go through ai-edge-quantizer.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import ExportError, UnknownNameError
from keras_filterprune.export.file_operators import FileOperator, read_operators
from keras_filterprune.export.image_constants import stored_by_column
from keras_filterprune.export.integers import quantize_statically
from keras_filterprune.export.layer_names import LayerNames
from keras_filterprune.export.signature import input_ports, input_structure, output_keys
from keras_filterprune.export.tflite_file import TFLiteFile
from keras_filterprune.files import unfinished
from keras_filterprune.graph.keras_view import view_model

INTEGER_MODES = ("int8", "int16x8")


def convert(model: keras.Model, keys: Sequence[str], mode: str, dynamic_batch: bool = False) -> bytes:
    """Convert a model with TFLite's own operators only.

    Args:
        model: the model; it is not modified.
        keys: what the file calls the inputs.
        mode: "float32", "float16" (weights alone), or "dynamic" (int8 weights, activations rounded at run time); the
            integer modes begin with a float32 file.
        dynamic_batch: leave the batch size open instead of 1 (False).

    Returns:
        The content of the file; inputs and outputs keep the model's dtypes.

    Raises:
        ExportError: an operator has no TFLite counterpart, or the model cannot be traced.
        OSError: the disk is full.
    """
    import tensorflow as tf
    from ai_edge_litert import schema_py_generated as schema

    function = None
    try:
        with stored_by_column(model):
            function = _serving_function(model, keys, None if dynamic_batch else 1)
        # Not by way of a SavedModel: the converter reads that twice, and looks through all objects for garbage.
        owner = tf.Module()
        owner.weights = function.variables
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], owner)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if mode in ("float16", "dynamic"):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if mode == "float16":
            converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
        if not schema.Model.GetRootAs(content, 0).SignatureDefsLength():
            # What it cannot save, the converter goes on without; to save it here says why.
            with unfinished() as folder:
                tf.saved_model.save(owner, os.fspath(folder / "work"), signatures=function)
        return content
    except (ExportError, OSError):
        raise
    # Tracing runs any code that the model's layers hold, and the converter's own error has no public name.
    except Exception as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise ExportError(
            f"cannot convert model {model.name!r} to TFLite: {_reason(error, model, function)}"
        ) from error


def convert_to_integers(
    file: TFLiteFile,
    model: keras.Model,
    mode: str,
    samples: dict[str, np.ndarray],
    keep_float: Sequence[str] = (),
    integer_io: bool | str = False,
    fixed: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[TFLiteFile, list[FileOperator]]:
    """Quantize weights and activations of a float32 file.

    Args:
        file: the float32 file.
        model: the model that it was made from.
        mode: "int8" or "int16x8".
        samples: by input key; the ranges of activations are taken from them.
        keep_float: operators (TFLite's names) and layers that stay in float32.
        integer_io, fixed: as in `quantize_statically`.

    Returns:
        The quantized file, and the operators that stay in float32 because of `keep_float`.

    Raises:
        ExportError: the model holds a loop, or the quantizer fails.
        UnknownNameError: an entry of `keep_float` is neither an operator of the file nor a layer with operators.
    """
    operators = read_operators(file, model)
    loops = sorted({op.kind for op in operators} & {"WHILE", "IF"})
    if loops:
        raise ExportError(
            f"{mode} quantization cannot calibrate loops or branches, but model {model.name!r} contains "
            f"{', '.join(loops)} ({', '.join(dict.fromkeys(op.place for op in operators if op.kind in loops))}). "
            "Build recurrent layers with unroll=True, or export with quantize=None or 'dynamic'."
        )
    kept = []
    for name in keep_float:
        chosen = [op for op in operators if name in (op.kind, op.layer)]
        if not chosen:
            raise UnknownNameError(
                f"keep_float holds operators or layers of the file. Received: {name!r}. The operators are "
                f"{', '.join(sorted({op.kind for op in operators}))}; the layers are "
                f"{', '.join(dict.fromkeys(op.layer for op in operators if op.layer))}."
            )
        kept += chosen
    try:
        return quantize_statically(file, mode, samples, kept, integer_io, fixed), kept
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise ExportError(
            f"ai-edge-quantizer cannot quantize model {model.name!r} to {mode}: {_first_lines(error)}. "
            "Leave the operators or layers concerned in float32 with keep_float=, or export with quantize='dynamic'."
        ) from error


def _serving_function(model: keras.Model, keys: Sequence[str], batch: int | None) -> Any:
    import tensorflow as tf

    structure = input_structure(model)
    ports = zip(keys, input_ports(model), strict=True)
    specs = [tf.TensorSpec((batch, *port.shape), port.dtype, name=key) for key, port in ports]

    def serve(inputs: list[Any]) -> dict[str, Any]:
        outputs = model(keras.tree.pack_sequence_as(structure, inputs), training=False)
        return dict(zip(output_keys(outputs), keras.tree.flatten(outputs), strict=True))

    return tf.function(serve, input_signature=[specs], autograph=False).get_concrete_function()


def _reason(error: Exception, model: keras.Model, function: Any) -> str:
    unsupported = re.search(r"^(?:Custom|TF Select) ops: (.+)$", str(error), re.MULTILINE)
    if not unsupported or function is None:
        return _first_lines(error)
    # A placeholder is a table that a layer looks words up in.
    kinds = [kind for kind in unsupported[1].replace(" ", "").split(",") if kind != "Placeholder"]
    return (
        f"TFLite has no operator for {', '.join(kinds)} ({_places(kinds, model, function)}). "
        "Replace the layer that uses it, or cut the model before it."
    )


def _places(kinds: Sequence[str], model: keras.Model, function: Any) -> str:
    layers = LayerNames(model)
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for nested in graph.library.function for node in nested.node_def)]
    found = [layers.find(node.name) for node in nodes if node.op in kinds]
    names = dict.fromkeys(place[0] for place in found if place)
    if names:
        return f"layer {', '.join(map(repr, names))}"
    calls = view_model(model).calls
    operations = [call.path for call in calls if call.inputs and not isinstance(call.op, keras.layers.Layer)]
    where = f", in one of the operations {', '.join(map(repr, operations))}" if operations else ""
    return f"outside of any layer{where}"


def _first_lines(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:1000]}"
