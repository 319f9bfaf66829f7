"""What a compensator is: it makes the surviving weights do some of the work of the removed ones."""

from __future__ import annotations

import abc
from typing import Any

from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.parts import Part


class Compensator(Part, abc.ABC):
    """Adjusts the weights of a freshly pruned model.

    A subclass implements `apply`.

    Attributes:
        requires: what it needs, any of {"activations"} (nothing). Without it, `prune_model` refuses before any work.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Rescale(kfp.compensators.Compensator):  # as dropout does for the units that it leaves
        ...     def apply(self, rebuilt, data, progress=True):
        ...         count = 0
        ...         for resize in rebuilt.resizes.values():
        ...             x, layer = resize.inputs[0], rebuilt.twin(resize.call)
        ...             if x.tracked and hasattr(layer, "kernel") and resize.width(x) < len(x.ids):
        ...                 layer.kernel.assign(layer.kernel * (len(x.ids) / resize.width(x)))
        ...                 count += 1
        ...         return f"{count} kernels rescaled by the share of their inputs that stayed"
        ...
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(2, 1)]
        >>> settings = {"compensate": Rescale(), "return_report": True}
        >>> kfp.prune_model(keras.Sequential(layers), "l2", 0.5, **settings)[1].compensation
        '1 kernels rescaled by the share of their inputs that stayed'
    """

    requires: frozenset[str] = frozenset()

    @abc.abstractmethod
    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        """Change the weights of the pruned model in place.

        Args:
            rebuilt: the pruned model next to the graph of the original, after the surgery was proven.
            data: calibration data, as given to `prune_model`; None without.
            progress: show progress bars (True).

        Returns:
            What was done, in one sentence, for the report.
        """
