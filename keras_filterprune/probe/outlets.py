"""Where the output of a layer goes, and where a constant can be added to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.handlers.activation import is_relu, named
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import keras_name, known_linear, known_statistics, linear_of, statistics_of


@dataclass(frozen=True, eq=False)
class Outlet:
    """Where the output of a layer goes, as long as nobody else reads it.

    Attributes:
        normalization: the batch normalization behind it, which may take its mean.
        shortcut: the other summand, where it ends in a sum of two.
        rectified: a ReLU comes next.
    """

    normalization: Call | None = None
    shortcut: TensorRef | None = None
    rectified: bool = False


def outlets(view: ModelView) -> dict[str, Outlet]:
    """{layer that multiplies: where its output goes}, through batch normalization into a sum of two perhaps."""
    calls = Counter(call.path for call in view.calls)
    found = {}
    for number, call in enumerate(view.calls):
        linear = linear_of(call.op) if call.inputs else None
        if linear is None:
            continue
        if named(linear.activation) != "linear":
            found[call.path] = Outlet(rectified=named(linear.activation) == "relu")
            continue
        after, at, normalization = view.only_reader(number), number, None
        statistics = None if after is None else statistics_of(view.calls[after].op)
        if after is not None and statistics is not None:
            normalization = view.calls[after]
            over_channels = statistics.axis in (-1, len(normalization.input_shapes[0]) - 1)
            if calls[normalization.path] > 1 or not over_channels:
                # What several layers or channels share is not for one of them to set.
                found[call.path] = Outlet()
                continue
            at, after = after, view.only_reader(after)
        shortcut = None
        if after is not None and keras_name(view.calls[after].op) == "Add" and len(view.calls[after].inputs) == 2:
            others = [ref for ref in view.calls[after].inputs if ref != TensorRef(at, 0)]
            same = len(others) == 1 and view.calls[after].input_shapes[0] == view.calls[after].input_shapes[1]
            shortcut = others[0] if same else None
            after = view.only_reader(after) if same else None
        rectified = after is not None and is_relu(view.calls[after].op)
        found[call.path] = Outlet(normalization, shortcut, rectified)
    return found


def add_constant(rebuilt: Rebuilt, outlet: Outlet, call: Call, constant: np.ndarray) -> None:
    """Add a constant (kept outputs,) to the output of a layer's twin, where there is room: its bias, a moving mean."""
    linear = known_linear(rebuilt.twin(call))
    bias = linear.weight(linear.bias)
    if bias is not None:
        bias.assign_add(constant)
    elif outlet.normalization is not None:
        statistics = known_statistics(rebuilt.twin(outlet.normalization))
        statistics.weights[statistics.mean].assign_add(-constant)
