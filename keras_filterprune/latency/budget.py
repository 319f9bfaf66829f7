"""Latency as a function of the kept counts, and budgets on it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from keras_filterprune.checks import check_number
from keras_filterprune.cost import Budget, Cost, CostModel, Tiles
from keras_filterprune.cost.base import check_fraction
from keras_filterprune.errors import InfeasibleBudgetError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.latency.operators import DEFAULTS, list_operators
from keras_filterprune.latency.prices import Prices, as_prices
from keras_filterprune.latency.table import MEASURED


class LatencyCost(Cost):
    """What the operators of a model cost at some prices: nanoseconds, instructions, or whatever these count.

    Attributes:
        sizes: int64 array of shape (n_groups,), the unpruned counts.
        unknown: {layer: class name} of what has no operator here and is left out.
    """

    def __init__(self, graph: ChannelGraph, prices: Prices):
        self.sizes = graph.sizes
        self._operators, widths, self.unknown = list_operators(graph)
        self._fixed, self._slope = widths.affine()
        self._prices = prices
        self._known: dict[tuple[int, int, int], int] = {}
        # What is missing shows now, not in the middle of a search.
        self.by_layer(self.sizes)

    def __call__(self, keep: np.ndarray) -> int:
        return sum(self._times(keep)) + round(1e3 * self._prices.floor)

    def by_layer(self, keep: np.ndarray) -> dict[str, int]:
        spent: dict[str, int] = defaultdict(int)
        for operator, time in zip(self._operators, self._times(keep), strict=True):
            spent[operator.layer] += time
        return dict(spent)

    def worthwhile(self, group: int, counts: list[int]) -> list[int]:
        # Kernels may take longer for part of a step than for all of it.
        keep, least, found = self.sizes.copy(), math.inf, []
        follow = set(self._slope[:, [group]].nonzero()[0].tolist())
        concerned = [n for n, o in enumerate(self._operators) if not follow.isdisjoint((o.channels, o.filters))]
        for count in reversed(counts):
            keep[group] = count
            cost = sum(self._times(keep, concerned))
            if cost < least:
                least = cost
                found.append(count)
        return found[::-1]

    def _times(self, keep: np.ndarray, numbers: Iterable[int] | None = None) -> list[int]:
        """Costs of the operators with these numbers, or of all, at `keep`."""
        widths = (self._fixed + self._slope @ keep).tolist()
        times = []
        for number in range(len(self._operators)) if numbers is None else numbers:
            operator = self._operators[number]
            key = number, widths[operator.channels], widths[operator.filters]
            if key not in self._known:
                self._known[key] = round(1e3 * self._prices.price(DEFAULTS | dict(operator.fields), *key[1:]))
            times.append(self._known[key])
        return times


@dataclass(frozen=True)
class LatencyBudget(Budget):
    """Keep at most this fraction of the model's latency, or so many milliseconds, as a table predicts it.

    Unless `channel_multiple` is given, kept counts are multiples of 8, which tables hold, and finer ones only where
    these cannot meet the budget. Counts that a wider one undercuts are left out: part of a kernel's step may take
    longer than all of it.

    Args:
        ms: milliseconds; or
        keep: fraction kept, in (0, 1].
        table: `LatencyTable` of the model that is pruned, see `measure_latency`; or, with `keep`, one that counts
            instructions of an emulated core, the name of a target ("arm64", "x86-avx512-int8" ...), whose
            multiply-accumulates are counted in whole tiles, or `kfp.budgets.Prices` of your own.

    Raises:
        InfeasibleBudgetError: neither or both are given, one is out of range, or there are no milliseconds.
        InvalidValueError: there is no table.
        UnknownNameError: there is no such target.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.LatencyBudget(keep=0.6, table="arm64").unit
        'padded MACs'
    """

    ms: float | None = None
    keep: float | None = None
    table: Prices | str | None = None
    unit: str = field(init=False, repr=False, compare=False)
    # Ends of a kernel's steps alone would save nothing more, and cost accuracy: widths in between narrow the inputs of
    # the next layers, and what they save is in the table.
    widths = (Tiles(MEASURED), Tiles(MEASURED // 2), Tiles(1))

    def __post_init__(self):
        if (self.ms is None) == (self.keep is None):
            raise InfeasibleBudgetError(f"LatencyBudget expects either ms= or keep=. Received: {self!r}.")
        if self.keep is not None:
            check_fraction("keep", self.keep)
        check_number("ms", self.ms, "a number of milliseconds", above=0, optional=True, error=InfeasibleBudgetError)
        object.__setattr__(self, "unit", self.prices.small_unit)
        if self.prices.unit != "ms" and self.ms is not None:
            raise InfeasibleBudgetError(
                f"{self.prices!r} counts {self.unit}, which are not milliseconds: give keep=, the fraction that is "
                f"kept, or a measured table. Received: ms={self.ms!r}."
            )

    def __str__(self) -> str:
        return super().__str__() if self.ms is None else f"at most {self.ms:g} ms"

    @cached_property
    def prices(self) -> Prices:
        return as_prices("table", self.table)

    @property
    def key(self) -> str:
        return self.prices.key

    def cost(self, model: CostModel) -> LatencyCost:
        return LatencyCost(model.graph, self.prices)

    def limit(self, full: int) -> int:
        return super().limit(full) if self.ms is None else math.floor(min(1e6 * self.ms, full))
