"""Some of the samples of calibration data, which is read once for all that look at it."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable

import numpy as np

from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.data import SAMPLES, Part, Samples


class _Subset(Samples, abc.ABC):
    """Some of other samples, without copies of them; a subclass implements `_slices`."""

    def __init__(self, whole: Samples):
        super().__init__(whole._data)
        self._whole, self.share = whole, whole.share

    def read(self, view: ModelView, most: int = SAMPLES) -> list[Part]:
        parts = self._whole.read(view, most)
        starts = np.cumsum([0, *(len(part.inputs[0]) for part in parts)]).tolist()
        return [
            part.cut(which)
            for part, (start, stop) in zip(parts, itertools.pairwise(starts), strict=True)
            for which in self._slices(start, stop, starts[-1])
            if len(range(*which.indices(stop - start)))
        ]

    @abc.abstractmethod
    def _slices(self, start: int, stop: int, count: int) -> list[slice]:
        """What is taken, counted from `start`, of the samples from `start` to `stop` of `count`."""


class Thinned(_Subset):
    """Every so many-th of other samples, and of rows, for what need not be measured exactly.

    Args:
        whole: the samples.
        step: 2 for every second.
        least: samples that are left in any case where there are as many.
    """

    def __init__(self, whole: Samples, step: int, least: int):
        super().__init__(whole)
        self._step, self._least = step, least
        self.share /= step

    def _slices(self, start: int, stop: int, count: int) -> list[slice]:
        step = max(1, min(self._step, count // self._least))
        return [slice(-start % step, None, step)]


class Without(_Subset):
    """Other samples but for those that are held out.

    Args:
        whole: the samples.
        held_out: ascending numbers, a range, of those that are left out, by how many there are.
    """

    def __init__(self, whole: Samples, held_out: Callable[[int], range]):
        super().__init__(whole)
        self._held_out = held_out

    def _slices(self, start: int, stop: int, count: int) -> list[slice]:
        gaps = [number - start for number in self._held_out(count) if start <= number < stop]
        return [slice(gap + 1, end) for gap, end in itertools.pairwise([-1, *gaps, stop - start])]
