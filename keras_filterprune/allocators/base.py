"""The problem every allocator solves: how many units each group keeps, at a cost that must not be exceeded."""

from __future__ import annotations

import abc
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.checks import check_returned, wrong
from keras_filterprune.cost import Cost
from keras_filterprune.errors import InfeasibleBudgetError, InvalidValueError
from keras_filterprune.parts import Part, returns


def _unmeasured(counts: Any) -> NoReturn:
    raise InvalidValueError("the allocator asks how well counts do and names no measure: set its `measure`.")


@dataclass(frozen=True, eq=False)
class Allocation:
    """What an allocator is given: groups of units, and what may be left of them.

    Attributes:
        sizes: int64 of shape (n_groups,), units of every group, in the order of the model as everything here.
        floors: int64 of shape (n_groups,), the fewest units each group may keep.
        rungs: group number -> the counts it may keep, rising, its size the last.
        cost: the budget's cost as a function of kept counts.
        limit: the most it may be.
        scores: group number -> float64 scores of its units, higher = keep, comparable between groups.
        filters: group number -> [(weights of all its filters, multiply-accumulates)] of every layer that makes it.
        evaluate: kept counts -> how well the model does then, higher = better; for allocators that ask for a measure.
        evaluate_all: the same for several, in order, side by side where the allocator has an executor.
        keyed: gives `key`, which takes reading all weights.
        progress: show progress bars.
        names: of the groups.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> class Shown(kfp.allocators.Uniform):
        ...     def allocate(self, problem):
        ...         kept = super().allocate(problem)
        ...         print(problem.sizes, kept, problem.cost(problem.sizes), problem.cost(kept), problem.limit)
        ...         return kept
        ...
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(2, 1)]
        >>> method = kfp.Method(kfp.criteria.L2(), Shown())
        >>> plan = kfp.plan_pruning(keras.Sequential(layers), method, budget=0.5)
        [8] [4] 8352 4176 4176
    """

    sizes: np.ndarray
    floors: np.ndarray
    rungs: Sequence[Sequence[int]]
    cost: Cost
    limit: int
    scores: Callable[[int], np.ndarray] = lambda group: np.zeros(0)
    filters: Callable[[int], Sequence[tuple[np.ndarray, int]]] = lambda group: ()
    evaluate: Callable[[np.ndarray], float] = _unmeasured
    evaluate_all: Callable[[Sequence[np.ndarray]], Iterator[float]] = _unmeasured
    keyed: Callable[[], str] = str
    progress: bool = False
    names: Sequence[str] = ()

    @cached_property
    def key(self) -> str:
        """What the problem is, apart from its limit: equal keys, equal searches."""
        return self.keyed()

    def feasible(self, keep: np.ndarray) -> bool:
        """Whether these counts are within the limit."""
        self._check_shape(keep)
        return self.cost(keep) <= self.limit

    def legal(self, keep: np.ndarray) -> np.ndarray:
        """Kept counts rounded up to the next rungs, within floors and sizes."""
        self._check_shape(keep)
        wanted = np.clip(keep, self.floors, self.sizes).tolist()
        return np.array([rungs[bisect_left(rungs, n)] for rungs, n in zip(self.rungs, wanted, strict=True)], int)

    def _check_shape(self, keep: Any) -> None:
        if np.shape(keep) != (len(self.sizes),):
            raise wrong("keep", keep, f"an array of {len(self.sizes)} counts, one of each group, in their order")

    def wider(self, group: int, count: int) -> int:
        """The lowest rung of a group above a count, its size if there is none."""
        rungs = self.rungs[group]
        return rungs[min(bisect_right(rungs, count), len(rungs) - 1)]

    def narrower(self, group: int, count: int, units: int) -> int:
        """The rung of a group below a count that is nearest to so many units less, or the count itself."""
        below = self.rungs[group][: bisect_left(self.rungs[group], count)]
        return min(below, key=lambda rung: (abs(count - units - rung), rung), default=count)


def check_counts(allocator: Any, kept: Any, problem: Allocation) -> None:
    """Counts are int64 of shape (n_groups,), of which none breaks a rule."""
    expected = f"return an array of {len(problem.sizes)} integers, the units that every group keeps"
    right = isinstance(kept, np.ndarray) and kept.shape == problem.sizes.shape and kept.dtype.kind in "iu"
    check_returned(right, repr(allocator), expected, kept)
    for number in np.flatnonzero(problem.legal(kept) != kept)[:1]:
        size, floor, count = problem.sizes[number], problem.floors[number], kept[number]
        rule = "one of its rungs" if floor <= count <= size else f"from {floor} to {size}"
        name = f" '{problem.names[number]}'" if problem.names else ""
        expected = f"keep counts that are legal (Allocation.legal): of group {number}{name} {rule}"
        check_returned(False, repr(allocator), expected, kept.tolist(), InfeasibleBudgetError)
    expected = f"keep counts that cost {problem.limit:,} at most, and these cost {problem.cost(kept):,}"
    met = problem.feasible(kept) or not problem.feasible(problem.legal(problem.floors))
    check_returned(met, repr(allocator), expected, kept.tolist(), InfeasibleBudgetError)


class Allocator(Part, abc.ABC):
    """Turns a budget into kept counts.

    A subclass implements `allocate`. `problem.legal` brings counts to widths that may be kept, `problem.feasible` says
    whether they fit the budget, and `problem.evaluate` how well the network does then.

    Attributes:
        measure: what `Allocation.evaluate` is to measure, a metric as in `measure_sensitivity`: "accuracy", say, or
            "error", which needs no labels; or None, nothing (None).
        executor: a `concurrent.futures` executor for `Allocation.evaluate_all`, or None (None).
        checkpoint: the file that a run goes on from (none).

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> class Level(kfp.allocators.Allocator):  # wide groups lose most
        ...     def allocate(self, problem):
        ...         for power in np.linspace(1, 0, 1001):
        ...             kept = problem.legal(np.floor(problem.sizes**power).astype(int))
        ...             if problem.feasible(kept):
        ...                 return kept
        ...
        >>> layers = [keras.layers.Conv2D(8, 3, name="a"), keras.layers.Conv2D(32, 3, name="b"), keras.layers.Flatten()]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(2)])
        >>> small = kfp.prune_model(model, kfp.Method(kfp.criteria.L2(), Level()), 0.5)
        >>> [small.get_layer(name).filters for name in ("a", "b")]
        [5, 19]
    """

    measure: Any = None
    executor: Any = None
    checkpoint: Checkpoint = Checkpoint(None)

    @abc.abstractmethod
    @returns(check_counts)
    def allocate(self, problem: Allocation) -> np.ndarray:
        """Choose how many units each group keeps.

        Args:
            problem: sizes, the least and the legal counts of every group, the cost and its limit.

        Returns:
            int64 of shape (n_groups,): legal counts, within the limit whenever the floors are.
        """


def last_feasible(feasible: Callable[[int], bool], low: int, high: int) -> int:
    """Largest integer in [low, high] that is feasible, given that `low` is and that feasibility is monotone."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if feasible(middle) else (low, middle - 1)
    return low


def top_up(problem: Allocation, keep: np.ndarray, order: Sequence[int] | np.ndarray) -> np.ndarray:
    """Spend what is left of the budget: in this order, one more rung for every group it still pays for.

    Goes round until 1 % of the budget is left at most, or no group's next rung fits.
    """
    while True:
        before = keep
        for group in order:
            more = keep.copy()
            more[group] = problem.wider(group, int(keep[group]))
            if problem.feasible(more):
                keep = more
        if problem.cost(keep) >= 0.99 * problem.limit or (keep == before).all():
            return keep
