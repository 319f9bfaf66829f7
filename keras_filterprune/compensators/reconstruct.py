"""Least squares, then a few hundred steps in which the original teaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_filterprune.checks import check_number, wrong
from keras_filterprune.compensators.base import Compensator
from keras_filterprune.compensators.least_squares import LeastSquares
from keras_filterprune.distillation.exam import others
from keras_filterprune.distillation.pace import STEPS
from keras_filterprune.distillation.recovery import Recovery
from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.handlers.rebuilt import Rebuilt


class Reconstruct(Compensator):
    """Compensate in closed form, then let the original teach the pruned network on the same inputs; see `recover`.

    Every eighth sample is kept from both: it shows whether what was taught is nearer to the original than the closed
    form. Between the rounds of a method, the closed form alone serves.

    Args:
        steps: of the optimizer, at most (600).
        seconds: for them, at most (None: no limit).
        augment: `augment(batch)` returns other inputs in the form of a batch, flips and shifts of photographs, say
            (None).
        first: what makes the start (`LeastSquares()`).
        seed: of the order of samples (0).
        teacher: a network with the same inputs and outputs (None: the one that is pruned).

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(2)]
        >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        >>> settings = {"compensate": kfp.compensators.Reconstruct(steps=10), "return_report": True}
        >>> kfp.prune_model(model, "l2", 0.5, data=x, **settings)[1].compensation.split(";")[0]
        '1 layers refitted by least squares on 56 samples, then 10 steps on 56 samples'
    """

    requires = frozenset({"activations"})

    def __init__(
        self,
        steps: int = STEPS,
        seconds: float | None = None,
        augment: Callable[[Any], Any] | None = None,
        first: Compensator | None = None,
        seed: int = 0,
        teacher: keras.Model | None = None,
    ):
        self.first = LeastSquares() if first is None else first
        if not isinstance(self.first, Compensator):
            raise wrong("first", first, "a compensator, or None")
        self.steps, self.seconds, self.augment, self.seed = steps, seconds, augment, seed
        self._recovery, self._teacher = Recovery(steps, seconds, augment, seed), teacher
        if not isinstance(teacher, keras.Model | None):
            raise wrong("teacher", teacher, "a keras.Model, or None", UnsupportedModelError)

    def within(self, seconds: float) -> Compensator:
        """The same with another time limit; without training for 0."""
        check_number("seconds", seconds, "a time limit", least=0)
        if not seconds:
            return self.first
        return Reconstruct(self.steps, seconds, self.augment, self.first, self.seed, self._teacher)

    @property
    def between(self) -> Compensator:
        return self.first

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        if rebuilt.kept.whole:
            return self.first.apply(rebuilt, data, progress)
        done = self.first.apply(rebuilt, others(data), progress)
        teacher = rebuilt.graph.model if self._teacher is None else self._teacher
        return done + self._recovery.attempt(rebuilt.model, teacher, data, progress)
