"""To tf_keras and back: a file for scripts of one's own, training there, and int8 files after training for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import renamed_arguments
from keras_filterprune.export.advice import advise
from keras_filterprune.export.calibration import calibration_samples, random_samples
from keras_filterprune.export.file_operators import read_operators, refuse_operators
from keras_filterprune.export.parity import compare_outputs
from keras_filterprune.export.signature import input_ports, output_keys, output_structure
from keras_filterprune.export.tflite import PARITY_SAMPLES, ExportResult, export_result, first_samples
from keras_filterprune.export.tflite_file import TFLiteFile
from keras_filterprune.files import check_destination, replacing
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.tfmot.description import describe
from keras_filterprune.tfmot.process import Job, Train, carry_out, check_installed, find_function


def to_tf_keras(model: keras.Model, path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write a model as a tf_keras `.h5` file, for scripts of your own that use tfmot.

    The work is done in a process of its own: tf_keras is not imported here. Every layer is built anew in tf_keras, and
    its outputs on a random batch agree to 1e-5 of their largest value. Nested models are dissolved: their layers are
    called "nested/layer". Initializers are left behind; activations that tf_keras lacks become layers of their own.

    In your script, `tf_keras.models.load_model(path)` gives the model. `keras.saving.load_model` reads what you save as
    `.h5` there, once tfmot's wrappers are stripped.

    Args:
        model: a built functional or Sequential model in float32; not modified.
        path: the file, ending in `.h5`.
        overwrite: replace an existing file (False).

    Returns:
        The path.

    Raises:
        UnsupportedModelError: the first layer is named that tf_keras does not have, or that differs there.
        MissingPackageError: tf_keras is not installed.
        InvalidValueError, FileError: the name ends in something else; the file exists, or cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> path = to_tf_keras(model, "twin.h5")  # doctest: +SKIP
    """
    path = check_destination(path, overwrite, [".h5"])
    check_installed("to_tf_keras")
    described = describe(model)
    job = Job("save", model.name, described)
    with replacing(path, overwrite) as draft:
        draft.write_bytes(carry_out(job)["content"])
    return path


def train_in_tf_keras(model: keras.Model, train: Train, *arguments: Any) -> keras.Model:
    """Let a function train the tf_keras twin of a model, and give a copy of the model the weights it ends with.

    For what tfmot does to weights: clustering, unstructured and 2:4 sparsity. The function runs in a process of its
    own, the only one that imports tf_keras: import tfmot inside of it. Its process prints to this one's streams. In a
    script, start the work under `if __name__ == "__main__":`, since the process runs the script to find the function.
    In the current folder and in that of the script it finds no other modules than the function's and those that are
    imported here, so that a file of an unlucky name there does no harm.

    Args:
        model: a built functional or Sequential model in float32; not modified. See `to_tf_keras`.
        train: `train(twin, *arguments)` returns the trained model, without tfmot's wrappers. A function at the top
            level of a module or of the script, or its name, "module:function".
        arguments: whatever can be pickled, such as NumPy arrays.

    Returns:
        A copy of the model with the new weights, compiled like the original if that was.

    Raises:
        UnsupportedModelError: the first layer is named that tf_keras does not have, or that differs there.
        InvalidValueError: the other process cannot import the function or receive the arguments.
        ExportError: the function raised, or returned a model with other layers.
        MissingPackageError: tf_keras is not installed.

    Example:
        In a file `recipes.py`::

            def sparse(twin, x, y):
                import tensorflow_model_optimization as tfmot

                sparsity = tfmot.sparsity.keras
                wrapped = sparsity.prune_low_magnitude(twin, sparsity_m_by_n=(2, 4))
                wrapped.compile("adam", "sparse_categorical_crossentropy")
                wrapped.fit(x, y, callbacks=[sparsity.UpdatePruningStep()])
                return sparsity.strip_pruning(wrapped)

        and then

        >>> sparse = train_in_tf_keras(model, "recipes:sparse", x, y)  # doctest: +SKIP
    """
    check_installed("train_in_tf_keras")
    described = describe(model)
    job = Job("train", model.name, described, find_function(train), arguments)
    weights = carry_out(job)["weights"]
    graph = analyze(model)
    cloner = Cloner(graph.view)
    result = cloner.result(model)
    for path, op in {call.path: call.op for call in graph.view.calls}.items():
        if path in weights:
            cloner.twins[id(op)].set_weights(weights[path])
    return result


@renamed_arguments(samples="data")
def export_qat(
    model: keras.Model,
    path: str | os.PathLike,
    train: Train,
    *arguments: Any,
    data: Any = None,
    overwrite: bool = False,
) -> ExportResult:
    """Let a function train the tf_keras twin of a model for int8, and write what it returns as a `.tflite` file.

    Ranges of weights and activations are those of the training, so no calibration data is needed. Layers that tfmot's
    scheme leaves out stay float32. Inputs and outputs keep their dtypes. See `train_in_tf_keras` for how the function
    is called.

    Args:
        model: a built functional or Sequential model in float32 with fixed input sizes; not modified.
        path: the file to write.
        train: `train(twin, *arguments)` trains `tfmot.quantization.keras.quantize_model(twin)` and returns it.
        arguments: whatever can be pickled, such as NumPy arrays.
        data: inputs as `data` in `export_tflite`; the first 16 serve the check (None: random inputs).
        overwrite: replace an existing file (False).

    Returns:
        As `export_tflite`, with the differences between the file and the trained tf_keras model.

    Raises:
        UnsupportedModelError: the first layer is named that tf_keras does not have, or that differs there.
        InvalidValueError: the other process cannot import the function or receive the arguments.
        CalibrationDataError: the samples do not fit the inputs.
        ExportError: the function raised or returned a model that is not quantization-aware, or the file cannot be
            converted; an existing file is untouched.
        FileError: the file exists, or cannot be written.
        MissingPackageError: tf_keras or LiteRT is not installed.

    Example:
        In a file `recipes.py`::

            def quantized(twin, x, y):
                import tensorflow_model_optimization as tfmot

                qat = tfmot.quantization.keras.quantize_model(twin)
                qat.compile("adam", "sparse_categorical_crossentropy")
                qat.fit(x, y)
                return qat

        and then

        >>> result = export_qat(model, "small.tflite", "recipes:quantized", x, y, data=x)  # doctest: +SKIP
    """
    check_installed("export_qat", ai_edge_litert="tflite")
    path = check_destination(path, overwrite)
    ports = input_ports(model)
    samples = random_samples(ports, PARITY_SAMPLES) if data is None else calibration_samples(ports, data)
    samples = first_samples(samples)
    outputs = output_keys(output_structure(model))
    job = Job(
        "export",
        model.name,
        describe(model),
        find_function(train),
        arguments,
        tuple((port.key, port.shape, port.dtype) for port in ports),
        tuple(outputs),
        samples,
    )
    with replacing(path, overwrite) as draft:
        result = carry_out(job)
        file = TFLiteFile(result["content"]).in_order([port.key for port in ports], outputs)
        refuse_operators(file, model)
        parity = compare_outputs(model.name, result["outputs"], file.content, samples)
        slow = advise(read_operators(file, model), "int8")
        draft.write_bytes(file.content)
    return export_result(path, "int8", file, parity, slow)
