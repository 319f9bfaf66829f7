"""Cut, prove, compensate: once, or round by round with measuring and training between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from keras_filterprune.allocators import Search, Uniform
from keras_filterprune.allocators.search import SearchState
from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.graph.kept import Kept
from keras_filterprune.methods import Method
from keras_filterprune.progress import track
from keras_filterprune.pruning.planner import Planner
from keras_filterprune.rebuild.outcome import Outcome, Run, operate


def choose(planner: Planner) -> Kept:
    """Units that stay under the budget; the networks between the recipe's rounds serve the choice alone."""
    run = replace(planner.task.run, verify=False, finetune=None)
    if planner.task.recipe.one_by_one:
        return _one_by_one(planner, run).kept
    outcome, planner = _before_last(planner, run)
    return outcome.kept.then(planner.select(planner.counts()))


def carry_out(planner: Planner) -> Outcome:
    """Prune under the budget, with training between the recipe's rounds if that is wanted."""
    task, run = planner.task, planner.task.run
    if task.recipe.one_by_one:
        return _one_by_one(planner, run)
    if run.finetune is None:
        return operate(task.model, task.costs, choose(planner), run)
    if isinstance(task.recipe.allocator, Search):
        return _TrainedSearch(planner, task.recipe.allocator).result()
    outcome, planner = _before_last(planner, run)
    return _cut(outcome, planner, planner.counts(), run)


def _before_last(planner: Planner, run: Run) -> tuple[Outcome, Planner]:
    """All rounds of the recipe but the last, by equal factors of the cost, and the planner of what is left."""
    task, outcome = planner.task, _untouched(planner)
    # What a budget says about counts, it says about those of the whole model.
    rounds = 1 if task.budget.settles_counts else task.recipe.rounds
    full = task.spent(task.costs.sizes)
    for number in range(1, rounds):
        limit = round(full * (task.limit / full) ** (number / rounds))
        outcome = _cut(outcome, planner, planner.counts(limit), run)
        planner = planner.again(outcome.model)
    return outcome, planner


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
    """Cut one group after the other, the one first whose own cut costs least, on the network as it is then.

    The recipe's allocator is one that measures.
    """
    first, problem, checkpoint = planner, planner.problem(), planner.task.recipe.allocator.checkpoint
    key = problem.key + f" {problem.limit} one by one, {'with' if run.finetune else 'without'} fine-tuning"
    found = checkpoint.read(key, lambda content: (content["widths"], content["order"], content["more"]))
    if found:
        widths, order, more = found
        outcome = _resumed(planner, checkpoint, more)
    else:
        counts, groups = planner.counts(), planner.task.graph.groups
        widths = {g.name: int(n) for g, n in zip(groups, counts, strict=True) if n < g.size}
        order, outcome = _least_sensitive_first(planner, counts), _untouched(planner)
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
    return Outcome(checkpoint.model(more["model"]), Kept(planner.task.graph, more["kept"]))


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
