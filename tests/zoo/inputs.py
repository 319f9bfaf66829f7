"""Random batches that fit a model's inputs."""

import keras
import numpy as np


def random_inputs(model: keras.Model, batch: int = 2, seed: int = 0):
    """Arrays nested like the model's inputs: normal floats, or integers in 0..7 for an integer input."""
    rng = np.random.default_rng(seed)

    def draw(tensor) -> np.ndarray:
        shape = (batch, *(6 if size is None else size for size in tensor.shape[1:]))
        if keras.backend.is_float_dtype(tensor.dtype):
            return rng.normal(size=shape).astype(tensor.dtype)
        return rng.integers(0, 8, size=shape).astype(tensor.dtype)

    # A Sequential that was never called has `inputs` but no `input`.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(draw, inputs)
