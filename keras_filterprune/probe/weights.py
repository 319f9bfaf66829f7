"""Read the weights of a model as NumPy arrays, and prove that they are finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import keras
import numpy as np

from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import ModelView


class Weights(Mapping):
    """A mapping {(layer path, weight name): array} over a live model; arrays are read when asked for, never written.

    Args:
        view: the flat view of the model, `analyze(model).view`.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> kfp.criteria.Weights(kfp.analyze(model).view)["conv", "kernel"].shape
        (3, 3, 3, 4)
    """

    def __init__(self, view: ModelView):
        self._variables = {
            (call.path, name): variable
            for call in view.calls
            if call.inputs
            for name, variable in named_weights(call.op).items()
        }

    def __getitem__(self, key: tuple[str, str]) -> np.ndarray:
        array = keras.ops.convert_to_numpy(self._variables[key].value)
        # ml_dtypes' bfloat16 is outside NumPy's arithmetic.
        return array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def check_finite(self) -> None:
        """Raise an `UnsupportedModelError` that names the first weight with a NaN or an infinity."""
        for layer, weight in self:
            array = self[layer, weight]
            # The sum of squares is finite where all values are, or else too large: one pass of a BLAS.
            if array.dtype.kind == "f" and not np.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
                bad = int((~np.isfinite(array)).sum())
                raise UnsupportedModelError(
                    f"weight '{weight}' of layer '{layer}' holds {bad} NaN or infinite values of {array.size}. "
                    "Every score would follow them: restore finite weights first."
                )
