"""Cut, prove, compensate: once, or round by round with measuring and training between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from keras_filterprune.allocators import Search, Uniform
from keras_filterprune.allocators.search import SearchState
from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.errors import FileError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.methods import Method
from keras_filterprune.outcome import Outcome, Run, operate
from keras_filterprune.progress import track
from keras_filterprune.pruning.planner import Planner


def choose(planner: Planner) -> Kept:
    """Units that stay under the budget; the networks between the recipe's rounds serve the choice alone."""
    run = replace(planner.task.run.between, verify=False, finetune=None)
    if planner.task.recipe.one_by_one:
        return _one_by_one(planner, run).kept
    outcome, planner, counts = _before_last(planner, run)
    return outcome.kept.then(planner.select(counts))


def carry_out(planner: Planner) -> Outcome:
    """Prune under the budget, with training between the recipe's rounds if that is wanted."""
    task, run = planner.task, planner.task.run
    if run.finetune is None:
        # One cut and one compensation, whatever the choice took: what a replay of the plan does.
        return operate(task.model, task.costs, choose(planner), run)
    if task.recipe.one_by_one:
        return _one_by_one(planner, run)
    if isinstance(task.recipe.allocator, Search):
        return _TrainedSearch(planner, task.recipe.allocator).result()
    outcome, planner, counts = _before_last(planner, run.between)
    return _cut(outcome, planner, counts, run)


def _before_last(planner: Planner, run: Run) -> tuple[Outcome, Planner, np.ndarray]:
    """All rounds of the recipe but the last, the planner of what is left, and the counts of the last round."""
    goal, outcome = _Goal(planner), _untouched(planner)
    for number in range(1, goal.rounds):
        outcome = _cut(outcome, planner, goal.counts(planner, number), run)
        planner = planner.again(outcome.model)
    return outcome, planner, goal.counts(planner, goal.rounds)


class _Goal:
    """A budget, which is a share of the whole model, reached in rounds by equal factors: of the cost, or of every
    group where the budget settles counts."""

    def __init__(self, planner: Planner):
        task = planner.task
        self.rounds, self._limit, self._full = task.recipe.rounds, task.limit, task.spent(task.costs.sizes)
        self._widths: dict[str, tuple[int, int]] | None = None
        if task.budget.settles_counts:
            pairs = zip(task.costs.sizes.tolist(), planner.counts().tolist(), strict=True)
            self._widths = dict(zip(task.costs.groups, pairs, strict=True))

    def counts(self, planner: Planner, number: int) -> np.ndarray:
        """Kept units of every group of the model as it is, at the end of a round, the first being 1."""
        if self._widths is None:
            share = (self._limit / self._full) ** (number / self.rounds)
            return planner.counts(None if number == self.rounds else round(self._full * share))
        wanted = [self._width(*self._widths[name], number) for name in planner.task.costs.groups]
        return planner.problem().legal(np.array(wanted, int))

    def _width(self, size: int, kept: int, number: int) -> int:
        return kept if number == self.rounds else math.ceil(size * (kept / size) ** (number / self.rounds))


class _TrainedSearch:
    """Search round by round: cut `beta` units, rebuild, train, measure anew, until the budget is met.

    A checkpoint of the recipe's allocator, `search`, is taken up.
    """

    def __init__(self, planner: Planner, search: Search):
        self._search, self._first = search, planner
        start = planner.problem()
        self._key = start.key + " with fine-tuning"
        found = self._search.resume(self._key)
        if found is None:
            self._state = SearchState(start.evaluate(start.sizes))
            self._arrive(_untouched(planner), planner)
        else:
            self._state, more = found
            outcome = _resumed(planner, self._search.checkpoint, more)
            self._arrive(outcome, planner.again(outcome.model))

    def result(self) -> Outcome:
        for _ in track(self._percents(), "searching and training", 100, self._first.task.run.progress):
            pass
        return self._outcome if self._state.rounds else _copied(self._first)

    def _arrive(self, outcome: Outcome, planner: Planner) -> None:
        """The model to go on from."""
        self._outcome, self._planner, self._problem = outcome, planner, planner.problem()

    def _percents(self) -> Iterator[int]:
        """Rounds until the budget is met; yields once per percent of the way there."""
        first, done = self._problem.cost(self._problem.sizes), 0
        while not self._problem.feasible(self._problem.sizes):
            self._round()
            gone = first - self._problem.cost(self._problem.sizes)
            now = min(100, int(100 * gone / (first - self._problem.limit)))
            yield from range(done, now)
            done = max(done, now)

    def _round(self) -> None:
        keep = self._problem.sizes.copy()
        group, units, _ = self._search.step(self._problem, keep, self._state)
        keep[group] = units
        outcome = _cut(self._outcome, self._planner, keep, self._planner.task.run)
        self._arrive(outcome, self._planner.again(outcome.model))
        self._state.score = self._problem.evaluate(self._problem.sizes)
        content = vars(self._state) | {"more": {"kept": _plain(outcome.kept)}}
        self._search.checkpoint.write_with_model(self._key, content, outcome.model, len(self._state.rounds))


def _one_by_one(planner: Planner, run: Run) -> Outcome:
    """Cut one group after the other, in the recipe's order, on the network as it is then."""
    first, problem, checkpoint = planner, planner.problem(), planner.task.recipe.allocator.checkpoint
    key = problem.key + f" {problem.limit} one by one, {'with' if run.finetune else 'without'} fine-tuning"
    found = checkpoint.read(key, lambda content: (content["widths"], content["order"], content["more"]))
    if found:
        widths, order, more = found
        outcome = _resumed(planner, checkpoint, more)
    else:
        counts, groups = planner.counts(), planner.task.graph.groups
        widths = {g.name: int(n) for g, n in zip(groups, counts, strict=True) if n < g.size}
        last_first = planner.task.recipe.last_first
        order = list(widths)[::-1] if last_first else _least_sensitive_first(planner, counts)
        outcome = _untouched(planner)
    left = [name for name in order if len(outcome.kept[name]) > widths[name]]
    # Widths are settled: there is nothing to measure any more.
    recipe = Method(planner.task.recipe.criterion, Uniform())
    for name in track(left, "cutting group by group", len(left), run.progress):
        planner = planner.again(outcome.model, recipe)
        keep = planner.task.costs.sizes.copy()
        keep[planner.task.costs.groups.index(name)] = widths[name]
        outcome = _cut(outcome, planner, keep, run)
        content = {"widths": widths, "order": order, "more": {"kept": _plain(outcome.kept)}}
        checkpoint.write_with_model(key, content, outcome.model, order.index(name) + 1)
    return outcome if order else _copied(first)


def _least_sensitive_first(planner: Planner, counts: np.ndarray) -> list[str]:
    """Groups that are cut, by what each one's own cut costs."""
    problem, scores = planner.problem(), {}
    for number, name in enumerate(planner.task.costs.groups):
        if counts[number] < problem.sizes[number]:
            alone = problem.sizes.copy()
            alone[number] = counts[number]
            scores[name] = problem.evaluate(alone)
    return sorted(scores, key=lambda name: -scores[name])


def _plain(kept: Kept) -> dict[str, list[int]]:
    return {group.name: kept[group.name].tolist() for group in kept.graph.groups}


def _untouched(planner: Planner) -> Outcome:
    """A model that has lost nothing yet."""
    return Outcome(planner.task.model, Kept(planner.task.graph))


def _resumed(planner: Planner, checkpoint: Checkpoint, more: dict[str, Any]) -> Outcome:
    """Where an earlier run had come to."""
    try:
        kept = Kept(planner.task.graph, more["kept"])
        known = kept.alive.any() and all((np.diff(kept[name]) > 0).all() for name in kept.units)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise FileError(f"'{checkpoint.path}' names units that the model does not have. Delete it.")
    return Outcome(checkpoint.model(more), kept)


def _copied(planner: Planner) -> Outcome:
    """What a search that had nothing to cut returns: never the model that was given."""
    task = planner.task
    return operate(task.model, task.costs, Kept(task.graph), replace(task.run, compensator=None))


def _cut(before: Outcome, planner: Planner, keep: np.ndarray, run: Run) -> Outcome:
    """One round: the units that go are chosen in the model as it is, and remembered as the original's."""
    chosen = planner.select(keep)
    after = operate(before.model, planner.task.costs, chosen, run)
    if run.finetune is not None:
        run.finetune(after.model)
    seen = [d for d in (before.difference, after.difference) if d is not None]
    return replace(after, kept=before.kept.then(chosen), difference=max(seen, default=None))
