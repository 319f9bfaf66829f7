"""What the pruned model may cost: multiply-accumulates, parameters, bit operations, or a fraction of every group."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np

from keras_filterprune.checks import check_integer, check_names, wrong
from keras_filterprune.cost.base import Budget, CountBudget, check_fraction
from keras_filterprune.cost.bops import Bits, bit_operations, check_bits
from keras_filterprune.cost.model import Cost, CostModel
from keras_filterprune.errors import InfeasibleBudgetError, UnknownNameError
from keras_filterprune.graph.types import Group


def as_budget(budget: Budget | float) -> Budget:
    """A budget object; a float is `MacsBudget(keep=float)`.

    Raises:
        InfeasibleBudgetError: the number is outside (0, 1].
        InvalidValueError: it is neither.
    """
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, Real):
        return MacsBudget(check_fraction("budget", budget))
    raise wrong(
        "budget",
        budget,
        "a fraction in (0, 1], or a budget: MacsBudget, ParamsBudget, BopsBudget, LatencyBudget, FiltersBudget, "
        "RedundancyBudget, or one of your own (kfp.budgets.Budget)",
    )


def as_cost_budget(budget: Budget | float, purpose: str) -> Budget:
    """A budget that says what the model may cost; others are refused in a sentence that begins with `purpose`."""
    found = as_budget(budget)
    if found.settles_counts:
        raise InfeasibleBudgetError(
            f"{purpose}: give a fraction, MacsBudget, ParamsBudget, BopsBudget or LatencyBudget. Received: "
            f"budget={budget!r}."
        )
    return found


@dataclass(frozen=True)
class MacsBudget(Budget):
    """Keep at most this fraction of the model's multiply-accumulates.

    Args:
        keep: fraction kept, in (0, 1].

    Raises:
        InfeasibleBudgetError: the fraction is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> model = keras.Sequential(layers)
        >>> kfp.plan_pruning(model, "l2", kfp.MacsBudget(keep=0.5)).cost["macs"]
        [8352, 4176]
    """

    keep: float
    unit = key = "MACs"

    def __post_init__(self):
        check_fraction("keep", self.keep)

    def cost(self, model: CostModel) -> Cost:
        return model.macs


@dataclass(frozen=True)
class _KeepOrCount(Budget):
    """A fraction of what the whole model costs, or a number."""

    keep: float | None = None
    count: int | None = None

    def __post_init__(self):
        if (self.keep is None) == (self.count is None):
            raise InfeasibleBudgetError(f"{type(self).__name__} expects either keep= or count=. Received: {self!r}.")
        if self.keep is not None:
            check_fraction("keep", self.keep)
        else:
            check_integer("count", self.count, f"a number of {self.unit}", error=InfeasibleBudgetError)

    def __str__(self) -> str:
        return super().__str__() if self.count is None else f"at most {self.count:,} {self.unit}"

    def limit(self, full: int) -> int:
        return super().limit(full) if self.count is None else min(self.count, full)


@dataclass(frozen=True)
class ParamsBudget(_KeepOrCount):
    """Keep at most this fraction, or this number, of the model's parameters.

    Args:
        keep: fraction kept, in (0, 1]; or
        count: number of parameters, moving statistics included.

    Raises:
        InfeasibleBudgetError: neither or both are given, or one is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> model = keras.Sequential(layers)
        >>> kfp.plan_pruning(model, "l2", kfp.ParamsBudget(count=100)).cost["params"]
        [242, 92]
    """

    unit = key = "parameters"

    def cost(self, model: CostModel) -> Cost:
        return model.params


@dataclass(frozen=True)
class BopsBudget(_KeepOrCount):
    """Keep at most this fraction, or this number, of the model's bit operations.

    A multiply-accumulate of b-bit weights and a-bit activations counts a * b bit operations (after Hawks et al. 2021,
    without the carries of the sum). `keep` is relative to the whole model at the same bits: with the same bits in every
    layer, it is `MacsBudget`. `count` trades bits for filters: half the bits of the weights leave twice the
    multiply-accumulates. Nothing is quantised here; see `compare_bits` and `export_tflite`.

    Args:
        keep: fraction kept, in (0, 1]; or
        count: bit operations of one sample.
        weight_bits: bits of the weights, 2 to 32 (8); or {layer name or glob: bits}, the first that fits counts.
        activation_bits: bits of a layer's inputs, likewise (8).

    Raises:
        InfeasibleBudgetError: neither or both of `keep` and `count` are given, or the one is out of range.
        InvalidValueError: bits are out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 3, name="first")(x)
        >>> y = keras.layers.Conv2D(16, 3, name="second")(y)
        >>> y = keras.layers.Dense(4, name="logits")(keras.layers.Flatten()(y))
        >>> mixed = kfp.budgets.BopsBudget(keep=0.5, weight_bits={"second": 4, "*": 8})
        >>> small = kfp.prune_model(keras.Model(x, y), "l2", mixed)
    """

    weight_bits: Bits = 8
    activation_bits: Bits = 8
    by_name: bool = field(init=False, repr=False, compare=False)
    unit = "bit operations"

    def __post_init__(self):
        super().__post_init__()
        check_bits("weight_bits", self.weight_bits)
        check_bits("activation_bits", self.activation_bits)
        by_name = isinstance(self.weight_bits, dict) or isinstance(self.activation_bits, dict)
        object.__setattr__(self, "by_name", by_name)

    @property
    def key(self) -> str:
        return f"{self.unit} {(self.weight_bits, self.activation_bits)!r}"

    def cost(self, model: CostModel) -> Cost:
        return bit_operations(model.macs, self.weight_bits, self.activation_bits)


@dataclass(frozen=True)
class FiltersBudget(CountBudget):
    """Keep the same fraction of the filters of every group (often called ratio), or a fraction per layer.

    Args:
        keep: fraction kept, in (0, 1]; or {layer name or glob: fraction}, layers not named staying whole.

    Raises:
        InfeasibleBudgetError: a fraction is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> model = keras.Sequential(layers)
        >>> kfp.prune_model(model, "l2", kfp.FiltersBudget(keep={"conv": 0.25})).get_layer("conv").filters
        2
    """

    keep: float | dict[str, float]

    def __post_init__(self):
        by_layer = self.keep if isinstance(self.keep, dict) else None
        check_names("keep", by_layer or ())
        for name, value in ({"keep": self.keep} if by_layer is None else by_layer).items():
            check_fraction(name, value)

    def __str__(self) -> str:
        shares = self.keep if isinstance(self.keep, dict) else {"every group": self.keep}
        return ", ".join(f"{100 * share:g} % of the filters of {name}" for name, share in shares.items())

    def counts(self, groups: Sequence[Group], redundant: Callable[[Group], int]) -> np.ndarray:
        layers = {layer for group in groups for layer in group.producers}
        for pattern in self.keep if isinstance(self.keep, dict) else ():
            if not fnmatch.filter(layers, pattern):
                raise UnknownNameError(
                    f"FiltersBudget names '{pattern}', which matches no prunable layer. Prunable: "
                    f"{', '.join(sorted(layers))}."
                )
        # Half rounds up, as everywhere.
        return np.array([math.floor(self._fraction(group) * group.size + 0.5) for group in groups], int)

    def _fraction(self, group: Group) -> float:
        """Kept fraction of a group, the least that is named of the layers that make its filters."""
        if not isinstance(self.keep, dict):
            return float(self.keep)
        return min((float(k) for p, k in self.keep.items() if fnmatch.filter(group.producers, p)), default=1.0)


@dataclass(frozen=True)
class RedundancyBudget(CountBudget):
    """Remove what the criterion itself calls redundant, whatever that saves.

    For criteria whose number of removed filters follows from the filters (`Similarity`, `Nystrom`: one of every two
    that are nearest to each other; `Dead`: those that nothing reads). Which layers are pruned is chosen with `include`
    and `exclude`.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> model = keras.Sequential(layers)
        >>> kernel = keras.ops.convert_to_numpy(layers[2].kernel)
        >>> kernel[:, :, :3] = 0  # three filters that nothing reads
        >>> _ = layers[2].kernel.assign(kernel)
        >>> kfp.prune_model(model, "dead", kfp.budgets.RedundancyBudget()).get_layer("conv").filters
        5
    """

    def counts(self, groups: Sequence[Group], redundant: Callable[[Group], int]) -> np.ndarray:
        return np.array([group.size - redundant(group) for group in groups], int)
