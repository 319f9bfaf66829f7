"""Prove that an opened model is the original: the same outputs, the same training step, on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.gradients import can_differentiate, gradients
from keras_filterprune.rebuild.verify import rounding

# Relative to the largest value.
_EXACT, _HALF = 1e-5, 1e-3
# Keras runs calls of one layer that wait for nothing of each other in an order of its own, which shows in averages.
_IN_ANOTHER_ORDER = 1e-1
# A gradient that is so small against the others is rounding.
_NEGLIGIBLE = 1e-4

Origins = Sequence[tuple[Any, Any]]


def difference_of(original: keras.Model, opened: keras.Model, origins: Origins, inputs: Any) -> str:
    """In what an opened model differs from the original; "" if in nothing.

    Args:
        original, opened: the models.
        origins: (variable of the original, its twin) for all that the opened model has.
        inputs: a batch, in the structure of the inputs.
    """
    # Where a layer computes in half precision, whatever follows is as coarse.
    view = view_model(opened)
    coarse, shared = rounding(view), len({call.path for call in view.calls}) < len(view.calls)
    tolerance = coarse if coarse > _HALF else _EXACT
    for training in (False, True):
        ours, theirs = (_step(model, inputs, training) for model in (opened, original))
        if training and _compare(theirs[0], _step(original, inputs, training)[0], tolerance):
            # PyTorch's dropout knows of no seed: there is nothing to compare with.
            return ""
        if found := _compare(theirs[0], ours[0], tolerance):
            return f"its outputs differ in {'training' if training else 'inference'} by {found}"
        pairs = [(theirs[1].get(id(old), old.value), ours[1].get(id(new), new.value)) for old, new in origins]
        coarser = max(tolerance, _IN_ANOTHER_ORDER) if shared else tolerance
        if found := _compare([a for a, _ in pairs], [b for _, b in pairs], coarser):
            return f"what it remembers of a batch differs by {found}"
    if not can_differentiate():
        return ""
    trained = [(old, new) for old, new in origins if old.trainable]
    wanted = _gradients(original, inputs, [old for old, _ in trained])
    found = _compare(wanted, _gradients(opened, inputs, [new for _, new in trained]), tolerance)
    return f"a training step differs by {found}" if found else ""


def _step(model: keras.Model, inputs: Any, training: bool) -> tuple[list[Any], dict[int, Any]]:
    """Flat outputs and losses, and the values that variables would get, by id."""
    with keras.StatelessScope(state_mapping=[(v, v.value) for v in model.variables], collect_losses=True) as scope:
        outputs = keras.tree.flatten(model(inputs, training=training))
        losses = list(model.losses)
        # Every draw moves these on, and in copies as far.
        values = {id(v): scope.get_current_value(v) for v in model.non_trainable_variables}
    kept = {key: value for key, value in values.items() if value is not None}
    return [*outputs, keras.ops.convert_to_tensor(sum(losses, 0.0), "float32")], kept


def _gradients(model: keras.Model, inputs: Any, variables: list[Any]) -> list[Any]:
    """Of a random weighted mean of the outputs, plus the losses, in training."""

    def loss(values: dict[int, Any]) -> Any:
        generator, total = np.random.default_rng(0), 0.0
        mapping = [*untrained, *((variable, values[n]) for n, variable in enumerate(variables))]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
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
    """The largest difference, relative to the largest value; "" where it is within the tolerance."""
    pairs = [(_array(a), _array(b)) for a, b in zip(expected, received, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        return "shape"
    floor = _NEGLIGIBLE * max((np.abs(a[np.isfinite(a)]).max(initial=0.0) for a, _ in pairs), default=0.0)
    for a, b in pairs:
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return "infinities"
        scale = max(np.abs(a[finite]).max(initial=0.0), floor)
        difference = np.abs(a[finite] - b[finite]).max(initial=0.0)
        if difference > tolerance * scale + 1e-12:
            return f"{difference / (scale or 1.0):.1e} of the largest value"
    return ""


def _array(x: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype(np.float64)
