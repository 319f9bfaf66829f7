"""Whether `call()` does the same in training as in inference: two traces of it are compared."""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.graph.types import TensorRef
from keras_filterprune.opening.kinds import is_idle
from keras_filterprune.opening.placeholders import HeldConstant, HeldWeight, Leaf, Losses, settings_of
from keras_filterprune.opening.trace import Trace


def same_graph(*graphs: keras.Model) -> bool:
    """Whether traces compute the same outputs, layers that do nothing in inference left out."""
    first, second = map(_outputs, graphs)
    return first == second


def branching(inference: Trace, training: Trace) -> list[Any]:
    """The innermost layers that call something else in training."""
    ours, theirs = _calls(training), _calls(inference)
    differing = [id_ for id_, found in ours.items() if id_ in theirs and found[1] != theirs[id_][1]]
    if not differing:
        return []
    # Inner layers come before those that they are in, and differ for those alone.
    return [ours[differing[0]][0]]


def _calls(trace: Trace) -> dict[int, tuple[Any, list[Any]]]:
    """{id of an opened layer: (the layer, what it calls)}, inner ones first."""
    found: dict[int, tuple[Any, list[Any]]] = {}
    for layer, inputs, outputs in trace.owners:
        operations = trace.operations(inputs, outputs)
        called = sorted(str(_key(op)) for op in operations if not _is_idle(op))
        found.setdefault(id(layer), (layer, []))[1].append(called)
    return found


def _outputs(graph: keras.Model) -> list[str]:
    """A digest of how every output is computed."""
    view = view_model(graph)
    digests: dict[TensorRef, Any] = {}
    for number, call in enumerate(view.calls):
        if call.inputs and _is_idle(call.op):
            digests[TensorRef(number, 0)] = digests[call.inputs[0]]
            continue
        arguments = [_digest(x, digests) for x in keras.tree.flatten((call.args, call.kwargs))]
        key = _key(call.op) if call.inputs else ("input", number)
        names = list(call.kwargs)
        text = hashlib.sha256(repr((key, names, arguments)).encode()).hexdigest()
        digests.update({TensorRef(number, i): f"{text}/{i}" for i in range(len(call.output_shapes))})
    return [digests[ref] for ref in view.outputs]


def _is_idle(op: Any) -> bool:
    """Whether an operation gives its input in inference; losses are compared by the proof, which runs both ways."""
    return isinstance(op, Losses) or (isinstance(op, Leaf) and is_idle(op.op))


def _digest(value: Any, digests: dict[TensorRef, Any]) -> Any:
    if isinstance(value, TensorRef):
        return digests[value]
    if hasattr(value, "shape"):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    return repr(value)


def _key(op: Any) -> Any:
    """What an operation of a trace is, the same in every trace of one model."""
    if isinstance(op, Leaf):
        return "layer", id(op.op)
    if isinstance(op, HeldWeight):
        return "weight", id(op.variable)
    if isinstance(op, HeldConstant):
        return "constant", _digest(op.value, {})
    return type(op).__name__, repr(settings_of(op))
