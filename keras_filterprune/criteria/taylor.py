"""What the loss loses with a filter, to first order (Molchanov et al. 2019, "Importance Estimation")."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

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

    Example:
        >>> import keras_filterprune as kfp
        >>> sorted(kfp.criteria.Taylor().requires)
        ['gradients', 'labels']
    """

    requires = frozenset({"gradients", "labels"})

    def __init__(self, aggregate: str = "mean"):
        super().__init__(aggregate)
        self._changes: dict[tuple[str, str], np.ndarray] | None = None

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        keys = {(bind.layer, bind.weight) for bind in graph.binds if bind.role == "filter"}
        values = {key: weights[key].astype(np.float64) for key in sorted(keys)}
        observed = copy.copy(self)
        # The number of batches divides all scores alike.
        observed._changes = {key: np.zeros(value.shape) for key, value in values.items()}
        for found in weight_gradients(graph.view, data, values, progress) if values else ():
            for key, gradient in found.items():
                observed._changes[key] += np.square(values[key] * gradient)
        return observed

    def filters(self, member: Member, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return read_filters(member, _observed(self, self._changes))

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
