"""What every budget is: a cost, and the most that may be spent of it."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from keras_filterprune.checks import check_returned, check_share, is_number
from keras_filterprune.cost.model import Cost, CostModel
from keras_filterprune.cost.tiles import Tiles
from keras_filterprune.errors import InfeasibleBudgetError, InvalidValueError
from keras_filterprune.graph.types import Group
from keras_filterprune.parts import Part, returns


def _check_cost(budget: Any, found: Any, model: CostModel) -> None:
    """A cost is a `Cost` of whole numbers, of something."""
    unit = getattr(budget, "unit", None)
    check_returned(isinstance(unit, str), f"{budget!r}.unit", 'say what is counted, as in "500 MACs"', unit)
    check_returned(isinstance(budget.key, str), f"{budget!r}.key", "say what the cost depends on, as text", budget.key)
    widths, prices = budget.widths, budget.prices
    tiles = isinstance(widths, tuple) and len(widths) > 0 and all(isinstance(entry, Tiles) for entry in widths)
    check_returned(tiles, f"{budget!r}.widths", "name Tiles, a tuple of one or more", widths)
    check_returned(prices is None or hasattr(prices, "tiles"), f"{budget!r}.prices", "be Prices, or None", prices)
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
    within = all(0 <= count <= group.size for count, group in zip(counts.tolist(), groups, strict=True))
    check_returned(within, f"{budget!r}.counts", "keep no more units than groups have, and not less than 0", counts)


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

    def __str__(self) -> str:
        """What may be left, in words; of a budget that has no fraction, its `repr`."""
        keep: Any = getattr(self, "keep", None)
        return f"at most {100 * keep:g} % of the {self.unit}" if is_number(keep) else repr(self)

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
        raise InvalidValueError(
            f"{self!r} settles counts, and says in no counts(groups, redundant) how many units every group keeps. "
            "docs/extending.md has an example."
        )


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


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float in (0, 1]; anything else is an `InfeasibleBudgetError`."""
    return float(check_share(name, value, "the fraction that is kept", InfeasibleBudgetError, above=0, most=1))
