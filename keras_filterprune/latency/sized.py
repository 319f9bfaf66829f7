"""The operators of one model at fixed widths: values that reports keep and tables price."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.latency.operators import DEFAULTS, list_operators


@dataclass(frozen=True, eq=False)
class SizedOperators:
    """The operators of a model at its kept counts, as plain data: what a table needs to say how long it takes.

    Attributes:
        listed: (layer, fields, channels, filters) of every operator.
        unknown: {layer: class name} of what has no operator here and is left out.
    """

    listed: tuple[tuple[str, tuple[tuple[str, Any], ...], int, int], ...]
    unknown: dict[str, str]

    @classmethod
    def of(cls, graph: ChannelGraph, keep: np.ndarray) -> SizedOperators:
        """Operators of a graph at `keep`, int64 of shape (n_groups,)."""
        operators, widths, unknown = list_operators(graph)
        at = widths.at(keep)
        return cls(tuple((o.layer, o.fields, at[o.channels], at[o.filters]) for o in operators), unknown)

    def without(self, layers: Iterable[str]) -> SizedOperators:
        """The operators of the other layers."""
        gone = set(layers)
        unknown = {layer: kind for layer, kind in self.unknown.items() if layer not in gone}
        return SizedOperators(tuple(operator for operator in self.listed if operator[0] not in gone), unknown)

    def by_layer(self, price: Callable[[dict[str, Any], int, int], float]) -> dict[str, float]:
        """{layer: what its operators cost}, by the `price` of some `Prices`.

        Raises:
            InfeasibleBudgetError: the prices say nothing about one of the operators.
        """
        spent: dict[str, float] = defaultdict(float)
        for layer, fields, channels, filters in self.listed:
            spent[layer] += price(DEFAULTS | dict(fields), channels, filters)
        return dict(spent)
