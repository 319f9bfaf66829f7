"""Prove that an opened model is the original: the same outputs, the same training step, on one batch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.gradients import can_differentiate, gradients
from keras_filterprune.rebuild.verify import rounding

# Relative to the largest value.
_EXACT, _HALF = 1e-5, 1e-3
# A gradient that is so small against the others is rounding.
_NEGLIGIBLE = 1e-4
# By so much, a few of the last digits, inputs are changed to see how far rounding goes.
_NUDGE = 1e-6
# What is no number but a remainder.
_TINY = 1e-12

Origins = Sequence[tuple[Any, Any]]


class _InAnyOrder(keras.StatelessScope):
    """Calls of a shared layer see its state as it was before all of them, so that their order shows in nothing.

    Keras runs those that wait for nothing of each other, both branches of a siamese network say, in an order of its
    own: with moving averages, and the numbers that dropout draws, it makes a difference that is none.

    Args:
        values: (variable, its value) for all of the model.
        shared: ids of those that several calls may write.

    Attributes:
        updates: {id: what each call made of such a variable}.
    """

    def __init__(self, values: Sequence[tuple[Any, Any]], shared: Collection[int]):
        super().__init__(state_mapping=values, collect_losses=True)
        self.updates: defaultdict[int, list[Any]] = defaultdict(list)
        self._shared = shared

    def add_update(self, update: tuple[Any, Any]) -> None:
        variable, value = update
        if id(variable) in self._shared:
            self.updates[id(variable)].append(value)
        else:
            super().add_update(update)

    def made(self, variable: Any) -> np.ndarray:
        """What a step makes of a variable: its new value, or those of all calls, (calls, *shape), in no order."""
        if updates := self.updates.get(id(variable)):
            # Sorting number by number pairs equal calls, and moves nothing by more than rounding does.
            return np.sort([_array(value) for value in updates], axis=0)
        value = self.get_current_value(variable)
        return _array(variable.value if value is None else value)


def difference_of(original: keras.Model, opened: keras.Model, origins: Origins, inputs: Any) -> str:
    """In what an opened model differs from the original; "" if in nothing.

    Args:
        original, opened: the models.
        origins: (variable of the original, its twin) for all that the opened model has.
        inputs: a batch, in the structure of the inputs.
    """
    view = view_model(opened)
    # Where a layer computes in half precision, whatever follows is as coarse.
    coarse = rounding(view)
    tolerance = coarse if coarse > _HALF else _EXACT
    shared = _shared(view, origins)
    for training in (False, True):
        (ours, kept), (theirs, wanted) = (_step(model, inputs, training, shared) for model in (opened, original))
        if training and _compare(theirs, _step(original, inputs, training, shared)[0], tolerance):
            # PyTorch's dropout knows of no seed: there is nothing to compare with.
            return ""
        if found := _compare(theirs, ours, tolerance):
            return f"its outputs differ in {'training' if training else 'inference'} by {found}"
        pairs = [(wanted.made(old), kept.made(new)) for old, new in origins]
        if found := _compare([a for a, _ in pairs], [b for _, b in pairs], tolerance):
            return f"what it remembers of a batch differs by {found}"
    if not can_differentiate():
        return ""
    trained = [(old, new) for old, new in origins if old.trainable]
    expected = _gradients(original, inputs, [old for old, _ in trained], shared)
    received = _gradients(opened, inputs, [new for _, new in trained], shared)
    if not _compare(expected, received, tolerance):
        return ""
    # Where large terms add up to little, rounding shows, as it does in what a change of the last digits makes.
    nudged = keras.tree.map_structure(lambda x: x * (1 + _NUDGE) if "float" in str(x.dtype) else x, inputs)
    moved = _gradients(original, nudged, [old for old, _ in trained], shared)
    noise = _difference([(_array(a), _array(b)) for a, b in zip(expected, moved, strict=True)])
    found = _compare(expected, received, max(tolerance, min(_HALF, noise)))
    return f"a training step differs by {found}" if found else ""


def _shared(view: ModelView, origins: Origins) -> set[int]:
    """Ids of the state, in both models, of layers that are called several times."""
    calls = Counter(call.path for call in view.calls)
    layers = [call.op for call in view.calls if calls[call.path] > 1 and isinstance(call.op, keras.layers.Layer)]
    ids = {id(variable) for layer in layers for variable in layer.non_trainable_variables}
    return ids | {id(old) for old, new in origins if id(new) in ids}


def _step(model: keras.Model, inputs: Any, training: bool, shared: set[int]) -> tuple[list[Any], _InAnyOrder]:
    """Flat outputs and the sum of the losses, and the scope that has what was made of the variables."""
    with _InAnyOrder([(v, v.value) for v in model.variables], shared) as scope:
        outputs = keras.tree.flatten(model(inputs, training=training))
        losses = list(model.losses)
    return [*outputs, keras.ops.convert_to_tensor(sum(losses, 0.0), "float32")], scope


def _gradients(model: keras.Model, inputs: Any, variables: list[Any], shared: set[int]) -> list[Any]:
    """Of a random weighted mean of the outputs, plus the losses, in training."""

    def loss(values: dict[int, Any]) -> Any:
        generator, total = np.random.default_rng(0), 0.0
        mapping = [*untrained, *((variable, values[n]) for n, variable in enumerate(variables))]
        with _InAnyOrder(mapping, shared):
            for output in keras.tree.flatten(model(inputs, training=True)):
                if "float" in keras.backend.standardize_dtype(output.dtype):
                    output = keras.ops.cast(output, "float32")
                    weights = generator.normal(size=tuple(output.shape)).astype("float32")
                    total += keras.ops.mean(output * keras.ops.convert_to_tensor(weights))
            return keras.ops.cast(sum(model.losses, total), "float32")

    known = {id(variable) for variable in variables}
    untrained = [(v, v.value) for v in model.variables if id(v) not in known]
    found = gradients(loss, {n: variable.value for n, variable in enumerate(variables)})
    return [found[n] for n in range(len(variables))]


def _compare(expected: list[Any], received: list[Any], tolerance: float) -> str:
    """The largest difference in words; "" where it is within the tolerance."""
    pairs = [(_array(a), _array(b)) for a, b in zip(expected, received, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        return "shape"
    if any(not np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in pairs):
        return "infinities"
    found = _difference(pairs)
    return f"{found:.1e} of the largest value" if found > tolerance else ""


def _difference(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest difference, relative to the largest value of an array."""
    finite = [(a[np.isfinite(a)], b[np.isfinite(a)]) for a, b in pairs]
    floor = _NEGLIGIBLE * max((np.abs(a).max(initial=0.0) for a, _ in finite), default=0.0)
    found = [
        max(0.0, np.abs(a - b).max(initial=0.0) - _TINY) / max(np.abs(a).max(initial=0.0), floor, _TINY)
        for a, b in finite
    ]
    return max(found, default=0.0)


def _array(x: Any) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype(np.float64)
