"""What is done in the process that imports tf_keras."""

from __future__ import annotations

import importlib
import pickle
import runpy
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from keras_filterprune.errors import ExportError
from keras_filterprune.quiet import quiet
from keras_filterprune.tfmot.process import FunctionRef, Job
from keras_filterprune.tfmot.twin import build_twin, check_outputs


def do(packed: bytes) -> dict[str, Any]:
    """Do a pickled `Job`, and give what its action does."""
    job: Job = pickle.loads(packed)
    with quiet():
        twin = build_twin(job.model, job.name)
    return _ACTIONS[job.action](job, twin)


def _save(job: Job, twin: Any) -> dict[str, Any]:
    import tf_keras

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "twin.h5")
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file", UserWarning)
            twin.save(path)
            check_outputs(job.model, tf_keras.models.load_model(path, compile=False))
        return {"content": path.read_bytes()}


def _function(job: Job) -> FunctionRef:
    if job.function is None:
        raise ExportError(f"no function was given that trains the twin of model '{job.name}'.")
    return job.function


def _train(job: Job, twin: Any) -> dict[str, Any]:
    trained = _trained(job, twin)
    found = {layer.name: layer.get_weights() for layer in trained.layers}
    weights = {}
    for spec in {id(call.op): call.op for call in job.model.view.calls if call.inputs}.values():
        expected = [w.shape for w in spec.weights]
        actual = [w.shape for w in found.get(spec.name, [])]
        if expected != actual:
            raise ExportError(
                f"layer '{spec.name}' has weights of shapes {expected}, and {actual or 'none'} in the model that "
                f"{_function(job).name}() returned. Strip what tfmot has added (strip_pruning, strip_clustering); a "
                "quantization-aware model goes to export_qat()."
            )
        if expected:
            weights[spec.name] = found[spec.name]
    return {"weights": weights}


def _export(job: Job, twin: Any) -> dict[str, Any]:
    trained = _trained(job, twin)
    if not any(type(layer).__name__.startswith("Quantize") for layer in trained.layers):
        raise ExportError(
            f"{_function(job).name}() returned a model without quantization-aware layers. Start from "
            "tfmot.quantization.keras.quantize_model(twin), and return that model."
        )
    try:
        with quiet():
            content, outputs = _converted(job, trained)
    # Tracing runs any code that the model's layers hold, and the converter's own error has no public name.
    except Exception as error:
        raise ExportError(f"cannot convert model '{job.name}' to TFLite: {type(error).__name__}: {error}") from error
    return {"content": content, "outputs": outputs}


def _trained(job: Job, twin: Any) -> Any:
    """What the user's function makes of the twin."""
    import tf_keras

    function = _function(job)
    try:
        trained = _imported(function)(twin, *job.arguments)
    # The function is the user's: whatever it raises belongs to the process that asked for it.
    except Exception as error:
        raise ExportError(f"{function.name}() failed in the process of tf_keras:\n{traceback.format_exc()}") from error
    if not isinstance(trained, tf_keras.Model):
        raise ExportError(
            f"{function.name}() is to return the trained tf_keras model. Received: {type(trained).__name__}."
        )
    return trained


def _imported(function: FunctionRef) -> Any:
    if function.script:
        return runpy.run_path(function.source, run_name="__tf_keras__")[function.name]
    return getattr(importlib.import_module(function.source), function.name)


def _converted(job: Job, model: Any) -> tuple[bytes, dict[str, np.ndarray]]:
    """The `.tflite` file, and the outputs of the model for every sample, (samples, ...) by key."""
    import tensorflow as tf

    specs = [tf.TensorSpec((1, *shape), dtype, name=key) for key, shape, dtype in job.inputs]

    @tf.function(input_signature=specs, autograph=False)
    def serve(*inputs: Any) -> dict[str, Any]:
        outputs = tf.nest.flatten(model(inputs if len(inputs) > 1 else inputs[0], training=False))
        return dict(zip(job.outputs, outputs, strict=True))

    # The converter finds variables through the object that it is given.
    owner = tf.Module()
    owner.variables_of_model = model.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], owner)
    # Ranges come from training; what has none stays float32.
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
    count = len(next(iter(job.samples.values())))
    found = [serve(*(tf.constant(job.samples[key][n : n + 1]) for key, _, _ in job.inputs)) for n in range(count)]
    return content, {
        key: np.concatenate([np.atleast_1d(one[key]).astype(np.float64) for one in found]) for key in job.outputs
    }


_ACTIONS = {"save": _save, "train": _train, "export": _export}
