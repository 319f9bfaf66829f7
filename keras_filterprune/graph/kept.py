"""Kept: which units of every group stay, and what follows from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from keras_filterprune.graph.types import ChannelGraph


@dataclass(frozen=True, eq=False)
class Kept:
    """Which units of every group of a model stay.

    Args:
        graph: the model's channel graph.
        units: {group name: sorted indices of the units that stay}; groups left out stay whole (all do).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(2)]
        >>> graph = kfp.analyze(keras.Sequential([keras.Input((8, 8, 3)), *layers]))
        >>> kfp.handlers.Kept(graph, {"conv": [0, 2]}).counts
        array([2])
    """

    graph: ChannelGraph = field(repr=False)
    units: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        """Indices of the units of a group that stay, int64 and sorted."""
        units = self.units.get(name)
        return np.arange(self.graph.by_name[name].size) if units is None else np.asarray(units, int)

    @cached_property
    def counts(self) -> np.ndarray:
        """Kept units of every group, int64 of shape (n_groups,), in the order of the graph."""
        return np.array([len(self[group.name]) for group in self.graph.groups], int)

    @cached_property
    def alive(self) -> np.ndarray:
        """Boolean array over channel ids: True where the channel stays."""
        units = np.ones(self.graph.unit_of_id.max(initial=-1) + 1, bool)
        for name in self.units:
            units[np.delete(self.graph.by_name[name].units, self[name])] = False
        return units[self.graph.unit_of_id]

    @cached_property
    def channels(self) -> dict[str, dict[str, Any]]:
        """{layer: {"channels": output channels, "kept": indices that stay}} where weights are indexed by them."""
        owners = {bind.layer for bind in self.graph.binds if bind.role != "input"}
        layers: dict[str, dict[str, Any]] = {}
        for call, (_, outputs) in zip(self.graph.view.calls, self.graph.tensors, strict=True):
            if call.path in owners and call.path not in layers and outputs[0].tracked:
                stays = self.alive[outputs[0].ids]
                layers[call.path] = {"channels": len(stays), "kept": np.flatnonzero(stays).tolist()}
        return layers

    @property
    def whole(self) -> bool:
        """Whether everything stays."""
        return bool((self.counts == self.graph.sizes).all())

    def then(self, chosen: Kept) -> Kept:
        """What stays, as units of this graph, when `chosen` stays of the model that these units make up."""
        return Kept(self.graph, {group.name: self[group.name][chosen[group.name]] for group in chosen.graph.groups})
