"""What a model costs as a function of the kept counts: no model is built to know it."""

from __future__ import annotations

import abc
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from keras_filterprune.checks import check_returned, wrong
from keras_filterprune.cost.widths import Widths
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.parts import Checked, returns


def _check_gradient(cost: Any, found: Any, keep: np.ndarray) -> None:
    """A gradient is a number per group."""
    right = isinstance(found, np.ndarray) and found.shape == keep.shape and np.isfinite(found.astype(float)).all()
    check_returned(right, f"{type(cost).__name__}.gradient", f"return an array of {len(keep)} numbers", found)


def _check_worthwhile(cost: Any, found: Any, group: int, counts: list[int]) -> None:
    """Counts worth having are some of those that there are, the largest among them."""
    right = isinstance(found, list) and found[-1:] == counts[-1:] and set(found) <= set(counts)
    expected = f"return some of {counts}, the last among them"
    check_returned(right, f"{type(cost).__name__}.worthwhile", expected, found)


class Cost(Checked, abc.ABC):
    """What a model costs as a function of how many units each group keeps, in whole numbers of some unit.

    `keep` is an int64 array of shape (n_groups,) everywhere: kept units per group. A cost never rises when units go.

    A subclass implements `__call__` and `by_layer`: for budgets whose cost is no sum of `CostModel.macs` and `params`.

    Attributes:
        unknown: {layer: why} of what is left out (nothing).

    Example:
        >>> import numpy as np, keras_filterprune as kfp
        >>> class Filters(kfp.budgets.Cost):
        ...     def __call__(self, keep):
        ...         return int(keep.sum())
        ...     def by_layer(self, keep):
        ...         return {}
        ...
        >>> class HiddenFilters(kfp.budgets.Budget):
        ...     unit, keep = "filters", 0.5
        ...     def cost(self, model):
        ...         return Filters()
        ...
        >>> Filters()(np.array([8, 16])), HiddenFilters().limit(24)
        (24, 12)
    """

    unknown: Mapping[str, str] = {}

    @abc.abstractmethod
    def __call__(self, keep: np.ndarray) -> int:
        """Cost at `keep`."""

    @abc.abstractmethod
    def by_layer(self, keep: np.ndarray) -> dict[str, int]:
        """{layer: cost} at `keep`."""

    @returns(_check_gradient)
    def gradient(self, keep: np.ndarray) -> np.ndarray:
        """Cost per unit of every group when half of it goes, float64 of shape (n_groups,).

        The next unit alone may save nothing, or a whole step.
        """
        whole, found = self(keep), np.zeros(len(keep))
        for group in np.flatnonzero(keep > 1):
            fewer = keep.copy()
            fewer[group] //= 2
            found[group] = (whole - self(fewer)) / (keep[group] - fewer[group])
        return found

    @returns(_check_worthwhile)
    def worthwhile(self, group: int, counts: list[int]) -> list[int]:
        """Of the rising counts of a group, those that save something against every wider one, other groups whole."""
        return counts

    def raised(self, keep: np.ndarray) -> np.ndarray:
        """Kept counts, those raised of groups that cost nothing between them and their size."""
        return keep

    def without(self, layers: Collection[str]) -> Cost:
        """What all but some layers cost, as a function of the same counts."""
        return _Without(self, layers)


class _Without(Cost):
    """A cost less what some layers have of it."""

    def __init__(self, cost: Cost, layers: Collection[str]):
        self._cost, self._layers = cost, layers

    def __call__(self, keep: np.ndarray) -> int:
        spent = self._cost.by_layer(keep)
        return self._cost(keep) - sum(spent.get(layer, 0) for layer in self._layers)

    def by_layer(self, keep: np.ndarray) -> dict[str, int]:
        return self._cost.by_layer(keep) | dict.fromkeys(self._layers, 0)


@dataclass(frozen=True, eq=False)
class Polynomial(Cost):
    """Sum of `coefficients * widths[left] * widths[right]`, where widths are affine in the kept counts.

    Costs of one `CostModel` can be added, and multiplied by whole numbers, or by one per layer.

    Attributes:
        coefficients: int64 array of shape (n_terms,).
        left, right: indices into the widths; the last width is the constant 1.
        owners: index of the layer that spends each term.
        layers: names of all layers that cost anything.
        fixed: int64 array of shape (n_widths,), channels that never go away.
        slope: sparse int64 matrix of shape (n_widths, n_groups), channels per unit of each group.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 1, use_bias=False)])
        >>> cost = kfp.budgets.CostModel(kfp.analyze(model))
        >>> energy = 3 * cost.macs + 100 * cost.params
        >>> energy(cost.sizes)
        3504
    """

    coefficients: np.ndarray
    left: np.ndarray
    right: np.ndarray
    owners: np.ndarray
    layers: tuple[str, ...]
    fixed: np.ndarray
    slope: csr_array

    def __call__(self, keep: np.ndarray) -> int:
        return int(self.terms(keep).sum())

    def __add__(self, other: Polynomial) -> Polynomial:
        if not isinstance(other, Polynomial):
            return NotImplemented
        if other.slope is not self.slope:
            raise InvalidValueError("costs that are added belong to one CostModel, and these do not.")

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        coefficients, owners = joined("coefficients"), joined("owners")
        return replace(self, coefficients=coefficients, left=joined("left"), right=joined("right"), owners=owners)

    def __mul__(self, factor: int | Mapping[str, int]) -> Polynomial:
        """This cost times a whole number, or times one for each layer; a layer that is not named costs nothing."""
        factors = factor if isinstance(factor, Mapping) else dict.fromkeys(self.layers, factor)
        if not all(isinstance(number, Integral) for number in factors.values()):
            raise wrong("factor", factor, "a whole number, as costs are: take a smaller unit")
        by_owner = np.array([factors.get(layer, 0) for layer in self.layers], int)
        return replace(self, coefficients=self.coefficients * by_owner[self.owners])

    __rmul__ = __mul__

    def without(self, layers: Collection[str]) -> Polynomial:
        return self * {layer: int(layer not in layers) for layer in self.layers}

    @property
    def spending(self) -> list[str]:
        """The layers that have a term."""
        return [self.layers[owner] for owner in sorted(set(self.owners))]

    def terms(self, keep: np.ndarray) -> np.ndarray:
        """Cost of every term, int64 of shape (n_terms,)."""
        width = self.fixed + self.slope @ keep
        return self.coefficients * width[self.left] * width[self.right]

    def by_layer(self, keep: np.ndarray) -> dict[str, int]:
        spent = np.bincount(self.owners, self.terms(keep), minlength=len(self.layers))
        return {layer: int(n) for layer, n in zip(self.layers, spent, strict=True)}

    def gradient(self, keep: np.ndarray) -> np.ndarray:
        """Cost per unit of every group at `keep`, float64 of shape (n_groups,)."""
        width = (self.fixed + self.slope @ keep).astype(float)
        per_width = np.zeros(len(width))
        np.add.at(per_width, self.left, self.coefficients * width[self.right])
        np.add.at(per_width, self.right, self.coefficients * width[self.left])
        return self.slope.T @ per_width


class CostModel:
    """The costs of a channel graph as functions of how many units each group keeps.

    Attributes:
        graph: the channel graph.
        groups: names of the groups.
        sizes: int64 array of shape (n_groups,), the unpruned counts.
        least: int64 array of shape (n_groups,), the fewest units that each group can keep.
        layers: names of the layers that cost anything.
        macs: `Polynomial` in multiply-accumulates of one sample: convolutions, dense and recurrent layers, attention.
            Normalization, activations and element-wise work are free (they fuse or are bound by memory).
        params: `Polynomial` in weights, moving statistics included, as `model.count_params()` counts them.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(4, 1, use_bias=False)(x)
        >>> y = keras.layers.Dense(2, use_bias=False)(keras.layers.GlobalAveragePooling2D()(y))
        >>> cost = kfp.budgets.CostModel(kfp.analyze(keras.Model(x, y)))
        >>> cost.macs(cost.sizes), cost.params(cost.sizes)
        (776, 20)
    """

    def __init__(self, graph: ChannelGraph):
        self.graph = graph
        self.groups = [group.name for group in graph.groups]
        self.sizes = graph.sizes
        self.least = np.array([g.least for g in graph.groups], int)
        self.layers = tuple(dict.fromkeys([*graph.weights, *(t.layer for t in graph.terms)]))
        widths = Widths(graph)
        macs = [(t.layer, t.coefficient, [widths.of_ids(ids) for ids in t.axes]) for t in graph.terms]
        params = _parameter_terms(graph, widths)
        one = widths.constant(1)
        fixed, slope = widths.affine()
        owner = {layer: number for number, layer in enumerate(self.layers)}

        def cost(terms: list) -> Polynomial:
            padded = [(c, *[*axes, one, one][:2], owner[layer]) for layer, c, axes in terms]
            coefficients, left, right, owners = np.array(padded, int).reshape(-1, 4).T
            return Polynomial(coefficients, left, right, owners, self.layers, fixed, slope)

        self.macs, self.params = cost(macs), cost(params)

    def per_layer(self, keep: np.ndarray) -> dict[str, tuple[int, int]]:
        """{layer: (macs, params)} at the kept counts `keep`, int64 of shape (n_groups,)."""
        macs, params = self.macs.by_layer(keep), self.params.by_layer(keep)
        return {layer: (macs[layer], params[layer]) for layer in self.layers}


def _parameter_terms(graph: ChannelGraph, widths: Widths) -> list[tuple[str, int, list[int]]]:
    bound: dict[tuple[str, str], dict[int, int]] = {}
    for bind in graph.binds:
        # Layers that are quantized pack several channels into a number, and keep them all.
        if len(bind.ids) == graph.weights[bind.layer][bind.weight][bind.axis]:
            bound.setdefault((bind.layer, bind.weight), {})[bind.axis] = widths.of_ids(bind.ids)
    terms = []
    for layer, weights in graph.weights.items():
        for weight, shape in weights.items():
            axes = bound.get((layer, weight), {})
            rest = math.prod(n for axis, n in enumerate(shape) if axis not in axes)
            terms.append((layer, rest, list(axes.values())))
    return terms
