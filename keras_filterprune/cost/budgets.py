"""What the pruned model may cost: multiply-accumulates, parameters, bit operations, or a fraction of every group."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from keras_filterprune.cost.bops import Bits, bit_operations, check_bits
from keras_filterprune.cost.model import Cost, CostModel
from keras_filterprune.errors import InfeasibleBudgetError, UnknownNameError


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float in (0, 1]; anything else is an `InfeasibleBudgetError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
        raise InfeasibleBudgetError(f"{name} is the fraction that is kept, in (0, 1]. Received: {name}={value!r}.")
    return float(value)


def _check_keep_or_count(budget: Any) -> None:
    keep, count = budget.keep, budget.count
    if (keep is None) == (count is None):
        raise InfeasibleBudgetError(f"{type(budget).__name__} expects either keep= or count=. Received: {budget}.")
    if keep is not None:
        check_fraction("keep", keep)
    elif isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise InfeasibleBudgetError(f"count is a positive number of {budget.unit}. Received: count={count!r}.")


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
        _check_keep_or_count(self)

    unit = "parameters"

    def cost(self, model: CostModel) -> Cost:
        return model.params

    def limit(self, model: CostModel) -> int:
        """The most that may be spent, in parameters."""
        full = model.params(model.sizes)
        return min(self.count, full) if self.count is not None else math.floor(self.keep * full)


@dataclass(frozen=True)
class BopsBudget:
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
        InfeasibleBudgetError: neither or both of `keep` and `count` are given, or one of the numbers is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 3, name="first")(x)
        >>> y = keras.layers.Conv2D(16, 3, name="second")(y)
        >>> y = keras.layers.Dense(4, name="logits")(keras.layers.Flatten()(y))
        >>> mixed = kfp.BopsBudget(keep=0.5, weight_bits={"second": 4, "*": 8})
        >>> small = kfp.prune_model(keras.Model(x, y), "l2", mixed)
    """

    keep: float | None = None
    count: int | None = None
    weight_bits: Bits = 8
    activation_bits: Bits = 8

    def __post_init__(self):
        _check_keep_or_count(self)
        check_bits("weight_bits", self.weight_bits)
        check_bits("activation_bits", self.activation_bits)

    unit = "bit operations"

    @property
    def key(self) -> str:
        """What the cost depends on, apart from the model."""
        return repr((self.weight_bits, self.activation_bits))

    @property
    def mixed(self) -> bool:
        """Whether bits differ between layers."""
        return isinstance(self.weight_bits, dict) or isinstance(self.activation_bits, dict)

    def cost(self, model: CostModel) -> Cost:
        return bit_operations(model.macs, self.weight_bits, self.activation_bits)

    def limit(self, model: CostModel) -> int:
        """The most that may be spent, in bit operations."""
        full = self.cost(model)(model.sizes)
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
