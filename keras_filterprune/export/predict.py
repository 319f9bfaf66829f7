"""Run a `.tflite` file over many samples, to measure its accuracy."""

from __future__ import annotations

import os

import numpy as np

from keras_filterprune.export.runtime import SignatureRunner


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
