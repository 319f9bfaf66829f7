"""What the outputs of a network are: classes, single units or plain numbers, as probabilities or as logits."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import named_weights, view_model
from keras_filterprune.graph.types import ModelView, TensorRef
from keras_filterprune.handlers.activation import is_activation, named, own_activation
from keras_filterprune.handlers.registry import keras_name
from keras_filterprune.probe.execute import random_inputs
from keras_filterprune.rebuild.verify import call_whole

_SIGMOIDS = "sigmoid", "hard_sigmoid"
# Far enough for a sigmoid to be 0 or 1 and for a logarithm to stay finite.
_FAR = 30.0
# float16 has three digits.
_ROUNDING = 1e-2
_LEAST = 1e-7


@dataclass(frozen=True)
class Head:
    """What an output is.

    Attributes:
        kind: "classes", of which one is right; "units", each of them right or wrong; or "numbers".
        axes: over which the probabilities of classes sum to 1.
        probabilities: it gives these, not logits.
    """

    kind: str = "numbers"
    axes: tuple[int, ...] = (-1,)
    probabilities: bool = False

    def logits(self, output: Any) -> Any:
        """What a softmax or a sigmoid makes the output of, float32; numbers as they are."""
        output = keras.ops.cast(output, "float32")
        if not self.probabilities:
            return output
        output = keras.ops.clip(output, _LEAST, 1.0 if self.kind == "classes" else 1 - _LEAST)
        return keras.ops.log(output) - (0.0 if self.kind == "classes" else keras.ops.log1p(-output))


def heads_of(model: keras.Model, losses: list[Any]) -> list[Head]:
    """What every output of a model is: by the numbers that it gives, the activation it ends in, and a loss.

    Probabilities of classes are seen from what they sum to, whatever layers they come through. A sigmoid is looked for
    behind all layers that have no weights. What is neither is what the loss takes it for.

    Args:
        model: a functional or Sequential model.
        losses: of each output, None for none.
    """
    view = view_model(model)
    outputs = call_whole(model, random_inputs(view, batch=4))
    return [_head(view, *found) for found in zip(view.outputs, map(_array, outputs), losses, strict=True)]


def _head(view: ModelView, ref: TensorRef, values: np.ndarray, loss: Any) -> Head:
    if (axes := _sums_to_one(values)) is not None:
        return Head("classes", axes, probabilities=True)
    if (axes := _sums_to_one(np.exp(np.minimum(values, 1.0)))) is not None:
        return Head("classes", axes)
    inside = bool(values.min() >= 0 and values.max() <= 1)
    if inside and _ends_in_sigmoid(view, ref):
        return Head("units", probabilities=True)
    function = _Probe(loss, values.shape)
    if values.ndim > 1 < values.shape[-1] and function.looks_at_differences():
        return Head("classes")
    if function.takes_sides():
        return Head("units", probabilities=inside and function.ends_at_one())
    return Head()


def _sums_to_one(values: np.ndarray) -> tuple[int, ...] | None:
    """Axes over which values are probabilities: channels, or all axes, or one, or all positions."""
    if values.ndim == 1 or not np.isfinite(values).all() or values.min() < -_LEAST:
        return None
    axes = tuple(range(1, values.ndim))
    for found in ((-1,), axes, *((axis,) for axis in axes), axes[:-1]):
        sums = values.sum(axis=found)
        if sums.size < values.size and np.allclose(sums, 1, atol=_ROUNDING):
            return found
    return None


def _ends_in_sigmoid(view: ModelView, ref: TensorRef) -> bool:
    """Whether every way to an output passes a sigmoid, behind which no layer has weights."""
    waiting, seen = [ref.call], set()
    while waiting:
        call = view.calls[number := waiting.pop()]
        if not call.inputs:
            return False
        if number in seen or _is_sigmoid(call.op):
            continue
        if named_weights(call.op) or is_activation(call.op):
            return False
        seen.add(number)
        waiting += [source.call for source in call.inputs]
    return True


def _is_sigmoid(op: Any) -> bool:
    while isinstance(inner := op.layer if isinstance(op, keras.layers.Wrapper) else own_activation(op), keras.Layer):
        op = inner
    return named(own_activation(op)) in _SIGMOIDS or keras_name(op) in ("Sigmoid", "HardSigmoid")


class _Probe:
    """Finds out what a loss takes outputs for, by calling it.

    Args:
        loss: a loss as `compile` takes it, for one output; None for none.
        shape: of the outputs.
    """

    def __init__(self, loss: Any, shape: tuple[int, ...]):
        with contextlib.suppress(ValueError):
            loss = keras.losses.get(loss)
        self._loss, self._shape = loss, shape

    def looks_at_differences(self) -> bool:
        """Whether a number added to all classes changes nothing, while other scores do: they go through a softmax."""
        scores = np.random.default_rng(0).normal(size=self._shape)
        classes = np.arange(scores[..., 0].size).reshape(self._shape[:-1]) % self._shape[-1]
        one_hot = np.eye(self._shape[-1])[classes]
        for labels in (classes, classes[..., None], one_hot):
            value, moved, other = (self(labels, z) for z in (scores, scores + 3, scores[..., ::-1]))
            if np.isclose(value, moved, rtol=1e-4) and not np.isclose(value, other, rtol=1e-3):
                return True
        return False

    def takes_sides(self) -> bool:
        """Whether far on the side of the label is right however far, and only the other side is wrong."""
        return all(
            wrong - right > 0.5 * (abs(wrong) + abs(right))
            for label in (0, 1)
            for right, wrong in [[self._at(label, side * _FAR) for side in (2 * label - 1, 1 - 2 * label)]]
        )

    def ends_at_one(self) -> bool:
        """Whether nothing is better than 1."""
        return bool(self._at(1, 1.0) <= self._at(1, _FAR) + 1e-3)

    def _at(self, label: int, output: float) -> float:
        return self(np.full(self._shape, label), np.full(self._shape, output))

    def __call__(self, labels: np.ndarray, outputs: np.ndarray) -> float:
        """The loss; not a number where it does not take labels or outputs like that."""
        # A loss of one's own may refuse labels of another form in any way. Keras gives labels as floats.
        with contextlib.suppress(Exception), keras.StatelessScope():
            arguments = (keras.ops.convert_to_tensor(values, "float32") for values in (labels, outputs))
            return float(np.mean(_array(self._loss(*arguments))))
        return float("nan")


def _array(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")).astype(np.float64)
