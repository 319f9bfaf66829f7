"""What the pruned model may cost: a fraction of the multiply-accumulates, of the parameters, or of every group."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from keras_filterprune.cost.latency import LatencyBudget
from keras_filterprune.cost.model import Cost, CostModel
from keras_filterprune.errors import InfeasibleBudgetError, UnknownNameError


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float in (0, 1]; anything else is an `InfeasibleBudgetError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
        raise InfeasibleBudgetError(f"{name} is the fraction that is kept, in (0, 1]. Received: {name}={value!r}.")
    return float(value)


@dataclass(frozen=True)
class MacsBudget:
    """Keep at most this fraction of the model's multiply-accumulates.

    Args:
        keep: fraction kept, in (0, 1].
    """

    keep: float

    def __post_init__(self):
        check_fraction("keep", self.keep)

    unit = "MACs"

    def cost(self, model: CostModel) -> Cost:
        return model.macs

    def limit(self, model: CostModel) -> int:
        """The most that may be spent, in multiply-accumulates."""
        return math.floor(self.keep * model.macs(model.sizes))


@dataclass(frozen=True)
class ParamsBudget:
    """Keep at most this fraction, or this number, of the model's parameters.

    Args:
        keep: fraction kept, in (0, 1]; or
        count: number of parameters, moving statistics included.
    """

    keep: float | None = None
    count: int | None = None

    def __post_init__(self):
        if (self.keep is None) == (self.count is None):
            raise InfeasibleBudgetError(f"ParamsBudget expects either keep= or count=. Received: {self}.")
        if self.keep is not None:
            check_fraction("keep", self.keep)
        elif isinstance(self.count, bool) or not isinstance(self.count, Integral) or self.count < 1:
            raise InfeasibleBudgetError(f"count is a positive number of parameters. Received: count={self.count!r}.")

    unit = "parameters"

    def cost(self, model: CostModel) -> Cost:
        return model.params

    def limit(self, model: CostModel) -> int:
        """The most that may be spent, in parameters."""
        full = model.params(model.sizes)
        return min(self.count, full) if self.count is not None else math.floor(self.keep * full)


@dataclass(frozen=True)
class FiltersBudget:
    """Keep the same fraction of the filters of every group (the papers' "ratio"), or a fraction per layer.

    Args:
        keep: fraction kept, in (0, 1]; or {layer name or glob: fraction}, layers not named staying whole.
    """

    keep: float | dict[str, float]

    def __post_init__(self):
        for name, value in self.keep.items() if isinstance(self.keep, dict) else [("keep", self.keep)]:
            check_fraction(name, value)

    def fractions(self, producers: list[tuple[str, ...]]) -> list[float]:
        """Kept fraction of every group, given the layers that make its filters."""
        if not isinstance(self.keep, dict):
            return [float(self.keep)] * len(producers)
        layers = {layer for group in producers for layer in group}
        for pattern in self.keep:
            if not fnmatch.filter(layers, pattern):
                raise UnknownNameError(
                    f"FiltersBudget names '{pattern}', which matches no prunable layer. Prunable: "
                    f"{', '.join(sorted(layers))}."
                )
        return [min((k for p, k in self.keep.items() if fnmatch.filter(group, p)), default=1.0) for group in producers]


@dataclass(frozen=True)
class RedundancyBudget:
    """Remove what the criterion itself calls redundant, whatever that saves.

    For criteria whose number of removed filters follows from the filters (`Similarity`, `Nystrom`: one of every two
    that are nearest to each other; `Dead`: those that nothing reads). Which layers are pruned is chosen with `include`
    and `exclude`.
    """


# Budgets that settle how many filters every group keeps, whatever the model costs then.
CountBudget = FiltersBudget | RedundancyBudget
Budget = MacsBudget | ParamsBudget | LatencyBudget | CountBudget


def as_budget(budget: Budget | float) -> Budget:
    """A budget object; a float is `MacsBudget(keep=float)`."""
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, Real):
        return MacsBudget(check_fraction("budget", budget))
    raise UnknownNameError(
        f"budget is a fraction in (0, 1], MacsBudget, ParamsBudget, LatencyBudget, FiltersBudget or "
        f"RedundancyBudget. "
        f"Received: budget={budget!r}."
    )
