"""What training callbacks share: their place among others, the network that they look at, the steps that went by."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import keras


class TrainingCallback(keras.callbacks.Callback):
    """A callback that adds to the logs, and whose work other callbacks may undo.

    Of the callbacks of a `fit` it comes first, so that loggers find what it adds wherever they stand, and it has the
    last word after training, when others have restored weights. Under a `keras.distillation.Distiller` it looks at the
    student.
    """

    def set_model(self, model: keras.Model) -> None:
        self._trainer = model
        super().set_model(model.student if isinstance(model, keras.distillation.Distiller) else model)
        self._batch = -1
        self._settled: int | None = None
        self._best: dict[keras.callbacks.ModelCheckpoint, Any] = {}
        self._others = _list_of(self)
        if self._others is not None:
            _go_first(self, self._others)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._others is None:
            self.finish()

    def finish(self) -> None:
        """What there is to do when all callbacks have ended."""

    def sync(self) -> None:
        """Bring the variables up to date with training; within an epoch, Keras keeps their values elsewhere on JAX."""
        if hasattr(self._trainer, "jax_state_sync"):
            self._trainer.jax_state_sync()

    def steps(self, batch: int) -> int:
        """Steps since the last call; with `steps_per_execution`, Keras calls after the last of several alone."""
        # Keras names the step at which the last call of an epoch would have ended.
        batch = min(batch, (self.epoch_steps or batch + 1) - 1)
        steps = batch - self._batch if batch > self._batch else batch + 1
        self._batch = batch
        return steps

    @property
    def epoch_steps(self) -> int | None:
        """Steps of an epoch, where Keras knows them before."""
        return (self.params or {}).get("steps")

    def settle(self, epoch: int) -> None:
        """Note, before other callbacks save weights, that those of this epoch and the next keep what is promised."""
        if self._settled is None:
            best = [c for c in self.others(keras.callbacks.ModelCheckpoint) if c.save_best_only]
            self._settled, self._best = epoch, {checkpoint: checkpoint.best for checkpoint in best}

    def others(self, kind: type) -> list[Any]:
        """The callbacks of a kind that are trained with."""
        return [c for c in (() if self._others is None else self._others.callbacks) if isinstance(c, kind)]

    def warn_of_earlier_weights(self, undone: str | None, epoch: int) -> None:
        """Warn of weights from before what was promised held: in the model, if so said, or in a file.

        Args:
            undone: what is wrong with those in the model (None: nothing).
            epoch: the first whose weights are right.
        """
        if undone is None and any(checkpoint.best == best for checkpoint, best in self._best.items()):
            undone = "the file of ModelCheckpoint(save_best_only=True) holds weights of an earlier epoch."
        if undone is not None:
            warnings.warn(
                f"{type(self).__name__}: {undone} What looks for the best epoch is to begin where the budget holds: "
                f"EarlyStopping(start_from_epoch={epoch}), or any such callback in a second fit().",
                stacklevel=2,
            )


class _LastWord(keras.callbacks.Callback):
    """Stands at the end of a list of callbacks in the place of one at its beginning."""

    def __init__(self, callback: TrainingCallback):
        super().__init__()
        self.callback = callback

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.callback.finish()


def _list_of(callback: TrainingCallback) -> keras.callbacks.CallbackList | None:
    """The list that is giving a callback its model; None where a loop of the user's own does."""
    # Keras tells a callback nothing of the others.
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and any(c is callback for c in caller.callbacks):
            return caller
        frame = frame.f_back
    return None


def _go_first(callback: TrainingCallback, others: keras.callbacks.CallbackList) -> None:
    """Move a callback before all but its own kind, and let it speak after all."""
    found = others.callbacks
    place = next(index for index, other in enumerate(found) if other is callback)
    while place and not isinstance(found[place - 1], TrainingCallback):
        found[place - 1], found[place] = found[place], found[place - 1]
        place -= 1
    if not any(isinstance(other, _LastWord) and other.callback is callback for other in found):
        found.append(_LastWord(callback))
