"""Lose at most so much: the smallest groups that a tolerance allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_filterprune.allocators.base import Allocation, Allocator, last_feasible, top_up
from keras_filterprune.checks import check_number, check_option
from keras_filterprune.errors import InfeasibleBudgetError
from keras_filterprune.probe.metrics import check_metric, metric_name
from keras_filterprune.progress import track

_FLOORS = ("linear", "per_layer")
# Halvings of the tolerance between one that is too small for the budget and one that is large enough.
_HALVINGS = 5
# What refitting around channels that do nothing may change in a score.
_ROUNDING = 1e-6


class Tolerance(Allocator):
    """Prune every group, front to back, as far as the tolerance allows.

    A bisection per group finds the fewest units that keep the score above a floor, earlier groups staying cut. The
    score is that of the masked network with its consumers refitted, so that no model is rebuilt.

    With a drop, the budget is a second condition; `budget=1.0` leaves the choice to the drop alone. With both, what
    the budget leaves over is given back to the groups.

    Args:
        drop: what may be lost in all: 0.01 is one point of accuracy, or an output error of 1 % of the variance. None
            (default): as little as the budget needs.
        floor: "linear" (default, Xie et al. 2021): after l of L groups, l/L of the drop may be lost. "per_layer" (Li et
            al. 2020): every group may lose 1/L of it, counted from where the group before left off.
        measure: what is to stay high, a metric as in `measure_sensitivity` ("auto": accuracy of classes, else minus the
            compiled loss). `data` is labelled, and not the test split; for "error" it has no labels.

    Raises:
        InvalidValueError: drop is below 0.
        UnknownNameError: floor or measure is not known.
        InfeasibleBudgetError: the budget asks for more than the drop allows.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L2(), kfp.allocators.Tolerance(drop=0.01)).allocator
        Tolerance(drop=0.01, floor='linear', measure='auto')
    """

    def __init__(self, drop: float | None = None, floor: str = "linear", measure: Any = "auto"):
        self.drop = check_number("drop", drop, "the loss allowed", least=0, optional=True)
        self.floor, self.measure = check_option("floor", floor, _FLOORS), check_metric("measure", measure)

    def __repr__(self) -> str:
        return f"Tolerance(drop={self.drop}, floor={self.floor!r}, measure={metric_name(self.measure)!r})"

    def allocate(self, problem: Allocation) -> np.ndarray:
        search = _Bisection(problem, self.floor)
        if self.drop is None:
            keep = search.smallest_drop()
        else:
            keep = search.prune(self.drop)
            if not problem.feasible(keep):
                raise InfeasibleBudgetError(
                    f"{self!r} leaves a cost of {problem.cost(keep):,}; the budget allows {problem.limit:,}. Allow a "
                    "larger drop or a larger budget."
                )
            if problem.limit >= problem.cost(problem.sizes):
                return keep
        return top_up(problem, keep, range(len(keep)))


class _Bisection:
    def __init__(self, problem: Allocation, floor: str):
        self.problem, self.linear = problem, floor == "linear"
        self._scores: dict[bytes, float] = {}
        self.base = self.score(problem.sizes)

    def score(self, keep: np.ndarray) -> float:
        key = keep.tobytes()
        if key not in self._scores:
            self._scores[key] = self.problem.evaluate(keep)
        return self._scores[key]

    def prune(self, drop: float) -> np.ndarray:
        """Kept counts under a total tolerance."""
        problem, keep, score = self.problem, self.problem.sizes.copy(), self.base
        groups = np.flatnonzero(problem.floors < problem.sizes).tolist()
        for done, group in track(enumerate(groups, 1), f"losing {drop:.2g}", len(groups), problem.progress):
            least = self.base - drop * done / len(groups) if self.linear else score - drop / len(groups)
            rungs = [n for n in problem.rungs[group] if n >= problem.floors[group]]

            def cut(steps: int, group: int = group, keep: np.ndarray = keep, rungs: list[int] = rungs) -> np.ndarray:
                fewer = keep.copy()
                fewer[group] = rungs[-1 - steps]
                return fewer

            def allowed(steps: int, cut: Callable[[int], np.ndarray] = cut, least: float = least) -> bool:
                # A tolerance of nothing still allows what rounding does.
                return self.score(cut(steps)) >= least - _ROUNDING

            keep = cut(last_feasible(allowed, 0, len(rungs) - 1))
            score = self.score(keep)
        return keep

    def smallest_drop(self) -> np.ndarray:
        """Kept counts under the smallest tolerance that meets the limit, to a factor of 2^(1/32)."""
        low, high = 0.0, 0.01
        while not self.problem.feasible(best := self.prune(high)):
            low, high = high, 2 * high
        for _ in range(_HALVINGS if low else 0):
            middle = math.sqrt(low * high)
            found = self.prune(middle)
            if self.problem.feasible(found):
                best, high = found, middle
            else:
                low = middle
        return best
