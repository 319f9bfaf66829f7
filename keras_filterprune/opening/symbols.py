"""What tensors take and Keras' symbolic ones refuse: `x[2:]`, `x[None]`, `array * x`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


@contextlib.contextmanager
def like_tensors() -> Iterator[None]:
    """Symbolic tensors take inside what tensors take."""
    kind: Any = keras.KerasTensor
    given = kind.__getitem__
    kind.__getitem__ = lambda x, key: given(x, _spelled(key))
    # Arrays of NumPy, and its numbers, leave an operation to what says so.
    kind.__array_ufunc__ = None
    try:
        yield
    finally:
        kind.__getitem__ = given
        del kind.__array_ufunc__


def _spelled(key: Any) -> Any:
    """An index as a tuple, its integers those of Python."""
    if isinstance(key, list) or hasattr(key, "shape"):
        return key
    return tuple(map(_plain, key if isinstance(key, tuple) else (key,)))


def _plain(part: Any) -> Any:
    if isinstance(part, slice):
        return slice(*map(_plain, (part.start, part.stop, part.step)))
    return int(part) if isinstance(part, np.integer) else part
