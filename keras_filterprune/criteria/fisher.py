"""Group Fisher pruning (Liu et al. 2021): what the loss loses with a coupled channel, to second order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_filterprune.checks import check_option
from keras_filterprune.cost import CostModel
from keras_filterprune.criteria.base import Criterion
from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ChannelGraph, Group
from keras_filterprune.handlers.base import volume
from keras_filterprune.probe.gates import sample_gate_gradients


class GroupFisher(Criterion):
    """Sum over samples of (dL_n/dm)^2 for a mask m = 1 on a unit in all layers that read it, per memory it frees.

    s = sum_n (sum_layers dL_n/dm_layer)^2 / memory, Liu et al. 2021, "Group Fisher Pruning for Practical Network
    Compression": the gradients of the layers that share a mask are added within every sample before they are squared,
    which is the diagonal of the Fisher information and, to second order, what the loss loses. Labels and loss as for
    `Taylor`. Scores compare between groups as they are, by `Global(0.0)`. The paper masks one unit after every 25 steps
    of training and here all go at once; `PruningSchedule` masks the lowest while a network trains.

    Args:
        normalise: what scores are divided by: "memory" (default), the values per sample that the layers which make or
            filter a unit give out for it; "macs", the multiply-accumulates that go with it; None, nothing.

    Raises:
        UnknownNameError: normalise is none of these.

    Example:
        >>> import keras_filterprune as kfp
        >>> method = kfp.Method(kfp.criteria.GroupFisher(normalise="macs"), kfp.allocators.Global(0.0))
        >>> keep = kfp.callbacks.polynomial(0.5, epochs=10)
        >>> x, y = [[0.0]] * 4, [0, 1, 0, 1]
        >>> kfp.callbacks.PruningSchedule(keep, method, data=(x, y)).recipe.name
        "GroupFisher(normalise='macs') + Global(alpha=0.0)"
    """

    requires = frozenset({"gradients", "labels"})

    def __init__(self, normalise: str | None = "memory"):
        if normalise is not None:
            check_option("normalise", normalise, ("memory", "macs"), ", or None")
        self.normalise = normalise
        self._scores: np.ndarray | None = None

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        observed = copy.copy(self)
        squares = sum(np.square(found).sum(axis=0) for found in sample_gate_gradients(graph, data, progress))
        price = {"memory": memory, "macs": macs, None: lambda graph: np.ones(squares.shape)}[self.normalise](graph)
        observed._scores = squares / np.maximum(price, 1)
        return observed

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        if self._scores is None:
            raise CalibrationDataError(f"{self!r} needs labelled samples: pass data=(x, y).")
        return self._scores[group.units]

    def refuses(self, group: Group) -> str | None:
        if not any(member.role == "input" for member in group.members):
            return "feeds no layer with weights that a mask could stand before"
        unseen = self._scores is not None and np.isnan(self._scores[group.units]).any()
        return "is read where no mask of a sample can stand" if unseen else None


def memory(graph: ChannelGraph) -> np.ndarray:
    """Values of one sample that the layers with multiply-accumulates give out for every unit, (units,)."""
    counted = {term.layer for term in graph.terms}
    total = np.zeros(graph.unit_of_id.max(initial=-1) + 1)
    for call, (_, outputs) in zip(graph.view.calls, graph.tensors, strict=True):
        for tensor in outputs if call.path in counted else ():
            if tensor.tracked:
                positions = volume(tensor.shape[1:]) / len(tensor.ids)
                total += positions * np.bincount(graph.unit_of_id[tensor.ids], minlength=len(total))
    return total


def macs(graph: ChannelGraph) -> np.ndarray:
    """Multiply-accumulates that go with every unit, in the layers that make it and in those that read it, (units,)."""
    costs = CostModel(graph)
    total = np.zeros(graph.unit_of_id.max(initial=-1) + 1)
    for group, price in zip(graph.groups, costs.macs.gradient(costs.sizes), strict=True):
        total[group.units] = price
    return total
