"""Run a `.tflite` file with real numbers in and out, whatever integers it takes itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_filterprune.checks import check_packages, check_path, wrong
from keras_filterprune.errors import FileError, InvalidValueError


class SignatureRunner:
    """A file with one signature, in LiteRT, on one thread.

    Args:
        **source: `model_path=` or `model_content=`.

    Attributes:
        inputs: names of the inputs.
        shapes: `{name: shape}`, the batch first.
    """

    def __init__(self, **source: Any):
        from ai_edge_litert.interpreter import Interpreter

        self._run = Interpreter(**source, num_threads=1).get_signature_runner()
        self._inputs = self._run.get_input_details()
        self._outputs = self._run.get_output_details()
        self.inputs = list(self._inputs)
        self.shapes = {name: tuple(details["shape"].tolist()) for name, details in self._inputs.items()}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute.

        Args:
            inputs: `{name: real values}`.

        Returns:
            `{name: real values}`, of quantized outputs too.
        """
        stored = {name: _to_stored(np.asarray(array), self._inputs[name]) for name, array in inputs.items()}
        return {name: _to_real(array, self._outputs[name]) for name, array in self._run(**stored).items()}


def _to_stored(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    dtype, (scale, zero_point) = np.dtype(details["dtype"]), details["quantization"]
    if not scale:
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(dtype)


def _to_real(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    return (values.astype(np.float32) - zero_point) * np.float32(scale) if scale else values


def _samples(x: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(x)
    except ValueError:
        array = np.zeros(())
    if array.dtype.kind not in "fiub" or array.shape[1:] != shape[1:] or array.ndim == 0 or len(array) == 0:
        raise wrong("x", x, f"an array of numbers, (samples, {', '.join(map(str, shape[1:]))})")
    return array


def predict_tflite(path: str | os.PathLike, x: np.ndarray) -> Any:
    """Outputs of a `.tflite` file with one input, batch of one by batch of one.

    Args:
        path: the file, as `export_tflite` writes it.
        x: samples of shape (samples, *input shape).

    Returns:
        Float array of shape (samples, *output shape); of a file with several outputs, one of each, by name: the keys of
        a model whose outputs are a dict, else `output_0`, `output_1` and so on.

    Raises:
        FileError: there is no such file, or LiteRT cannot read or run it.
        InvalidValueError: the file has several inputs, or x does not fit its input.
        MissingPackageError: LiteRT is not installed.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])
        >>> result = kfp.export_tflite(model, "model.tflite", overwrite=True)
        >>> kfp.export.predict_tflite(result.path, np.zeros((5, 8, 8, 3), "float32")).shape
        (5, 144)
    """
    path = check_path("path", path)
    check_packages("predict_tflite", "tflite", "ai_edge_litert.interpreter")
    try:
        run = SignatureRunner(model_content=path.read_bytes())
    # LiteRT raises any of these for content that is no model.
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise FileError(f"cannot read a .tflite file from '{path}': {error}.") from error
    if len(run.inputs) != 1:
        raise InvalidValueError(f"predict_tflite expects a file with one input. Received: {', '.join(run.inputs)}.")
    (name,) = run.inputs
    x = _samples(x, run.shapes[name])
    try:
        rows = [run({name: sample[None]}) for sample in x]
        found = {output: np.concatenate([row[output] for row in rows]) for output in rows[0]}
        return found if len(found) > 1 else next(iter(found.values()))
    # LiteRT looks at some of a damaged file only when it runs.
    except (ValueError, RuntimeError, StopIteration) as error:
        raise FileError(f"LiteRT cannot run '{path}': {error}.") from error
