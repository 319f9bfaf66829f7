"""Calibration inputs held in memory, as many as fit."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.data import input_batches

SAMPLES = 2048
# The largest activation of all samples together, in float32 values: 256 MiB.
_LARGEST = 2**26


def calibration_inputs(data: Any, view: ModelView) -> list[Any]:
    """Flat model inputs for a pass that keeps activations in memory: the first samples, at most 2 048.

    Fewer are taken where the largest activation would exceed 256 MiB: wide images give many rows each.

    Raises:
        CalibrationDataError: see `input_batches`; or there is a single sample, which has no variance.
    """
    largest = max(math.prod(s[1:]) for call in view.calls for s in call.output_shapes if s and None not in s[1:])
    limit = max(2, min(SAMPLES, _LARGEST // largest))
    batches, found = [], 0
    for batch in input_batches(data, view):
        batches.append(batch)
        found += len(batch[0])
        if found >= limit:
            break
    if found < 2:
        raise CalibrationDataError("calibration needs at least 2 samples, better a few hundred. Received: 1.")
    inputs = [np.concatenate(parts)[:limit] for parts in zip(*batches, strict=True)]
    return [
        keras.ops.convert_to_tensor(x, view.calls[ref.call].op.dtype)
        for x, ref in zip(inputs, view.inputs, strict=True)
    ]
