"""The channel graph of a model, and the values that it is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from keras_filterprune.graph.drawing import draw, rows_of
from keras_filterprune.graph.reach import LayerMacs, Obstacle, macs_by_layer, obstacles_of, summary_of
from keras_filterprune.graph.values import ROLES as ROLES
from keras_filterprune.graph.values import Bind as Bind
from keras_filterprune.graph.values import Call as Call
from keras_filterprune.graph.values import Group as Group
from keras_filterprune.graph.values import Member as Member
from keras_filterprune.graph.values import ModelView as ModelView
from keras_filterprune.graph.values import Pinned as Pinned
from keras_filterprune.graph.values import Shape as Shape
from keras_filterprune.graph.values import Tensor as Tensor
from keras_filterprune.graph.values import TensorRef as TensorRef
from keras_filterprune.graph.values import Term as Term
from keras_filterprune.summarised import Summarised

_OBSTACLES = 3


@dataclass(frozen=True, eq=False)
class ChannelGraph(Summarised):
    """Which channels of a model can be removed, together with what, and which cannot and why.

    Attributes:
        view: the flat model the graph was read from.
        groups: prunable groups in the order of the model.
        pinned: what cannot be pruned, with the reason.
        tensors: per call, its input and output `Tensor`s.
        binds: every weight axis that channels index.
        terms: multiply-accumulates of every call.
        weights: {layer path: {weight name: shape}} of every layer that has weights.
        uncounted: layers with weights whose multiply-accumulates are not known.
        unit_of_id: int64 array, the unit of every channel id.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> graph = kfp.analyze(keras.Sequential(layers))
        >>> graph.filters, graph.by_name["conv"].size, graph.pinned[0].channels
        (4, 4, 2)
    """

    view: ModelView
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    tensors: tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]
    binds: tuple[Bind, ...]
    terms: tuple[Term, ...]
    weights: dict[str, dict[str, tuple[int, ...]]]
    uncounted: tuple[str, ...]
    unit_of_id: np.ndarray = field(repr=False)

    @cached_property
    def group_of_id(self) -> np.ndarray:
        """Number of the group of every channel id, -1 of those that stay; int64."""
        group_of_unit = np.full(self.unit_of_id.max(initial=-1) + 1, -1)
        for number, group in enumerate(self.groups):
            group_of_unit[group.units] = number
        return group_of_unit[self.unit_of_id]

    @cached_property
    def layer_macs(self) -> Mapping[str, LayerMacs]:
        """{layer: its multiply-accumulates for one sample}; estimated where no handler counts them."""
        return macs_by_layer(self.view, self.terms, self.group_of_id >= 0, self.weights, self.uncounted)

    @property
    def reach(self) -> float:
        """Share of the multiply-accumulates that fall when filters go, between 0 and 1."""
        spent = self.layer_macs.values()
        return sum(layer.reached for layer in spent) / max(1, sum(layer.macs for layer in spent))

    @cached_property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """Why filters stay, and what would help; the reason that keeps most multiply-accumulates whole first."""
        return obstacles_of(self.pinned, self.layer_macs)

    def why_whole(self) -> str:
        """Why nothing can be removed, as the text of an error."""
        most = "; ".join(map(str, self.obstacles[:_OBSTACLES])) or "no layer with a handler makes filters"
        return f"model '{self.view.name}' has no filter that can be removed: {most}."

    def summary(self) -> str:
        """How much of the model can shrink, its groups, and what stays whole and why, as text.

        Example:
            >>> import keras, keras_filterprune as kfp
            >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Conv2D(2, 1)]
            >>> print(kfp.analyze(keras.Sequential(layers, name="small")).summary().splitlines()[0])
            small: all of its 4,176 MACs can fall, in 1 group of 4 units
        """
        return summary_of(self.view, self.groups, self.obstacles, self.layer_macs)

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw the model into an image: a row for each layer, in the colour of the group that its filters are in.

        What stays whole is grey, with the reason beside it. Bars are shares of the multiply-accumulates.

        Args:
            path: the image; its ending says of which kind it is (.png, .svg, .pdf).

        Raises:
            MissingPackageError: matplotlib is not installed.
            FileError: the image cannot be written.
        """
        rows = rows_of(self.view, self.tensors, self.binds, self.groups, self.group_of_id, self.pinned, self.layer_macs)
        return draw(path, self.summary().splitlines()[0], rows)

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """{name: group}."""
        return {group.name: group for group in self.groups}

    @cached_property
    def binds_of(self) -> dict[str, tuple[Bind, ...]]:
        """{layer: the axes of its weights that channels index}."""
        found: dict[str, list[Bind]] = {}
        for bind in self.binds:
            found.setdefault(bind.layer, []).append(bind)
        return {layer: tuple(binds) for layer, binds in found.items()}

    @cached_property
    def sizes(self) -> np.ndarray:
        """Units of every group, int64 of shape (n_groups,); not to be written."""
        sizes = np.array([group.size for group in self.groups], int)
        sizes.setflags(write=False)
        return sizes

    @property
    def model(self) -> Any:
        """The model of which this is the graph: the one that was analysed, or what that was opened into."""
        return self.view.model

    @property
    def filters(self) -> int:
        """Number of filters in hidden layers that can be removed; a unit of a recurrent layer counts once."""
        return sum(int((self.group_of_id[ids] >= 0).sum()) for ids in self.filter_ids.values())

    @cached_property
    def filter_ids(self) -> dict[str, np.ndarray]:
        """{layer: ids of its filters, each once}; gates of a recurrent layer, projections of attention share theirs."""
        found: dict[str, list[np.ndarray]] = {}
        for bind in self.binds:
            if bind.role == "filter":
                found.setdefault(bind.layer, []).append(bind.ids)
        return {layer: np.unique(np.concatenate(ids)) for layer, ids in found.items()}
