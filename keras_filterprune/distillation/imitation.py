"""How far a student is from its teacher, as losses per sample: outputs by what they are, and attention maps."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_filterprune.distillation.heads import Head


class _PerSample(keras.losses.Loss):
    """A loss per sample and position, which Keras weighs, averages and scales like any other."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if sample_weight is not None:
            # A number per sample holds at all positions; where there are none, those of positions count together.
            rank, shape = self.rank(y_pred), keras.ops.shape(sample_weight)
            sample_weight = keras.ops.reshape(sample_weight, (*shape[:rank], *[1] * (rank - len(shape)), -1))
            sample_weight = keras.ops.mean(keras.ops.cast(sample_weight, self.dtype), axis=-1)
        return super().__call__(y_true, y_pred, sample_weight)

    def rank(self, y_pred: Any) -> int:
        """Number of axes of what `call` returns."""
        return 1


class Imitation(_PerSample):
    """How far an output of the student is from the teacher's.

    Args:
        ours, theirs: what the two give.
        temperature: of the softmax or sigmoid; infinite: the squared difference of logits, to which T^2 times the
            divergence tends but for a factor (Hinton et al. 2015, section 2.1).
        factor: of the divergences.
        reduction: of a `keras.losses.Loss` (None: the mean).
    """

    def __init__(self, ours: Head, theirs: Head, temperature: float, factor: float, reduction: str | None = None):
        super().__init__("imitation", reduction or "sum_over_batch_size")
        self._ours, self._theirs = ours, theirs
        self._temperature, self._factor = temperature, factor

    def rank(self, y_pred: Any) -> int:
        return max(1, len(y_pred.shape) - len(self._ours.axes))

    def apart(self, theirs: Any) -> float:
        """How far what the teacher gives for one sample is from what it gives for another, mean over samples."""
        alone = Imitation(self._theirs, self._theirs, self._temperature, self._factor, self.reduction)
        return float(keras.ops.convert_to_numpy(alone(theirs, keras.ops.roll(theirs, 1, axis=0))))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        teacher, student = self._theirs.logits(y_true), self._ours.logits(y_pred)
        if self._ours.kind == "numbers":
            return _over_units(keras.ops.square(student - teacher))
        if math.isinf(self._temperature):
            return self._squares(student - teacher)
        teacher, student = teacher / self._temperature, student / self._temperature
        if self._ours.kind == "units":
            return self._factor * _over_units(_binary_divergence(teacher, student))
        teacher, student = (z - keras.ops.logsumexp(z, axis=self._ours.axes, keepdims=True) for z in (teacher, student))
        return self._factor * keras.ops.sum(keras.ops.exp(teacher) * (teacher - student), axis=self._ours.axes)

    def _squares(self, difference: Any) -> Any:
        if self._ours.kind == "units":
            return _over_units(keras.ops.square(difference))
        # What all logits have in common changes no class.
        return keras.ops.var(difference, axis=self._ours.axes)


def _binary_divergence(teacher: Any, student: Any) -> Any:
    """KL(sigmoid(teacher) || sigmoid(student)) of every number."""
    softplus = keras.ops.softplus
    return keras.ops.sigmoid(teacher) * (teacher - student) + softplus(student) - softplus(teacher)


def _over_units(values: Any) -> Any:
    return keras.ops.mean(values, axis=-1) if len(values.shape) > 1 else values


class AttentionTransfer(_PerSample):
    """Mean squared difference of two attention maps: where a layer's activations are large, whatever their number.

    Both are outputs of layers, (batch, *positions, channels), positions alike.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.square(_attention(y_true) - _attention(y_pred)), axis=-1)


def _attention(features: Any) -> Any:
    """(batch, positions), of norm 1."""
    energy = keras.ops.sum(keras.ops.square(features), axis=-1)
    return keras.ops.normalize(keras.ops.reshape(energy, (keras.ops.shape(energy)[0], -1)), axis=-1)


class Scaled(_PerSample):
    """A number that is none per sample, scaled as Keras scales losses under a strategy."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred

    def of(self, value: Any) -> Any:
        return self(keras.ops.zeros(1), keras.ops.reshape(value, (1,)))
