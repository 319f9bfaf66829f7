"""What the pruned model may cost: multiply-accumulates, parameters, bit operations, or a fraction of every group."""

from __future__ import annotations

import abc
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from keras_filterprune.checks import check_integer, check_names, check_number, check_returned, is_number, wrong
from keras_filterprune.cost.bops import Bits, bit_operations, check_bits
from keras_filterprune.cost.model import Cost, CostModel
from keras_filterprune.cost.tiles import Tiles
from keras_filterprune.errors import InfeasibleBudgetError, UnknownNameError
from keras_filterprune.graph.types import Group
from keras_filterprune.parts import Part, returns


def _check_cost(budget: Any, found: Any, model: CostModel) -> None:
    """A cost is a `Cost` of whole numbers, of something."""
    unit = getattr(budget, "unit", None)
    check_returned(isinstance(unit, str), f"{budget!r}.unit", 'say what is counted, as in "500 MACs"', unit)
    expected = "return a Cost, as sums of whole multiples of model.macs and model.params are"
    check_returned(isinstance(found, Cost), f"{budget!r}.cost", expected, found)
    name, whole, layers = type(found).__name__, found(model.sizes), found.by_layer(model.sizes)
    check_returned(isinstance(whole, Integral), name, "cost a whole number: take a smaller unit", whole)
    right = isinstance(layers, Mapping) and all(isinstance(n, Integral) for n in layers.values())
    check_returned(right, f"{name}.by_layer", "return {layer: whole number}", layers)


def _check_limit(budget: Any, limit: Any, *_: Any, **__: Any) -> None:
    """A limit is a number."""
    check_returned(is_number(limit), f"{budget!r}.limit", "return the most that may be spent, a number", limit)


def _check_counts(budget: Any, counts: Any, groups: Sequence[Group], *_: Any, **__: Any) -> None:
    """Counts are int64 of shape (n_groups,)."""
    right = isinstance(counts, np.ndarray) and counts.shape == (len(groups),) and counts.dtype.kind in "iu"
    expected = f"return an array of {len(groups)} integers, the units that every group keeps"
    check_returned(right, f"{budget!r}.counts", expected, counts)


class Budget(Part, abc.ABC):
    """What a pruned model may cost: the base of every budget.

    A subclass says in `cost` what a model costs, and either has a fraction `keep` or says in `limit` what may be spent.

    Attributes:
        keep: fraction kept of what the whole model costs, in (0, 1]; one per layer where a budget settles counts.
        unit: what is counted, as in "asks for at most 500 MACs".
        key: text that says what the cost depends on apart from the model: searches go on from the checkpoint of an
            equal one (the `repr`).
        settles_counts: the budget says how many filters every group keeps, see `CountBudget` (False).
        by_name: the cost depends on names of layers, and says nothing of layers that are added (False).
        widths: the counts worth having where `channel_multiple` names none, the coarsest `Tiles` first; finer ones
            serve where these cannot meet the limit (all counts).
        prices: the `Prices` behind the cost, which reports show; None where there are none (None).

    Example:
        >>> import keras_filterprune as kfp
        >>> class EnergyBudget(kfp.budgets.Budget):
        ...     unit = "fJ"
        ...     def __init__(self, keep):
        ...         self.keep = keep
        ...     def cost(self, model):
        ...         return 4_600 * model.macs + 640_000 * model.params
        ...
        >>> EnergyBudget(keep=0.5), EnergyBudget(keep=0.5).limit(1001)
        (EnergyBudget(keep=0.5), 500)
    """

    keep: float | dict[str, float] | None
    unit: str
    settles_counts: ClassVar[bool] = False
    by_name: bool = False
    widths: ClassVar[tuple[Tiles, ...]] = (Tiles(1),)
    prices: Any = None

    @property
    def key(self) -> str:
        """What the cost depends on apart from the model, as text."""
        return repr(self)

    @abc.abstractmethod
    @returns(_check_cost)
    def cost(self, model: CostModel) -> Cost:
        """What a model costs as a function of the kept counts: a sum of multiples of `model.macs` and `model.params`,
        or a `Cost` of one's own.

        Called before any work starts: the place to refuse what does not fit the model.
        """

    @returns(_check_limit)
    def limit(self, full: int) -> int:
        """The most that may be spent, given what the whole model costs.

        Raises:
            InfeasibleBudgetError: `keep` is no fraction; a budget without one says something else here.
        """
        return math.floor(check_fraction("keep", getattr(self, "keep", None)) * full)

    @returns(_check_counts)
    def counts(self, groups: Sequence[Group], redundant: Callable[[Group], int]) -> np.ndarray:
        """Units that every group is to keep, int64 of shape (n_groups,); for budgets that settle counts.

        Also called before any work starts.

        Args:
            groups: of the model.
            redundant: how many units of a group the criterion calls redundant.
        """
        raise NotImplementedError


class CountBudget(Budget):
    """A budget that says how many filters every group keeps, in `counts`, whatever the model costs then.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> class Narrowed(kfp.budgets.CountBudget):  # every group loses so many filters
        ...     def __init__(self, by):
        ...         self.by = by
        ...     def counts(self, groups, redundant):
        ...         return np.array([max(1, group.size - self.by) for group in groups])
        ...
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> kfp.prune_model(keras.Sequential(layers), "l2", Narrowed(by=3)).get_layer("conv").filters
        5
    """

    unit = "MACs"
    settles_counts = True

    def cost(self, model: CostModel) -> Cost:
        return model.macs

    def limit(self, full: int) -> int:
        return full


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


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float in (0, 1]; anything else is an `InfeasibleBudgetError`."""
    return float(check_number(name, value, "the fraction that is kept", above=0, most=1, error=InfeasibleBudgetError))


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
            raise InfeasibleBudgetError(f"{type(self).__name__} expects either keep= or count=. Received: {self}.")
        if self.keep is not None:
            check_fraction("keep", self.keep)
        else:
            check_integer("count", self.count, f"a number of {self.unit}", error=InfeasibleBudgetError)

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
        >>> mixed = kfp.BopsBudget(keep=0.5, weight_bits={"second": 4, "*": 8})
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
        >>> kfp.prune_model(model, "dead", kfp.RedundancyBudget()).get_layer("conv").filters
        5
    """

    def counts(self, groups: Sequence[Group], redundant: Callable[[Group], int]) -> np.ndarray:
        return np.array([group.size - redundant(group) for group in groups], int)
