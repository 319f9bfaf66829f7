"""Whether an operation that nobody has taught treats channels apart, found out by calling it on some of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import keras
import numpy as np

from keras_filterprune.graph.keras_view import substitute
from keras_filterprune.graph.types import Call, Tensor, TensorRef
from keras_filterprune.handlers.functions import TOLERANCE, remembered
from keras_filterprune.handlers.passing import takes_training

# What numbers are: ordinary, large, and such as functions bend at.
_EXTREMES = 0.0, 1e-6, -1e-6, 1e-3, 40.0, -40.0, 1e4, -1e4
_ROUNDS = 3
# Tensors beside those with channels may be indices.
_DTYPES = (None, None), (None, "int32"), ("int32", "int32")


def channels_apart(call: Call, inputs: Sequence[Tensor]) -> list[int | None] | None:
    """The axis of every output along which channels lie, None where an output that is not read has none.

    Some channels, in another order, have to give the outputs of these channels, in that order: then each comes out of
    itself alone, and all in the same way. What happens along other axes, as when positions turn numbers of a head or
    are sorted, makes no difference.

    Args:
        call: a call of an operation without weights.
        inputs: its tensors; those with channels have as many.

    Returns:
        None where channels meet, or the operation takes no other number of them.
    """
    lengths = {len(x.ids) for x in inputs if x.tracked}
    if len(lengths) != 1 or min(lengths) < 2:
        return None
    axes = tuple(x.axis for x in inputs)
    key = (axes, call.input_shapes, call.output_shapes, repr((call.args, call.kwargs)))
    return remembered(call.op, key, lambda: _found(call, axes, *lengths))


def _found(call: Call, axes: tuple[int | None, ...], channels: int) -> list[int | None] | None:
    for dtypes in _DTYPES:
        # Whatever an operation raises, it does not take such numbers, or so few channels.
        with contextlib.suppress(Exception), keras.StatelessScope():
            return _probed(call, dict(zip(call.inputs, axes, strict=True)), channels, dtypes)
    return None


def _probed(
    call: Call, axes: dict[TensorRef, int | None], channels: int, dtypes: tuple[str | None, str | None]
) -> list[int | None] | None:
    generator = np.random.default_rng(0)
    shapes = {ref: (1, *shape[1:]) for ref, shape in zip(call.inputs, call.input_shapes, strict=True)}
    places = [[axis for axis in range(1, len(s)) if s[axis] == channels] for s in call.output_shapes]
    for scale in range(_ROUNDS):
        kept = generator.permutation(channels)[: max(1, channels // 2)]
        given = {ref: _numbers(shape, scale, dtypes[axes[ref] is None], generator) for ref, shape in shapes.items()}
        some = {ref: x if axes[ref] is None else np.take(x, kept, axes[ref]) for ref, x in given.items()}
        whole, again, part = (_called(call, values) for values in (given, given, some))
        if not all(map(np.array_equal, whole, again)):
            return None
        tolerance = TOLERANCE.get(getattr(call.op, "compute_dtype", "float32"), 1e-5)
        places = [
            [axis for axis in found if _close(np.take(x, kept, axis), y, tolerance)]
            # Behind outputs that are read there may be others.
            for found, x, y in zip(places, whole, part, strict=False)
        ]
    # An output that nobody reads has no shape.
    if any(not found and shape for found, shape in zip(places, call.output_shapes, strict=True)):
        return None
    return [found[0] if found else None for found in places]


def _numbers(shape: tuple, scale: int, dtype: str | None, generator: np.random.Generator) -> np.ndarray:
    if dtype is not None:
        return generator.integers(0, 2, shape).astype(dtype)
    numbers = 8**scale * generator.normal(size=shape)
    extremes = generator.choice(_EXTREMES, shape)
    return np.where(generator.random(shape) < 0.1 * scale, extremes, numbers).astype("float32")


def _called(call: Call, values: dict[TensorRef, np.ndarray]) -> list[np.ndarray]:
    op, dtype = call.op, getattr(call.op, "compute_dtype", None)
    tensors = {ref: keras.ops.convert_to_tensor(x, dtype if x.dtype.kind == "f" else None) for ref, x in values.items()}
    args, kwargs = substitute((call.args, call.kwargs), tensors)
    training = {"training": False} if isinstance(op, keras.layers.Layer) and takes_training(op) else {}
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(op.call(*args, **kwargs | training))]


def _close(expected: np.ndarray, received: np.ndarray, tolerance: float) -> bool:
    if expected.shape != received.shape:
        return False
    a, b = (np.nan_to_num(x.astype(np.float64), nan=3e30, posinf=2e30, neginf=-2e30) for x in (expected, received))
    return bool(np.all(np.abs(a - b) <= tolerance * np.abs(a).max(initial=0.0)))
