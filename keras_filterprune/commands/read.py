"""What samples are once they are read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Read(NamedTuple):
    """Inputs, an array or one by name; labels, None where there are none; of images, names of classes, and (mean, std)
    that make inputs of pixels."""

    inputs: Any
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    normalization: tuple[float, float] | None = None

    @property
    def data(self) -> Any:
        """As functions take it: `(x, y)`, or x alone."""
        return self.inputs if self.labels is None else (self.inputs, self.labels)

    def metadata(self, model: Any) -> Any:
        """What a `.tflite` file can say of itself; of classes, only where the model has as many."""
        from keras_filterprune.export import Metadata

        outputs: Any = getattr(model, "outputs", None) or ()
        fits = len(outputs) == 1 and outputs[0].shape[-1] == len(self.classes)
        return Metadata(list(self.classes) if fits else None, self.normalization)
