"""Cut, prove, compensate: once, or round by round with measuring and training between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.allocators import Search, Uniform
from keras_filterprune.allocators.search import SearchState
from keras_filterprune.compensators import Compensator
from keras_filterprune.methods import Method
from keras_filterprune.progress import track
from keras_filterprune.pruning.task import Task
from keras_filterprune.rebuild.outcome import Outcome, operate


def choose_in_rounds(task: Task, compensator: Compensator | None) -> dict[str, np.ndarray]:
    """Units that stay when the budget is reached in the recipe's rounds; the networks between serve the choice alone.

    Args:
        task: what to prune.
        compensator: applied after every round but the last.

    Returns:
        {group name: indices of the original's units}.
    """
    outcome, task = _before_last(task, compensator, None, verify=False)
    return _as_original(outcome, task.select(task.counts()))


def train_in_rounds(
    task: Task, compensator: Compensator | None, finetune: Callable[[keras.Model], Any], verify: bool
) -> Outcome:
    """Reach the budget in the recipe's rounds, training after each."""
    outcome, task = _before_last(task, compensator, finetune, verify)
    return _cut(outcome, task, task.counts(), compensator, finetune, verify)


def _before_last(
    task: Task, compensator: Compensator | None, finetune: Callable[[keras.Model], Any] | None, verify: bool
) -> tuple[Outcome, Task]:
    """All rounds but the last, by equal factors of the cost, and the task that is left."""
    rounds, limit = task.recipe.rounds, task.limit
    full = task.problem().cost(task.cost.sizes)
    outcome = _untouched(task)
    for number in range(1, rounds):
        task.limit = round(full * (limit / full) ** (number / rounds))
        outcome = _cut(outcome, task, task.counts(), compensator, finetune, verify)
        task.limit = limit
        task = task.again(outcome.model)
    return outcome, task


def search_with_training(
    task: Task,
    compensator: Compensator | None,
    finetune: Callable[[keras.Model], Any],
    verify: bool,
) -> Outcome:
    """Search round by round: cut `beta` units, rebuild, train, measure anew, until the budget is met.

    The task's allocator is a `Search`.
    """
    search: Search = task.recipe.allocator
    start = task.problem()
    key = start.key + " with fine-tuning"
    found = search.resume(key)
    state = found[0] if found else SearchState(start.evaluate(start.sizes))
    outcome = _untouched(task)
    if found:
        kept = {name: np.array(units, int) for name, units in found[1]["kept"].items()}
        outcome = Outcome(search.checkpoint.model(found[1]["model"]), kept, None, "none", [])
        task = task.again(outcome.model)

    def rounds():
        nonlocal outcome, task
        problem, done = task.problem(), 0
        first = problem.cost(problem.sizes)
        while not problem.feasible(problem.sizes):
            keep = problem.sizes.copy()
            group, units, _ = search.step(problem, keep, state)
            keep[group] = units
            outcome = _cut(outcome, task, keep, compensator, finetune, verify)
            task = task.again(outcome.model)
            problem = task.problem()
            state.score = problem.evaluate(problem.sizes)
            content = vars(state) | {"more": {"kept": _plain(outcome.kept)}}
            search.checkpoint.write_with_model(key, content, outcome.model, len(state.rounds))
            now = min(100, int(100 * (first - problem.cost(problem.sizes)) / (first - problem.limit)))
            yield from range(done, now)
            done = max(done, now)

    for _ in track(rounds(), "searching and training", 100, task.progress):
        pass
    return outcome if state.rounds else _copied(task, verify)


def one_by_one(
    task: Task, compensator: Compensator | None, finetune: Callable[[keras.Model], Any] | None, verify: bool
) -> Outcome:
    """Cut one group after the other, the one first whose own cut costs least, on the network as it is then.

    The task's allocator is one that measures.
    """
    problem, checkpoint = task.problem(), task.recipe.allocator.checkpoint
    key = problem.key + f" {problem.limit} one by one, {'with' if finetune else 'without'} fine-tuning"
    found = checkpoint.read(key, lambda content: (content["widths"], content["order"], content["more"]))
    if found:
        widths, order, more = found
        kept = {name: np.array(units, int) for name, units in more["kept"].items()}
        outcome = Outcome(checkpoint.model(more["model"]), kept, None, "none", [])
    else:
        counts = task.counts()
        widths = {g.name: int(n) for g, n in zip(task.graph.groups, counts, strict=True) if n < g.size}
        order, outcome = _least_sensitive_first(task, counts), _untouched(task)
    left = [name for name in order if len(outcome.kept[name]) > widths[name]]
    # Widths are settled: there is nothing to measure any more.
    recipe = Method(task.recipe.criterion, Uniform())
    for name in track(left, "cutting group by group", len(left), task.progress):
        task = task.again(outcome.model, recipe)
        keep = task.cost.sizes.copy()
        keep[task.cost.groups.index(name)] = widths[name]
        outcome = _cut(outcome, task, keep, compensator, finetune, verify)
        content = {"widths": widths, "order": order, "more": {"kept": _plain(outcome.kept)}}
        checkpoint.write_with_model(key, content, outcome.model, order.index(name) + 1)
    return outcome if order else _copied(task, verify)


def _least_sensitive_first(task: Task, counts: np.ndarray) -> list[str]:
    """Groups that are cut, by what each one's own cut costs."""
    problem, scores = task.problem(), {}
    for number, name in enumerate(task.cost.groups):
        if counts[number] < problem.sizes[number]:
            alone = problem.sizes.copy()
            alone[number] = counts[number]
            scores[name] = problem.evaluate(alone)
    return sorted(scores, key=lambda name: -scores[name])


def _plain(kept: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: units.tolist() for name, units in kept.items()}


def _untouched(task: Task) -> Outcome:
    """A model that has lost nothing yet."""
    return Outcome(task.model, {group.name: np.arange(group.size) for group in task.graph.groups}, None, "none", [])


def _copied(task: Task, verify: bool) -> Outcome:
    """What a search that had nothing to cut returns: never the model that was given."""
    return operate(task.model, task.graph, _untouched(task).kept, None, None, task.seed, verify, task.progress)


def _cut(
    before: Outcome,
    task: Task,
    keep: np.ndarray,
    compensator: Compensator | None,
    finetune: Callable[[keras.Model], Any] | None,
    verify: bool,
) -> Outcome:
    """One round: the units that go are looked up in the model as it is, and remembered as the original's."""
    chosen = task.select(keep)
    after = operate(before.model, task.graph, chosen, compensator, task.data, task.seed, verify, task.progress)
    if finetune is not None:
        finetune(after.model)
    seen = [d for d in (before.difference, after.difference) if d is not None]
    return replace(after, kept=_as_original(before, chosen), difference=max(seen, default=None))


def _as_original(before: Outcome, chosen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Units of the model as it was before a round, as units of the original."""
    return {name: before.kept[name][units] for name, units in chosen.items()}
