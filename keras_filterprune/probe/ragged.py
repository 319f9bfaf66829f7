"""Sequences of unequal lengths as arrays of one: padded with what the model masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ModelView


def padding_of(view: ModelView, index: int, lengths: Sequence[Any]) -> float:
    """The value of an input that the model masks.

    Args:
        view: the model.
        index: of the input.
        lengths: what differs between batches, for the message.

    Raises:
        CalibrationDataError: it masks none.
    """
    ref = view.inputs[index]
    for op in (view.calls[number].op for number in view.readers.get(ref, ()) if number < len(view.calls)):
        if isinstance(op, keras.layers.Masking):
            return op.mask_value
        if getattr(op, "mask_zero", False):
            return 0
    raise CalibrationDataError(
        f"calibration data for input '{view.calls[ref.call].path}' is of unequal lengths, "
        f"{', '.join(map(str, lengths))}, and no Masking or Embedding(mask_zero=True) behind it says which value is "
        "padding: pad it to one length."
    )


def dense(value: Any, view: ModelView, index: int) -> Any:
    """A `tf.RaggedTensor` as a tensor that is padded at the end; anything else as it is."""
    if not hasattr(value, "nested_row_lengths") or not hasattr(value, "to_tensor"):
        return value
    longest = [int(max(lengths)) for lengths in value.nested_row_lengths()]
    return value.to_tensor(padding_of(view, index, [f"up to {n}" for n in longest]))


def even(arrays: Sequence[Sequence[Any]], fill: Sequence[Any]) -> list[list[Any]]:
    """Arrays of several parts, padded at the end to one shape each.

    Args:
        arrays: of every part, as many as `fill`; None where a part has none.
        fill: `f(shapes)` for the value that is put behind those that are shorter, by array.
    """
    columns = []
    for column, value in zip(zip(*arrays, strict=True), fill, strict=True):
        shapes = dict.fromkeys(x.shape[1:] for x in column if isinstance(x, np.ndarray) and x.ndim)
        if len(shapes) > 1 and len({len(shape) for shape in shapes}) == 1:
            longest, filler = np.max(list(shapes), axis=0), value(list(shapes))
            column = tuple(_padded(x, longest, filler) for x in column)
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def _padded(x: np.ndarray, shape: np.ndarray, value: float) -> np.ndarray:
    missing = [(0, 0), *((0, int(n)) for n in shape - np.array(x.shape[1:]))]
    return np.pad(x, missing, constant_values=value)
