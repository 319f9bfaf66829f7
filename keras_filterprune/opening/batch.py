"""Give a trace that was made with one size of batch any size of batch.

Python code that asks for the size of the batch gets a number that no other size is a multiple of. Wherever it comes
back, in the shape of a reshape or a constant, it stood for the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from keras_filterprune.opening.errors import CannotOpenError
from keras_filterprune.opening.placeholders import settings_of
from keras_filterprune.opening.plain_layers import Constant, PerSample

_SMALLEST = 101


def batch_size_for(sizes: Iterable[int]) -> int:
    """A prime that none of these sizes is a multiple of."""
    sizes = set(sizes)
    number = _SMALLEST
    while any(number % n == 0 for n in range(2, math.isqrt(number) + 1)) or any(not size % number for size in sizes):
        number += 2
    return number


class OpenBatch:
    """Applies operations of a trace again, without the size of its batch.

    Args:
        size: the size of the batch in the trace.
        anchor: a symbolic tensor with an open batch.
        named: makes layers: `named(class, "name", **arguments)`.
    """

    def __init__(self, size: int, anchor: Any, named: Callable[..., Any]):
        self._size, self._anchor, self._named = size, anchor, named

    def apply(self, op: Any, shape: tuple[int | None, ...], args: tuple, kwargs: dict) -> Any:
        """The outputs of an operation.

        Args:
            op: of the trace.
            shape: of its first input, in the trace.
            args, kwargs: its arguments, now with an open batch.

        Raises:
            CannotOpenError: it needs the size of the batch.
        """
        # Indices are the same for all samples, and heads perhaps: one of each is enough.
        broadcasts = type(op).__name__ == "TakeAlongAxis" and shape[0] == self._size
        args, kwargs = keras.tree.map_structure(lambda x: self._constant(x, broadcasts), (args, kwargs))
        config = settings_of(op)
        if not any(self._is_batch(n) for n in _integers(config)):
            return op(*args, **kwargs)
        rule = getattr(self, f"_{type(op).__name__.lower()}", None)
        if rule is None:
            raise CannotOpenError(f"uses the size of the batch in {type(op).__name__.lower()}()")
        x, *others = args or (kwargs["x"],)
        return rule(x, config, shape, *others)

    def _is_batch(self, number: Any) -> bool:
        return isinstance(number, int | np.integer) and bool(number > 0 and number % self._size == 0)

    def _constant(self, value: Any, broadcasts: bool) -> Any:
        """A constant with one entry per sample has the same for all."""
        if isinstance(value, slice) and value.start in (None, 0) and value.stop == self._size:
            return slice(None, None, value.step)
        if isinstance(value, keras.KerasTensor) or not hasattr(value, "shape"):
            if isinstance(value, int | slice) and any(map(self._is_batch, _integers(value))):
                raise CannotOpenError("uses the size of the batch as an argument of an operation")
            return value
        copies = self.copied(value, broadcasts)
        return value if copies is None else copies

    def copied(self, value: Any, broadcasts: bool = False) -> Any:
        """A constant that has one entry per sample for any batch, or one that `broadcasts`; None for every other."""
        shape = tuple(value.shape)
        if not any(map(self._is_batch, shape)):
            return None
        array = keras.ops.convert_to_numpy(value)
        if shape[0] != self._size or any(map(self._is_batch, shape[1:])) or (array != array[:1]).any():
            raise CannotOpenError(
                "makes a constant of the size of the batch that differs from sample to sample; for a batch of one, "
                "kfp.open_model(model, input_spec=...), it may open"
            )
        if broadcasts:
            return value[:1]
        dtype = keras.backend.standardize_dtype(value.dtype)
        first = self._named(Constant, "constant", values=array[:1].tolist(), values_dtype=dtype)(self._anchor)
        return self._copies(first)

    def _copies(self, x: Any) -> Any:
        return self._named(PerSample, "per_sample")(x, self._anchor)

    def _reshape(self, x: Any, config: dict, shape: tuple[int | None, ...]) -> Any:
        wanted = _tuple(config["newshape"])
        target = [None if self._is_batch(n) else n for n in wanted]
        if wanted[0] == shape[0] == self._size and None not in target[1:]:
            # The layer, unlike the operation, can have another open side besides that of the batch.
            return self._named(keras.layers.Reshape, "reshape", target_shape=tuple(target[1:]))(x)
        if -1 in target and None not in shape:
            left = math.prod(shape) // math.prod(n for n in wanted if n != -1)  # type: ignore[arg-type]
            target[target.index(-1)] = None if self._is_batch(left) else left
        if target.count(None) + target.count(-1) != 1:
            raise CannotOpenError("reshapes to the size of the batch and another one that is open")
        return keras.ops.reshape(x, tuple(-1 if n is None else n for n in target))

    def _broadcastto(self, x: Any, config: dict, shape: tuple[int | None, ...]) -> Any:
        first, *rest = _tuple(config["shape"])
        if first != self._size or any(map(self._is_batch, rest)):
            raise CannotOpenError("broadcasts to the size of the batch along another axis than the first")
        if len(shape) == len(rest) + 1 and shape[0] == self._size:
            wider = [(axis, new) for axis, new in enumerate(rest, 1) if new != shape[axis]]
            if None in dict(wider).values():
                raise CannotOpenError("broadcasts along a side that the inputs leave open")
            for axis, new in wider:
                x = keras.ops.repeat(x, new, axis=axis)
            return x
        return self._copies(keras.ops.broadcast_to(x, (1, *rest)))

    def _tile(self, x: Any, config: dict, shape: tuple[int | None, ...]) -> Any:
        first, *rest = _tuple(config["repeats"])
        if first != self._size or shape[0] != 1 or len(rest) + 1 != len(shape):
            raise CannotOpenError("tiles to the size of the batch what is no single sample")
        return self._copies(keras.ops.tile(x, (1, *rest)) if any(n != 1 for n in rest) else x)

    def _repeat(self, x: Any, config: dict, shape: tuple[int | None, ...]) -> Any:
        if config["repeats"] != self._size or config.get("axis") != 0 or shape[0] != 1:
            raise CannotOpenError("repeats to the size of the batch what is no single sample")
        return self._copies(x)

    def _slice(self, x: Any, config: dict, shape: tuple[int | None, ...], start: Any) -> Any:
        cuts = list(zip(_tuple(start), _tuple(config["shape"]), shape, strict=True))
        if isinstance(start, keras.KerasTensor) or any(self._is_batch(n) and (a or n != side) for a, n, side in cuts):
            raise CannotOpenError("cuts out as many as the batch is large")
        return x[tuple(slice(None) if self._is_batch(n) else slice(a, a + n) for a, n, _ in cuts)]


def _integers(value: Any) -> Iterable[Any]:
    if isinstance(value, slice):
        value = [value.start, value.stop, value.step]
    return (n for n in keras.tree.flatten(value) if isinstance(n, int | np.integer) and not isinstance(n, bool))


def _tuple(value: Any) -> list[Any]:
    return list(np.atleast_1d(np.asarray(value, object)))
