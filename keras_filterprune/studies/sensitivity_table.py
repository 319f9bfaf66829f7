"""SensitivityTable: one curve per group, as a value that can be read, plotted and turned into widths."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from keras_filterprune.allocators import Allocation
from keras_filterprune.allocators.sensitivity import equal_loss, worst_so_far
from keras_filterprune.checks import check_packages
from keras_filterprune.cost import Budget, CostModel, FiltersBudget, as_cost_budget
from keras_filterprune.errors import InfeasibleBudgetError
from keras_filterprune.files import replacing

_HIGHLIGHTED = 10
# What a formula begins with, in spreadsheets.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Cut:
    """One group cut alone.

    Attributes:
        group: its name.
        units: how many units it has.
        kept: how many were kept.
        value: the metric then.
        drop: the metric of the whole network minus this one.
        low, high: 95 % bootstrap interval of the drop, over samples.
    """

    group: str
    units: int
    kept: int
    value: float
    drop: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class SensitivityTable:
    """What `measure_sensitivity` measured.

    Attributes:
        metric: its name.
        base: the metric of the whole network.
        keep: the fractions, falling.
        cuts: one `Cut` for every group and fraction, groups in the order of the model.
        costs: costs of the model.
        skipped: {group: why it was not cut}.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="a"), keras.layers.Conv2D(8, 3, name="b")]
        >>> model = keras.Sequential([*layers, keras.layers.Conv2D(2, 1)])
        >>> x = np.random.default_rng(0).normal(size=(16, 8, 8, 3))
        >>> table = kfp.measure_sensitivity(model, x, "error", keep=(0.5,))
        >>> sorted(table.order())
        ['a', 'b']
        >>> small = kfp.prune_model(model, "l2", table.keep_for(0.5))
    """

    metric: str
    base: float
    keep: tuple[float, ...]
    cuts: tuple[Cut, ...]
    costs: CostModel
    skipped: dict[str, str]

    @property
    def groups(self) -> list[str]:
        """Groups that were cut, in the order of the model."""
        return list(dict.fromkeys(cut.group for cut in self.cuts))

    @property
    def drops(self) -> np.ndarray:
        """Drops of shape (groups, fractions)."""
        return np.array([cut.drop for cut in self.cuts]).reshape(-1, len(self.keep))

    def order(self) -> list[str]:
        """Groups, the least sensitive first: by their mean drop, which never falls as fewer filters are kept."""
        groups = self.groups
        return [groups[i] for i in np.argsort(worst_so_far(self.drops).mean(axis=1), kind="stable")]

    def keep_for(self, budget: Budget | float) -> FiltersBudget:
        """Widths at which every group loses as much as the others, for `prune_model(budget=)`.

        Args:
            budget: a fraction of the multiply-accumulates, `MacsBudget` or `ParamsBudget`.

        Raises:
            InfeasibleBudgetError: the budget does not say what the model may cost, or is out of reach.
        """
        budget = as_cost_budget(budget, "keep_for says how many filters to keep so that a cost is met")
        cost = budget.cost(self.costs)
        limit = budget.limit(cost(self.costs.sizes))
        names, groups = self.costs.groups, self.groups
        floors = np.where([name in groups for name in names], self.costs.least, self.costs.sizes)
        drops = np.zeros((len(names), len(self.keep)))
        drops[[names.index(group) for group in groups]] = self.drops
        rungs = [range(1, size + 1) for size in self.costs.sizes.tolist()]
        problem = Allocation(self.costs.sizes, floors, rungs, cost, limit)
        if not problem.feasible(floors):
            raise InfeasibleBudgetError(
                f"{budget!r} asks for at most {limit:,} {budget.unit}; with the fewest filters in all groups that were "
                f"measured, {cost(floors):,} are left."
            )
        kept = equal_loss(problem, self.keep, drops)
        return FiltersBudget(
            {name: float(n / size) for name, n, size in zip(names, kept, self.costs.sizes, strict=True) if n < size}
            or 1.0
        )

    def to_csv(self, path: str | os.PathLike | None = None) -> str:
        """The table as text, one line per cut; also written to `path` in UTF-8, in one step.

        Names that spreadsheets would take for formulas begin with an apostrophe.
        """
        names = [field.name for field in fields(Cut)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, "metric", "base"])
        for cut in self.cuts:
            writer.writerow([*map(_harmless, astuple(cut)), _harmless(self.metric), self.base])
        if path is not None:
            with replacing(path) as draft:
                draft.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
        return text.getvalue()

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw the curves with their intervals into an image; the ten most sensitive groups are named.

        Raises:
            MissingPackageError: matplotlib is not installed.
            FileError: the image cannot be written.
        """
        check_packages("SensitivityTable.plot", "plots", "matplotlib.figure")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        named = self.order()[::-1][:_HIGHLIGHTED]
        for group in [g for g in self.groups if g not in named] + named:
            cuts = [cut for cut in self.cuts if cut.group == group]
            x, y = [1.0, *(cut.kept / cut.units for cut in cuts)], [self.base, *(cut.value for cut in cuts)]
            style = {"marker": "o", "label": group} if group in named else {"color": "0.8", "zorder": 1}
            (line,) = axes.plot(x, y, **style)
            low, high = ([self.base, *(self.base - getattr(cut, side) for cut in cuts)] for side in ("high", "low"))
            if group in named:
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.12)
        axes.set(xlabel="fraction of the group's filters kept", ylabel=self.metric, xlim=(1, 0))
        axes.grid(alpha=0.3)
        axes.legend(title="most sensitive first", fontsize="small")
        with replacing(path) as draft:
            figure.savefig(draft, dpi=150)
        return Path(path)


def _harmless(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula; numbers as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
