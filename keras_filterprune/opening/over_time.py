"""`TimeDistributed` around a model: the same as its layers one by one, each of them for every step."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.opening.errors import CannotOpenError

L = keras.layers
# What joins tensors number by number takes those of all steps at once.
_JOINS = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)


class OverTime:
    """The layers of models, each applied to every step; one for each, so that two traces have the same."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def of(self, op: Any, args: tuple, kwargs: dict) -> Any:
        """What applies an operation, called on these, to every step of its tensors, (batch, steps, ...)."""
        if isinstance(op, _JOINS) or (isinstance(op, L.Concatenate) and op.axis == -1):
            return op
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        if not isinstance(op, L.Layer) or tensors != [*args]:
            raise CannotOpenError(f"does more than to apply layers, of a tensor each, to every step: '{op.name}'")
        if id(op) not in self._made:
            self._made[id(op)] = L.TimeDistributed(op, name=op.name, dtype=op.dtype_policy, trainable=op.trainable)
            self._made[id(op)].build(tensors[0].shape)
        return self._made[id(op)]
