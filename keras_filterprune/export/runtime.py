"""Run a `.tflite` file with real numbers in and out, whatever integers it takes itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np


class SignatureRunner:
    """A file with one signature, in LiteRT, on one thread.

    Args:
        **source: `model_path=` or `model_content=`.

    Attributes:
        inputs: names of the inputs.
    """

    def __init__(self, **source: Any):
        from ai_edge_litert.interpreter import Interpreter

        self._run = Interpreter(**source, num_threads=1).get_signature_runner()
        self._inputs = self._run.get_input_details()
        self._outputs = self._run.get_output_details()
        self.inputs = list(self._inputs)

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


def predict_tflite(path: str | os.PathLike, x: np.ndarray) -> np.ndarray:
    """Outputs of a single-input, single-output `.tflite` file, batch of one by batch of one.

    Args:
        path: the file, as `export_tflite` writes it.
        x: samples of shape (samples, *input shape).

    Returns:
        Float array of shape (samples, *output shape).
    """
    run = SignatureRunner(model_path=os.fspath(path))
    (name,) = run.inputs
    return np.concatenate([next(iter(run({name: sample[None]}).values())) for sample in x])
