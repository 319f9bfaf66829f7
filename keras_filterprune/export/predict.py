"""Run a `.tflite` file over many samples, to measure its accuracy."""

from __future__ import annotations

import os

import numpy as np


def predict_tflite(path: str | os.PathLike, x: np.ndarray) -> np.ndarray:
    """Outputs of a single-input, single-output `.tflite` file, batch of one by batch of one.

    Args:
        path: the file, as `export_tflite` writes it.
        x: samples of shape (samples, *input shape).

    Returns:
        Float array of shape (samples, *output shape).
    """
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=os.fspath(path), num_threads=1).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    outputs = [next(iter(runner(**{name: sample[None].astype(details["dtype"])}).values())) for sample in x]
    return np.concatenate(outputs)
