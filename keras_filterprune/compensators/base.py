"""What a compensator is: it makes the surviving weights do some of the work of the removed ones."""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_returned
from keras_filterprune.graph.types import Bind
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import linear_of, untaught
from keras_filterprune.parts import Part, returns
from keras_filterprune.probe.data import Samples


def check_applied(compensator: Any, done: Any, rebuilt: Rebuilt, *_: Any, **__: Any) -> None:
    """What was done is text, and weights are still numbers."""
    check_returned(isinstance(done, str), f"{compensator!r}.apply", "return what it did, in a sentence", done)
    for weight in rebuilt.model.weights:
        if "float" in keras.backend.standardize_dtype(weight.dtype):
            finite = bool(np.isfinite(keras.ops.convert_to_numpy(weight.value)).all())
            expected = f"leave finite weights; some of '{weight.path}' are none"
            check_returned(finite, f"{compensator!r}.apply", expected, done)


def left_out(rebuilt: Rebuilt, *roles: str) -> str:
    """End of a sentence: layers that could not be adjusted, for want of a `linear` in their handlers.

    Args:
        rebuilt: the pruned model next to the original.
        *roles: weights of these roles, of which channels went, are those that matter.
    """
    ops = {call.path: call.op for call in rebuilt.graph.view.calls if call.inputs}
    found = {
        f"'{bind.layer}'": None
        for bind in rebuilt.graph.binds
        if bind.role in roles and _unknown(bind, ops[bind.layer]) and not rebuilt.kept.alive[bind.ids].all()
    }
    return f"; left as it is, without a `linear` in its handler: {', '.join(found)}" if found else ""


def _unknown(bind: Bind, op: Any) -> bool:
    """Whether nothing is known of what a layer multiplies that should be: attention reads channels as well."""
    return untaught(op) or (bind.role == "input" and linear_of(op) is None)


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

    @property
    def between(self) -> Compensator:
        """What serves between the rounds of a method, where the network is cut again."""
        return self

    @abc.abstractmethod
    @returns(check_applied)
    def apply(self, rebuilt: Rebuilt, data: Samples | None, progress: bool = True) -> str:
        """Change the weights of the pruned model in place.

        Args:
            rebuilt: the pruned model next to the graph of the original, after the surgery was proven.
            data: `Samples` of the calibration data, arrays by `data.read(rebuilt.graph.view)`; None without.
            progress: show progress bars (True).

        Returns:
            What was done, in one sentence, for the report.
        """
