"""Kernels that a `call()` computes of weights at each call: standardised, weight-normalised, made of band edges."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import substitute
from keras_filterprune.graph.types import ModelView, TensorRef
from keras_filterprune.opening.placeholders import HeldConstant, HeldWeight, Leaf


def computed(view: ModelView) -> dict[int, set[int]]:
    """{number of a call: those that make what it gives, itself included} where weights alone do, and go nowhere else.

    Args:
        view: of a trace.
    """
    made_by: dict[int, set[int]] = {}
    for number, call in enumerate(view.calls):
        sources = {ref.call for ref in call.inputs}
        if isinstance(call.op, HeldWeight | HeldConstant):
            made_by[number] = {number}
        elif sources and sources <= made_by.keys() and not isinstance(call.op, Leaf) and _has_no_weights(call.op):
            made_by[number] = {number}.union(*(made_by[n] for n in sources))
    return {n: calls for n, calls in made_by.items() if len(calls) > 1 and _is_apart(view, n, calls)}


def weights(view: ModelView, calls: Collection[int]) -> list[HeldWeight]:
    """The weights among calls, in order."""
    return [op for n in sorted(calls) if isinstance(op := view.calls[n].op, HeldWeight)]


def value_of(view: ModelView, calls: Collection[int]) -> np.ndarray:
    """What the last of these calls gives."""
    values: dict[TensorRef, Any] = {}
    outputs: list[Any] = []
    for number in sorted(calls):
        call = view.calls[number]
        if isinstance(call.op, HeldWeight):
            outputs = [keras.ops.convert_to_tensor(call.op.variable.value)]
        elif isinstance(call.op, HeldConstant):
            outputs = [keras.ops.convert_to_tensor(call.op.value, call.op.dtype)]
        else:
            args, kwargs = substitute((call.args, call.kwargs), values)
            outputs = keras.tree.flatten(call.op(*args, **kwargs))
        values.update({TensorRef(number, i): x for i, x in enumerate(outputs)})
    return keras.ops.convert_to_numpy(outputs[0])


def _is_apart(view: ModelView, last: int, calls: Collection[int]) -> bool:
    """Whether nothing else reads what these calls make before the last of them, and their weights follow no rules."""
    held = [op.variable for op in weights(view, calls)]
    inner = [ref for ref in view.readers if ref.call in calls and ref != TensorRef(last, 0)]
    return (
        bool(held)
        and all(reader in calls for ref in inner for reader in view.readers[ref])
        and len({variable.trainable for variable in held}) == 1
        and all(variable.regularizer is None and variable.constraint is None for variable in held)
    )


def _has_no_weights(op: Any) -> bool:
    return not getattr(op, "weights", None)
