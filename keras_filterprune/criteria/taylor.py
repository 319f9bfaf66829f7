"""What the loss loses with a filter, to first order (Molchanov et al. 2019, "Importance Estimation")."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_filterprune.checks import check_flag
from keras_filterprune.criteria.base import Criterion, MemberCriterion, read_filters
from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import ChannelGraph, Group, Member
from keras_filterprune.probe.gradients import gate_gradients, weight_gradients


class Taylor(MemberCriterion):
    """Sum of (w dL/dw)^2 over the weights of a filter, averaged over batches of 128 labelled samples.

    What the loss loses with the weights, to first order (Molchanov et al. 2019, "Importance Estimation for Neural
    Network Pruning"). L is the loss that the model is compiled with, of all its outputs, with the weights of samples
    that the data brings; without what regularizers add. Labels are those that `fit` takes. A model that is not compiled
    needs one output of class scores and class numbers: L is their mean cross-entropy.

    Args:
        aggregate: how the layers of a coupled group combine, see `MemberCriterion` ("mean").
        group: the square of the sum, (sum w dL/dw)^2: what a filter's weights do together (False).

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.criteria.Taylor(group=True)
        Taylor(aggregate='mean', group=True)
    """

    requires = frozenset({"gradients", "labels"})

    def __init__(self, aggregate: str = "mean", group: bool = False):
        super().__init__(aggregate)
        self.group = check_flag("group", group)
        # {(layer, weight, axis of filters): changes, of the shape of the weight, or of one value a filter}
        self._changes: dict[tuple[str, str, int], np.ndarray] | None = None

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        heads: list[Any] = [member for group in graph.groups if group.heads for member in self.members(group)]
        filters = [bind for bind in graph.binds if bind.role == "filter"]
        axes = {(place.layer, place.weight, place.axis) for place in (*filters, *heads)}
        values = {key: weights[key].astype(np.float64) for key in sorted({axis[:2] for axis in axes})}
        observed = copy.copy(self)
        # The number of batches divides all scores alike.
        observed._changes = dict.fromkeys(axes, np.zeros(()))
        for found in weight_gradients(graph.view, data, values, progress) if values else ():
            for layer, weight, axis in axes:
                change = values[layer, weight] * found[layer, weight]
                if self.group:
                    change = change.sum(axis=tuple(n for n in range(change.ndim) if n != axis), keepdims=True)
                observed._changes[layer, weight, axis] = observed._changes[layer, weight, axis] + np.square(change)
        return observed

    def filters(self, member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        changes = _observed(self, self._changes)
        return read_filters(member, {(member.layer, member.weight): changes[member.layer, member.weight, member.axis]})

    def score(self, filters: np.ndarray) -> np.ndarray:
        return filters.sum(axis=1)


class TaylorGate(Criterion):
    """Square of dL/dz of a gate z = 1 on a filter's channels, wherever they are read, averaged over batches of 128.

    To first order, dL/dz is what the loss loses when the filter goes, batch normalization and shortcuts included
    (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning"). L and labels as for `Taylor`. Filters
    that no layer with weights reads stay.

    Example:
        >>> import keras_filterprune as kfp
        >>> sorted(kfp.criteria.TaylorGate().requires)
        ['gradients', 'labels']
    """

    requires = frozenset({"gradients", "labels"})

    def __init__(self):
        self._squares: np.ndarray | None = None

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        observed = copy.copy(self)
        observed._squares = sum(np.square(found) for found in gate_gradients(graph, data, progress))
        return observed

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return _observed(self, self._squares)[group.units]

    def refuses(self, group: Group) -> str | None:
        read = any(member.role == "input" for member in group.members)
        return None if read else "feeds no layer with weights that a gate could stand before"


def _observed(criterion: Criterion, found: Any) -> Any:
    if found is None:
        raise CalibrationDataError(f"{criterion!r} needs labelled samples: pass data=(x, y).")
    return found
