"""Rebuild a model without some of its units, and prove it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_filterprune.graph.types import Call, ChannelGraph, TensorRef
from keras_filterprune.layer_pruning.units import Unit
from keras_filterprune.probe import Executor, random_inputs
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.rebuild.verify import compare_outputs


def without_units(model: keras.Model, graph: ChannelGraph, units: Sequence[Unit]) -> keras.Model:
    """An ordinary model in which the tensors that enter the units take the place of those that leave them.

    Args:
        model: the model that `graph` was read from; it is not changed.
        graph: `analyze(model)`.
        units: from `find_units(graph)`.
    """
    return _Remover(graph, units).result(model)


def verify_removal(graph: ChannelGraph, model: keras.Model, units: Sequence[Unit], seed: int = 0) -> float:
    """Compare a rebuilt model with the original that skips the units, on one random batch.

    Returns:
        The largest difference of an output, relative to its largest absolute value.

    Raises:
        SurgeryError: an output differs by more than 1e-4 (2e-2 in float16, 1e-1 in bfloat16).
    """
    skipped = {id(graph.view.calls[number]): index for unit in units for number, index in unit.passes.items()}

    def apply(call: Call, args: tuple, kwargs: dict) -> Any:
        if id(call) not in skipped:
            return call.op(*args, **kwargs)
        given = keras.tree.flatten((args, {key: kwargs[key] for key in call.kwargs}))
        return given[_position(call, skipped[id(call)])]

    inputs = random_inputs(graph.view, seed)
    with keras.StatelessScope():
        expected = Executor(graph.view, apply).run(inputs)
    return compare_outputs(graph.view, model, inputs, expected)


def _position(call: Call, index: int) -> int:
    """Where tensor `index` of a call stands among all that it is given."""
    flat = keras.tree.flatten((call.args, call.kwargs))
    return [number for number, value in enumerate(flat) if isinstance(value, TensorRef)][index]


class _Remover(Cloner):
    """Clones a model; the operations that units end in hand their inputs on, and what led to the others falls away."""

    def __init__(self, graph: ChannelGraph, units: Sequence[Unit]):
        super().__init__(graph.view)
        calls = graph.view.calls
        self.gone = frozenset(id(calls[number].op) for unit in units for number in unit.calls)
        self._passes = {id(calls[n].op): index for unit in units for n, index in unit.passes.items()}
        self._passing: dict[int, int] = {}

    def check(self, model: keras.Model, twin: keras.Model) -> None:
        """It computes something else; `verify_removal` knows what."""

    def operation(self, op: Any) -> Any:
        twin = super().operation(op)
        if id(op) in self._passes:
            self._passing[id(twin)] = self._passes[id(op)]
        return twin

    def call(self, twin: Any, *args, **kwargs) -> Any:
        if id(twin) not in self._passing:
            return super().call(twin, *args, **kwargs)
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        return tensors[self._passing[id(twin)]]
