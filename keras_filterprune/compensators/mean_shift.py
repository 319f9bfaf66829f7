"""Mean shift: a constant makes up for the average of what was removed."""

from __future__ import annotations

from typing import Any

from keras_filterprune.compensators.base import Compensator, left_out
from keras_filterprune.compensators.side_by_side import SideBySide
from keras_filterprune.graph.types import Call
from keras_filterprune.handlers.rebuilt import Rebuilt


class MeanShift(Compensator):
    """Shift every channel of every convolution and dense layer to its mean in the original network.

    The cheapest use of calibration data: kernels stay, the constant goes into the layer's bias, or into the moving mean
    of the batch normalization behind it. Layers with neither, and layers called several times, keep their outputs.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L1(), compensator=kfp.compensators.MeanShift()).compensator
        MeanShift()
    """

    requires = frozenset({"activations"})

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        run = _Run(rebuilt)
        samples = run.run(data, progress)
        return f"{run.shifted} layers shifted to the original's mean on {samples} samples{left_out(rebuilt, 'input')}"


class _Run(SideBySide):
    shifted = 0

    def adjust(self, call: Call, twin: Any, before: Any, after: Any) -> None:
        self.shifted += self.match_mean(call, twin, before, after)
