"""Widths from sensitivity curves: every group loses as much as every other (Hu et al. 2018, Li et al. 2017)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from keras_filterprune.allocators.base import Allocation, Allocator, top_up
from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.checks import check_number, entries, wrong
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.probe.metrics import check_metric, metric_name
from keras_filterprune.progress import track

_HALVINGS = 60


class Sensitivity(Allocator):
    """Cut every group alone to some fractions, and give each the width at which it loses as much as the others do.

    Trials run on the masked network with its consumers refitted (after Li et al. 2017 and Hu et al. 2018);
    `measure_sensitivity` gives the curves as a table, with intervals and without refitting.

    Args:
        keep: fractions that are tried, falling, in (0, 1) ((0.75, 0.5, 0.25)); between them losses are interpolated.
        measure: what is to stay high, a metric as in `measure_sensitivity` ("auto": accuracy of classes, else minus the
            compiled loss). `data` is labelled, and not the test split; for "error" it has no labels.
        checkpoint: JSON file that is written after every group of a `Method` that cuts one by one (None). A run that
            finds one goes on from there.

    Raises:
        InvalidValueError: keep is empty, does not fall, or leaves (0, 1).
        UnknownNameError: measure is not known.

    Example:
        >>> import keras_filterprune as kfp
        >>> kfp.Method(kfp.criteria.L2(), kfp.allocators.Sensitivity((0.5, 0.25))).allocator
        Sensitivity(keep=(0.5, 0.25), measure='auto')
    """

    def __init__(
        self,
        keep: Sequence[float] = (0.75, 0.5, 0.25),
        measure: Any = "auto",
        checkpoint: str | os.PathLike | None = None,
    ):
        self.keep, self.measure = check_falling(keep), check_metric("measure", measure)
        self.checkpoint = Checkpoint(checkpoint)

    def __repr__(self) -> str:
        return f"Sensitivity(keep={self.keep}, measure={metric_name(self.measure)!r})"

    def allocate(self, problem: Allocation) -> np.ndarray:
        base = problem.evaluate(problem.sizes)
        drops = np.zeros((len(problem.sizes), len(self.keep)))
        tried = [(g, f) for g in np.flatnonzero(problem.floors < problem.sizes) for f in range(len(self.keep))]
        for group, number in track(tried, "measuring sensitivity", len(tried), problem.progress):
            alone = problem.sizes.copy()
            alone[group] = np.floor(self.keep[number] * problem.sizes[group] + 0.5)
            drops[group, number] = base - problem.evaluate(problem.legal(alone))
        return equal_loss(problem, self.keep, drops)


def check_falling(keep: Sequence[float]) -> tuple[float, ...]:
    """`keep` as fractions in (0, 1) that fall, else `InvalidValueError`."""
    try:
        fractions = tuple(float(check_number("keep", fraction, above=0, below=1)) for fraction in entries(keep))
    except InvalidValueError:
        fractions = ()
    if not fractions or any(b >= a for a, b in pairwise(fractions)):
        raise wrong("keep", keep, "a list of fractions in (0, 1) that falls")
    return fractions


def worst_so_far(drops: np.ndarray) -> np.ndarray:
    """Losses (groups, fractions) that never fall as fewer filters are kept: a curve that recovers is chance."""
    return np.maximum.accumulate(np.maximum(drops, 0.0), axis=1)


def equal_loss(problem: Allocation, keep: Sequence[float], drops: np.ndarray) -> np.ndarray:
    """Kept counts at which no group's loss exceeds a level, the lowest that the limit allows.

    Args:
        problem: costs, floors and the limit.
        keep: falling fractions, (fractions,).
        drops: what the score loses when one group alone is cut to each, (groups, fractions).
    """
    worst = worst_so_far(drops)
    # Without any filter, no group is better off than the worst cut that was seen.
    last = np.maximum(2 * worst[:, -1:], worst.max(initial=0.0) + 1.0)
    # A little more at each step: levels are looked up on curves that rise.
    losses = np.concatenate([np.zeros((len(worst), 1)), worst, last], axis=1) + np.arange(len(keep) + 2) * 1e-9
    fractions = np.array([1.0, *keep, 0.0])

    def widths(level: float) -> np.ndarray:
        kept = [np.interp(level, row, fractions) * size for row, size in zip(losses, problem.sizes, strict=True)]
        return problem.legal(np.ceil(np.array(kept) - 1e-9).astype(int))

    low, high = 0.0, float(losses.max(initial=1.0))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.feasible(widths(middle)) else (middle, high)
    # What is left of the budget goes to those that suffer most.
    return top_up(problem, widths(high), np.argsort(-worst.mean(axis=1), kind="stable"))
