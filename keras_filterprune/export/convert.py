"""Keras model in, bytes of a `.tflite` file out: the only file that calls the TensorFlow converter."""

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import ExportError
from keras_filterprune.export.signature import InputPort, input_structure, output_keys


def convert(
    model: keras.Model, ports: Sequence[InputPort], folder: Path, mode: str, samples: dict[str, np.ndarray]
) -> bytes:
    """Convert a model at batch size 1, with TFLite's own operators only.

    Args:
        model: The model; it is not modified.
        ports: Its inputs.
        folder: Where to write the intermediate SavedModel.
        mode: "float32", "float16" (weights alone), or "int8" (weights and activations).
        samples: By input key; int8 takes the ranges of activations from them.

    Returns:
        The content of the file; inputs and outputs keep the model's dtypes, also in int8.

    Raises:
        ExportError: An operator has no TFLite counterpart, the model cannot be traced, or int8 meets a loop.
        OSError: The intermediate files cannot be written.
    """
    import tensorflow as tf

    try:
        serve = _serving_function(model, ports)
        if mode == "int8":
            _refuse_loops(model, serve)
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve)
        archive.write_out(os.fspath(folder), verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(os.fspath(folder))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if mode != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if mode == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if mode == "int8":
            # Operators without an int8 kernel stay float32 instead of failing the export.
            converter.target_spec.supported_ops.insert(0, tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
            converter.representative_dataset = lambda: _one_by_one(samples)
        return converter.convert()
    except (ExportError, OSError):
        raise
    # Tracing runs any code that the model's layers hold, and the converter's own error has no public name.
    except Exception as error:
        raise ExportError(f"cannot convert model {model.name!r} to TFLite: {_reason(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what native code writes to stdout and stderr, and the converter's warning about its own interpreter.

    Returns:
        A context manager.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated", UserWarning)
        # A notebook's streams are none of the process's descriptors.
        logger = logging.getLogger("tensorflow")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        sink = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, sink)
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            stack.callback(stream.flush)
            os.dup2(sink, descriptor)
        yield


def _serving_function(model: keras.Model, ports: Sequence[InputPort]) -> Any:
    import tensorflow as tf

    structure = input_structure(model)
    specs = [tf.TensorSpec((1, *port.shape), port.dtype, name=port.key) for port in ports]

    def serve(inputs: list[Any]) -> dict[str, Any]:
        outputs = model(keras.tree.pack_sequence_as(structure, inputs), training=False)
        return dict(zip(output_keys(outputs), keras.tree.flatten(outputs), strict=True))

    function = tf.function(serve, input_signature=[specs], autograph=False)
    function.get_concrete_function()
    return function


def _refuse_loops(model: keras.Model, function: Any) -> None:
    # TensorFlow 2.21's calibrator does not report a loop, it ends the process with a segmentation fault.
    graph = function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for nested in graph.library.function for node in nested.node_def)]
    loops = {node.op for node in nodes} & {"While", "StatelessWhile", "If", "StatelessIf"}
    if loops:
        raise ExportError(
            f"int8 quantisation cannot calibrate loops or branches, but model {model.name!r} contains "
            f"{', '.join(sorted(loops))}. Build recurrent layers with unroll=True, or export with quantize=None."
        )


def _one_by_one(samples: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for index in range(len(next(iter(samples.values())))):
        yield {key: array[index : index + 1] for key, array in samples.items()}


def _reason(error: Exception) -> str:
    unsupported = re.search(r"^(?:Custom|TF Select) ops: (.+)$", str(error), re.MULTILINE)
    if unsupported:
        return (
            f"TFLite has no operator for {unsupported[1].strip()}. "
            "Replace the layer that uses it, or cut the model before it."
        )
    return f"{type(error).__name__}: {str(error).strip()[:1000]}"
