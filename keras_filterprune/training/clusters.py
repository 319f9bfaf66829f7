"""Filters that are pulled together, cluster by cluster, while a network trains, and merged exactly in the end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from scipy.cluster.vq import kmeans2

from keras_filterprune.criteria import Criterion, Member, read_filters
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call, ChannelGraph, Group
from keras_filterprune.handlers.registry import known_statistics
from keras_filterprune.methods import Method
from keras_filterprune.probe import Weights
from keras_filterprune.probe.outlets import Outlet, outlets
from keras_filterprune.training.logs import if_pruned
from keras_filterprune.training.schedule import Gradual


class _Mergeable(Criterion):
    """Groups whose units can be added up: those that layers read one by one."""

    def scores(self, group: Group, weights: Any) -> np.ndarray:
        return np.zeros(group.size)

    def refuses(self, group: Group) -> str | None:
        if group.heads or group.approximate:
            return "is read as a whole, by attention or by statistics over channels"
        return None if any(m.role == "input" for m in group.members) else "feeds no layer whose weights read it"


class ClusterPruning(Gradual):
    """Pulls similar filters together while a model trains, and adds up what reads them when training ends.

    Asymptotic soft cluster pruning (Niu et al. 2022): after every epoch k-means puts the filters of each group, with
    their batch normalization folded in and every layer of the group at equal weight, into as many clusters as the
    network may keep filters, and all that makes a filter becomes its cluster's mean. Training moves them apart again,
    and clusters change. After the last epoch what reads the filters of a cluster reads the first of them,
    N_r = sum_i N_i, which changes no output, and `prune_model(model, "dead", RedundancyBudget())` removes the others.
    Adds `kept_filters`, `filter_sparsity` and `macs_if_pruned` to the logs of every epoch. Heads of attention, and
    groups over which statistics are taken, stay whole.

    Args:
        keep: fraction of the multiply-accumulates that is kept, or one per epoch, never rising (`polynomial`,
            `exponential`: the asymptotic form).
        **options: `include`, `exclude`, `min_filters` and `seed`, as in `prune_model`.

    Raises:
        InfeasibleBudgetError: fractions outside (0, 1], or that rise.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.callbacks.ClusterPruning(kfp.callbacks.exponential(0.5, epochs=10)).keep[-1]
        0.5
    """

    def __init__(self, keep: float | Sequence[float], **options: Any):
        super().__init__(keep, Method(_Mergeable()), **options)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._clusters: dict[str, np.ndarray] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        planner = self.planner(self.model, epoch, self.recipe)
        graph, counts = planner.task.graph, planner.counts()
        features = _Features(graph)
        for group, count in zip(graph.groups, counts.tolist(), strict=True):
            if count < group.size:
                before = self._clusters.get(group.name)
                self._clusters[group.name] = clustered(features.of(group), count, self.seed, before)
        self._pull(graph)
        self._logs = if_pruned(planner.task.costs, counts)
        super().on_epoch_end(epoch, logs)

    def finish(self) -> None:
        graph = self.graph_of(self.model)
        # Others may have restored weights of an earlier epoch.
        self._pull(graph)
        for group, clusters in self._in_clusters(graph):
            labels, firsts = np.unique(clusters, return_index=True)
            # What reads the first of a cluster reads for all of it, and what reads the others is nothing.
            moved = np.zeros((len(clusters), len(clusters)))
            moved[firsts] = labels[:, None] == clusters
            for member in group.members:
                if member.role == "input":
                    _mix(graph, member, moved)

    def _pull(self, graph: ChannelGraph) -> None:
        """Give all filters of a cluster the cluster's mean."""
        for group, clusters in self._in_clusters(graph):
            same = (clusters[:, None] == clusters).astype(float)
            same /= same.sum(axis=1, keepdims=True)
            for member in group.members:
                if member.role in ("filter", "channel"):
                    _mix(graph, member, same)

    def _in_clusters(self, graph: ChannelGraph) -> Iterator[tuple[Group, np.ndarray]]:
        return ((group, self._clusters[group.name]) for group in graph.groups if group.name in self._clusters)


class _Features:
    """What filters are compared by."""

    def __init__(self, graph: ChannelGraph):
        self._weights, self._outlets = Weights(graph.view), outlets(graph.view)
        self._calls: dict[str, Call] = {call.path: call for call in reversed(graph.view.calls) if call.inputs}

    def of(self, group: Group) -> np.ndarray:
        """Filters and shifts of the units, batch normalization folded in, of equal weight by layer: (n_units, d)."""
        parts = [self._folded(member) for member in group.members if member.role == "filter"]
        return np.hstack([part / max(np.sqrt(np.square(part).mean()), 1e-12) for part in parts])

    def _folded(self, member: Member) -> np.ndarray:
        units, m = member.positions.shape
        filters, bias = read_filters(member, self._weights).reshape(units, m, -1), self._bias(member)
        outlet = self._outlets.get(member.layer, Outlet())
        if outlet.normalization is not None:
            statistics = known_statistics(outlet.normalization.op)
            mean, variance, scale, offset = (value[member.positions] for value in statistics.values("float64"))
            factor = scale / np.sqrt(variance + statistics.epsilon)
            filters, bias = filters * factor[..., None], factor * (bias - mean) + offset
        return np.concatenate([filters, bias[..., None]], axis=2).reshape(units, -1)

    def _bias(self, member: Member) -> np.ndarray:
        """Biases (n_units, m) of the filters, 0 where there are none of one axis."""
        found = named_weights(self._calls[member.layer].op).get("bias")
        if found is None or len(found.shape) != 1:
            return np.zeros(member.positions.shape)
        return keras.ops.convert_to_numpy(found.value).astype(float)[member.positions]


def clustered(rows: np.ndarray, count: int, seed: int, before: np.ndarray | None = None) -> np.ndarray:
    """The cluster of every row, int64 (n,), by k-means; at most `count` clusters.

    Args:
        rows: (n, d).
        count: number of clusters.
        seed: of the first centres, by k-means++.
        before: clusters to go on from, where there were as many.
    """
    start: Any = count
    if before is not None and len(np.unique(before)) == count:
        start = np.stack([rows[before == label].mean(axis=0) for label in np.unique(before)])
    with warnings.catch_warnings():
        # A cluster that nothing is in is one that is not needed.
        warnings.simplefilter("ignore", UserWarning)
        how = "matrix" if isinstance(start, np.ndarray) else "++"
        return kmeans2(rows, start, minit=how, seed=np.random.default_rng(seed))[1].astype(int)


def _mix(graph: ChannelGraph, member: Member, mixing: np.ndarray) -> None:
    """Replace every unit's slices of a weight by a combination of all units', (n_units, n_units)."""
    layers = {call.path: call.op for call in graph.view.calls if call.inputs}
    variable = named_weights(layers[member.layer])[member.weight]
    value = np.moveaxis(keras.ops.convert_to_numpy(variable.value).copy(), member.axis, 0)
    units = value[member.positions]
    value[member.positions] = np.tensordot(mixing, units.astype(float), 1)
    variable.assign(np.moveaxis(value, 0, member.axis))
