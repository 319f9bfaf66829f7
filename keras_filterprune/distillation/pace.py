"""How fast recovery learns, and when it ends."""

from __future__ import annotations

import math
import time
from typing import Any

import keras

from keras_filterprune.progress import track

# Chosen on training images of CIFAR-10.
STEPS, RATE = 600, 2e-3


class Pace(keras.callbacks.Callback):
    """Brings the rate down to 0 as a cosine and ends the training, by whichever limit comes first; shows how far it is.

    Args:
        most: steps.
        seconds: from now on; None: no limit.
        progress: show a progress bar.
    """

    def __init__(self, most: int, seconds: float | None, progress: bool):
        super().__init__()
        self._most, self._seconds, self.steps, self._start = most, seconds, 0, time.monotonic()
        self._percents = track(range(100), "recovering", 100, progress)
        self._shown = 0

    def _done(self) -> float:
        spent = 0.0 if self._seconds is None else (time.monotonic() - self._start) / self._seconds
        return min(1.0, max(spent, self.steps / self._most))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = RATE * (1 + math.cos(math.pi * self._done())) / 2

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        done = self._done()
        for _ in zip(range(self._shown, int(100 * done)), self._percents, strict=False):
            self._shown += 1
        if done == 1:
            self.model.stop_training = True

    def close(self) -> None:
        """Take the progress bar away."""
        self._percents.close()
