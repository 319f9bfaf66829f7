"""What recovery is judged by: samples that nothing was learnt from, on which the nearest to the original stays."""

from __future__ import annotations

import math

import keras
import numpy as np

from keras_filterprune.distillation.distiller import Distiller
from keras_filterprune.distillation.lessons import EPOCH
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.inputs import Inputs
from keras_filterprune.probe.subsets import Without

# Every so many samples one is held out.
_HELD_OUT = 8
# Samples below which nothing is learnt from them.
LEAST = 2 * _HELD_OUT
# Steps between looks.
_LOOK = 60


def held_out(count: int) -> range:
    """Which of so many samples are held out. They are no even numbers, which what is thinned is made of."""
    return range(1, count if count >= LEAST else 0, _HELD_OUT)


def others(data: Samples) -> Samples:
    """Samples without those that are held out: what is fitted to these looks nearer there than it is."""
    return Without(data, held_out)


class Exam(keras.callbacks.Callback):
    """Remembers the weights with which a student was nearest to its teacher on samples that are held out.

    The start stays unless others are nearer by more than two standard errors of the difference.

    Args:
        imitating: teacher and student.
        inputs: samples.
        size: how many are looked at at once.
    """

    def __init__(self, imitating: Distiller, inputs: Inputs, size: int):
        super().__init__()
        self._imitating, self._inputs = imitating, inputs
        numbers = np.asarray(held_out(len(inputs)))
        self._batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        self._first, self._weights = self._distances(), imitating.student.get_weights()
        self._best = math.inf

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        if epoch and epoch % (_LOOK // EPOCH) == 0:
            self.look()

    def look(self) -> None:
        """Measure as it is."""
        now = self._distances()
        if now.mean() < self._best and _surely_above_zero(self._first - now):
            self._best, self._weights = float(now.mean()), self._imitating.student.get_weights()

    def restore(self) -> str:
        """Give the student those weights, and say what they are worth."""
        self._imitating.student.set_weights(self._weights)
        before = f"divergence from the original on {len(self._first)} others {self._first.mean():.3g} before"
        return f"{before}, {self._best:.3g} after" if self._best < math.inf else f"{before}; none nearer: nothing kept"

    def _distances(self) -> np.ndarray:
        return np.concatenate([self._imitating.distances(self._inputs.take(batch)) for batch in self._batches])


def _surely_above_zero(values: np.ndarray) -> bool:
    """Whether a mean is by more than twice its standard error."""
    return bool(values.mean() > 2 * values.std(ddof=1) / math.sqrt(len(values)))
