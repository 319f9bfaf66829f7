"""Cut, prove, compensate: once, or round by round with training between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_filterprune.allocators import Search
from keras_filterprune.allocators.search import SearchState
from keras_filterprune.compensators import Compensator
from keras_filterprune.cost import CostModel
from keras_filterprune.errors import PlanMismatchError, SurgeryError
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.planning import Task
from keras_filterprune.progress import track
from keras_filterprune.rebuild.clone import rebuild
from keras_filterprune.rebuild.verify import verify as verify_surgery


@dataclass(frozen=True, eq=False)
class Outcome:
    """A smaller model, and how it came about.

    Attributes:
        model: the smaller model.
        kept: {group name: indices of the original's units that stayed}.
        difference: the largest relative difference seen by verification, None if there was none.
        compensation: what the compensator did, in words.
        notes: what could not be carried over, in sentences.
    """

    model: keras.Model
    kept: dict[str, np.ndarray]
    difference: float | None
    compensation: str
    notes: list[str]


def operate(
    model: keras.Model,
    graph: ChannelGraph,
    kept: dict[str, np.ndarray],
    compensator: Compensator | None,
    data: Any,
    seed: int,
    verify: bool,
    progress: bool,
) -> Outcome:
    """Rebuild a model with the units that are kept, prove the surgery, compensate."""
    cost = CostModel(graph)
    rebuilt = rebuild(model, graph, kept)
    keep = np.array([len(kept.get(g.name, g.units)) for g in graph.groups], int)
    if rebuilt.model.count_params() != cost.params(keep):
        raise SurgeryError(
            f"surgery failed: the rebuilt model has {rebuilt.model.count_params():,} parameters, "
            f"{cost.params(keep):,} were predicted."
        )
    difference = verify_surgery(graph, rebuilt, seed, progress) if verify else None
    compensation = compensator.apply(rebuilt, data, progress) if compensator else "none"
    return Outcome(rebuilt.model, kept, difference, compensation, rebuilt.notes)


def operate_stepwise(
    model: keras.Model,
    task_for: Callable[[keras.Model], Task],
    compensator: Compensator | None,
    finetune: Callable[[keras.Model], Any],
    verify: bool,
    progress: bool,
) -> Outcome:
    """Search round by round: cut `beta` units, rebuild, train, measure anew, until the budget is met.

    Args:
        task_for: the pruning task for the model as it is now; its allocator is a `Search`.
    """
    task = task_for(model)
    search: Search = task.recipe.allocator
    start = task.problem()
    key = start.key + " with fine-tuning"
    kept = {group.name: np.arange(group.size) for group in task.graph.groups}
    found = search.resume(key)
    state = found[0] if found else SearchState(start.evaluate(start.sizes))
    outcome = Outcome(model, kept, None, "none", [])
    if found:
        kept = {name: np.array(units, int) for name, units in found[1]["kept"].items()}
        outcome = Outcome(_load(search.checkpoint, found[1]["model"]), kept, None, "none", [])
        task = task_for(outcome.model)

    def rounds():
        nonlocal outcome, task
        problem, done = task.problem(), 0
        first = problem.cost(problem.sizes)
        while not problem.feasible(problem.sizes):
            outcome = _round(outcome, task, search, state, compensator, finetune, verify)
            task = task_for(outcome.model)
            problem = task.problem()
            state.score = problem.evaluate(problem.sizes)
            _save(search, key, state, outcome)
            now = min(100, int(100 * (first - problem.cost(problem.sizes)) / (first - problem.limit)))
            yield from range(done, now)
            done = max(done, now)

    for _ in track(rounds(), "searching and training", 100, progress):
        pass
    return outcome


def _round(
    outcome: Outcome,
    task: Task,
    search: Search,
    state: SearchState,
    compensator: Compensator | None,
    finetune: Callable[[keras.Model], Any],
    verify: bool,
) -> Outcome:
    problem = task.problem()
    keep = problem.sizes.copy()
    group, units, _ = search.step(problem, keep, state)
    keep[group] = units
    chosen = task.select(keep)
    cut = operate(outcome.model, task.graph, chosen, compensator, task.data, task.seed, verify, progress=False)
    finetune(cut.model)
    difference = cut.difference if outcome.difference is None else max(cut.difference or 0.0, outcome.difference)
    kept = {name: outcome.kept[name][units] for name, units in chosen.items()}
    return Outcome(cut.model, kept, difference, cut.compensation, cut.notes)


def _save(search: Search, key: str, state: SearchState, outcome: Outcome) -> None:
    """The model first: a checkpoint that is cut short still names the model of the round before."""
    if search.checkpoint is None:
        return
    name = f"{search.checkpoint.name}.{len(state.rounds)}.keras"
    outcome.model.save(search.checkpoint.with_name(name))
    search.save(key, state, model=name, kept={group: units.tolist() for group, units in outcome.kept.items()})
    for old in search.checkpoint.parent.glob(f"{search.checkpoint.name}.*.keras"):
        if old.name != name:
            old.unlink()


def _load(checkpoint: Path, name: str) -> keras.Model:
    path = checkpoint.with_name(name)
    if not path.exists():
        raise PlanMismatchError(f"checkpoint '{checkpoint}' needs '{path}', which is missing. Delete the checkpoint.")
    return keras.saving.load_model(path)
