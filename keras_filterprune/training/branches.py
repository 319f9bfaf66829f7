"""Gates of whole branches: put at their ends, counted with all that they close, and taken off with what is closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.cost import Cost
from keras_filterprune.criteria import Criterion
from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.layer_pruning.importance import FilterMean
from keras_filterprune.layer_pruning.removal import without_units
from keras_filterprune.layer_pruning.units import Unit, find_units
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.rebuild.verify import compare_models
from keras_filterprune.tracing import trace_model
from keras_filterprune.training.gate import BranchGate


def branches(graph: ChannelGraph) -> dict[Unit, tuple[int, int]]:
    """{branch of a model: the call that adds it to its shortcut, and which of the call's inputs it is}."""
    ends = {unit: unit.joins(graph.view) for unit in find_units(graph, projections=True)[0]}
    return {unit: end for unit, end in ends.items() if end is not None}


def gated_branches(graph: ChannelGraph) -> list[tuple[Unit, BranchGate]]:
    """The branches of a model that end in a gate, and their gates."""
    found = []
    for unit, (number, index) in branches(graph).items():
        gate = graph.view.calls[graph.view.calls[number].inputs[index].call].op
        if isinstance(gate, BranchGate):
            found.append((unit, gate))
    return found


def branch_starts(graph: ChannelGraph, criterion: Criterion, data: Any) -> dict[str, float]:
    """{branch: at which its gate starts}: the mean score of its filters, relative to all; 1 where that says nothing."""
    units = list(branches(graph))
    starts = dict.fromkeys([unit.name for unit in units], 1.0)
    # An order of the filters of one layer says nothing of branches.
    scores = np.zeros(0) if criterion.order_only else FilterMean(criterion).scores(graph, units, data, False)
    if len(known := scores[~np.isnan(scores)]) and known.mean() > 0:
        found = zip(units, scores / known.mean(), strict=True)
        starts |= {unit.name: float(start) for unit, start in found if not np.isnan(start)}
    return starts


def with_branch_gates(model: keras.Model, gates: bool | str, starts: Mapping[str, float]) -> keras.Model:
    """An equal model with a gate at the end of every branch.

    Args:
        model: a functional or Sequential model, with other wrappers perhaps.
        gates: their kind.
        starts: {branch: its gate}.
    """
    graph = trace_model(model)
    ends = branches(graph)
    if not ends:
        raise UnsupportedModelError(
            f"model '{model.name}' has no branch that could be closed: that takes a sum of two tensors, one of them a "
            "shortcut. Leave out branches=True."
        )
    gated = _Inserter(graph, gates, ends.values()).result(model)
    for unit, gate in gated_branches(trace_model(gated)):
        gate.mask.assign(np.array([starts[unit.name]], "float32"))
    return gated


def without_closed(model: keras.Model, graph: ChannelGraph) -> keras.Model:
    """A model without the layers of closed branches: itself, if there are none.

    Raises:
        SurgeryError: the outputs differ.
    """
    closed = [unit for unit, gate in gated_branches(graph) if not keras.ops.convert_to_numpy(gate.open).all()]
    if not closed:
        return model
    small = without_units(model, graph, closed)
    compare_models(graph.view, model, small)
    return small


class BranchCost(Cost):
    """What a network costs of whose groups so many units stay, and of whose branches so many, 0 or 1.

    Args:
        cost: of the network with all branches; its counts come first.
        groups: how many counts these are.
        units: the branches.
    """

    def __init__(self, cost: Cost, groups: int, units: Sequence[Unit]):
        self.cost, self._groups, self._units = cost, groups, units

    def closed(self, keep: np.ndarray) -> set[str]:
        """The layers that leave."""
        opened = zip(self._units, keep[self._groups :], strict=True)
        return {layer for unit, is_open in opened if not is_open for layer in unit.layers}

    def __call__(self, keep: np.ndarray) -> int:
        return self.cost.without(self.closed(keep))(keep[: self._groups])

    def by_layer(self, keep: np.ndarray) -> dict[str, int]:
        return self.cost.without(self.closed(keep)).by_layer(keep[: self._groups])

    def gradient(self, keep: np.ndarray) -> np.ndarray:
        """Of a branch, all that its layers cost."""
        counts = keep[: self._groups]
        by_layer = self.cost.by_layer(counts)
        whole = [sum(by_layer.get(layer, 0) for layer in unit.layers) for unit in self._units]
        return np.concatenate([self.cost.without(self.closed(keep)).gradient(counts), np.array(whole, float)])


class _Inserter(Cloner):
    """Clones a model with a gate before every sum, on what a branch adds."""

    def __init__(self, graph: ChannelGraph, gates: bool | str, ends: Iterable[tuple[int, int]]):
        super().__init__(graph.view)
        self._gates = gates
        self._ends = {id(graph.view.calls[number].op): index for number, index in ends}
        self._sums: dict[int, tuple[str, int]] = {}

    def operation(self, op: Any) -> Any:
        twin = super().operation(op)
        if id(op) in self._ends:
            self._sums[id(twin)] = f"{op.name}_gate", self._ends[id(op)]
        return twin

    def call(self, twin: Any, *args, **kwargs) -> Any:
        if id(twin) not in self._sums:
            return super().call(twin, *args, **kwargs)
        name, index = self._sums[id(twin)]
        flat = keras.tree.flatten((args, kwargs))
        place = [n for n, value in enumerate(flat) if isinstance(value, keras.KerasTensor)][index]
        flat[place] = BranchGate(self._gates, name=name)(flat[place])
        args, kwargs = keras.tree.pack_sequence_as((args, kwargs), flat)
        return super().call(twin, *args, **kwargs)
