"""Latency as a function of the kept counts, and budgets on it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from keras_filterprune.cost import BopsBudget, CountBudget, MacsBudget, ParamsBudget
from keras_filterprune.cost.budgets import check_fraction
from keras_filterprune.cost.tiles import as_tiles
from keras_filterprune.errors import InfeasibleBudgetError, UnknownNameError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.latency.operators import DEFAULTS, PRODUCTS, STEPPED, list_operators
from keras_filterprune.latency.table import LatencyTable


class PaddedMacs:
    """Multiply-accumulates of whole tiles, in the place of a table where nothing was measured.

    What kernels compute: output channels rounded up to their step, input channels to theirs. Operators that do not
    multiply count nothing.

    Args:
        target: a name as in `prune_model(channel_multiple=)`.
    """

    floor, small_unit = 0.0, "padded MACs"

    def __init__(self, target: str):
        self.device, self.tiles = target, as_tiles(target)

    def __repr__(self) -> str:
        return f"PaddedMacs({self.device!r})"

    def price(self, fields: Iterable[tuple[str, Any]], channels: int, filters: int) -> float:
        """Thousands of multiply-accumulates, where a table has microseconds."""
        given = DEFAULTS | dict(fields)
        if given["kind"] not in STEPPED:
            return 0.0
        inputs = -(-channels // self.tiles.inputs) * self.tiles.inputs if given["kind"] in PRODUCTS else 1
        macs = self.tiles.ceil(filters) * inputs * math.prod(given["kernel"]) / given["groups"]
        if given["kind"] == "TRANSPOSE_CONV":
            return macs * math.prod(given["size"]) / 1e3
        for n, k, step, apart in zip(*(given[x] for x in ("size", "kernel", "strides", "dilation")), strict=True):
            macs *= -(-(n - (k - 1) * apart * (given["padding"] == "valid")) // step)
        return macs / 1e3


class LatencyCost:
    """Predicted nanoseconds of a model as a function of the kept counts, in the place of a polynomial `Cost`.

    Instructions where a table counts them, multiply-accumulates where `prices` are `PaddedMacs`.

    Attributes:
        sizes: int64 array of shape (n_groups,), the unpruned counts.
        unknown: {layer: class name} of what has no operator here and is left out.
    """

    def __init__(self, graph: ChannelGraph, prices: LatencyTable | PaddedMacs):
        self.sizes = np.array([group.size for group in graph.groups], int)
        self._operators, widths, self.unknown = list_operators(graph)
        self._fixed, self._slope = widths.affine()
        self._prices = prices
        self._known: dict[tuple[int, int, int], int] = {}
        # What is missing shows now, not in the middle of a search.
        self.by_layer(self.sizes)

    def __call__(self, keep: np.ndarray) -> int:
        return sum(self._times(keep)) + round(1e3 * self._prices.floor)

    def by_layer(self, keep: np.ndarray) -> dict[str, int]:
        """{layer: nanoseconds} at `keep`."""
        spent: dict[str, int] = defaultdict(int)
        for operator, time in zip(self._operators, self._times(keep), strict=True):
            spent[operator.layer] += time
        return dict(spent)

    def gradient(self, keep: np.ndarray) -> np.ndarray:
        """Nanoseconds per unit of every group when half of it goes, float64 of shape (n_groups,).

        The next unit alone would save nothing, or a whole step.
        """
        whole, found = self(keep), np.zeros(len(keep))
        for group in np.flatnonzero(keep > 1):
            fewer = keep.copy()
            fewer[group] //= 2
            found[group] = (whole - self(fewer)) / (keep[group] - fewer[group])
        return found

    def worthwhile(self, group: int, counts: list[int]) -> list[int]:
        """Of the rising counts of a group, those that save something against every wider one, all other groups whole.

        Kernels may take longer for part of a step than for all of it.
        """
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
        """Nanoseconds of the operators with these numbers, or of all, at `keep`."""
        widths = (self._fixed + self._slope @ keep).tolist()
        times = []
        for number in range(len(self._operators)) if numbers is None else numbers:
            operator = self._operators[number]
            key = number, widths[operator.channels], widths[operator.filters]
            if key not in self._known:
                self._known[key] = round(1e3 * self._prices.price(operator.fields, *key[1:]))
            times.append(self._known[key])
        return times


@dataclass(frozen=True)
class LatencyBudget:
    """Keep at most this fraction of the model's latency, or so many milliseconds, as a table predicts it.

    Unless `channel_multiple` is given, kept counts are multiples of 8, which tables hold, and finer ones only where
    these cannot meet the budget. Counts that a wider one undercuts are left out: part of a kernel's step may take
    longer than all of it.

    Args:
        ms: milliseconds; or
        keep: fraction kept, in (0, 1].
        table: `LatencyTable` of the model that is pruned, see `measure_latency`; or, with `keep`, one that counts
            instructions of an emulated core, or the name of a target ("arm64", "x86-avx512-int8" ...), whose
            multiply-accumulates are counted in whole tiles.

    Raises:
        InfeasibleBudgetError: neither or both are given, one is out of range, or there is no table.
        UnknownNameError: there is no such target.
    """

    ms: float | None = None
    keep: float | None = None
    table: LatencyTable | str | None = None

    def __post_init__(self):
        if (self.ms is None) == (self.keep is None):
            raise InfeasibleBudgetError(f"LatencyBudget expects either ms= or keep=. Received: {self}.")
        for name, value, most, wanted in (
            ("keep", self.keep, 1, "the fraction that is kept, in (0, 1]"),
            ("ms", self.ms, math.inf, "a positive number of milliseconds"),
        ):
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= most and math.isfinite(value)):
                raise InfeasibleBudgetError(f"{name} is {wanted}. Received: {name}={value!r}.")
        if not isinstance(self.table, LatencyTable | str):
            raise InfeasibleBudgetError(
                f"LatencyBudget expects table=, a LatencyTable: measure_latency(model), LatencyTable.load(path). "
                f"Received: table={self.table!r}."
            )
        if isinstance(self.table, str) and self.ms is not None:
            raise InfeasibleBudgetError(f"target '{self.table}' has no milliseconds: give keep=, or a measured table.")
        if isinstance(self.table, str):
            as_tiles(self.table)
        elif self.ms is not None and self.table.unit != "ms":
            raise InfeasibleBudgetError(
                f"{self.table!r} counts {self.table.small_unit}, which are not milliseconds: give keep=, the fraction "
                f"of them that is kept. Received: ms={self.ms!r}."
            )

    @property
    def prices(self) -> LatencyTable | PaddedMacs:
        """What operators cost."""
        return PaddedMacs(self.table) if isinstance(self.table, str) else self.table

    @property
    def key(self) -> str:
        """What the cost depends on, apart from the model."""
        return self.table if isinstance(self.table, str) else self.table.digest

    @property
    def unit(self) -> str:
        return self.prices.small_unit

    def cost(self, model: Any) -> LatencyCost:
        return LatencyCost(model.graph, self.prices)

    def limit(self, model: Any) -> int:
        """The most that may be spent, in the budget's unit."""
        cost = self.cost(model)
        full = cost(cost.sizes)
        return math.floor(min(1e6 * self.ms, full) if self.ms is not None else self.keep * full)


Budget = MacsBudget | ParamsBudget | BopsBudget | LatencyBudget | CountBudget


def as_budget(budget: Budget | float) -> Budget:
    """A budget object; a float is `MacsBudget(keep=float)`."""
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, Real):
        return MacsBudget(check_fraction("budget", budget))
    raise UnknownNameError(
        f"budget is a fraction in (0, 1], MacsBudget, ParamsBudget, BopsBudget, LatencyBudget, FiltersBudget or "
        f"RedundancyBudget. Received: budget={budget!r}."
    )
