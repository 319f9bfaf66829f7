"""From a task to a plan: the network is looked at, then widths are settled and units chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial

import keras
import numpy as np

from keras_filterprune.allocators.base import Allocation
from keras_filterprune.criteria import read_filters
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import Group
from keras_filterprune.methods import Method
from keras_filterprune.probe.trial import Trial, check_measurable
from keras_filterprune.probe.workers import spread
from keras_filterprune.progress import track
from keras_filterprune.pruning.task import Task
from keras_filterprune.rebuild.plan import PruningPlan, fingerprint, refreshed
from keras_filterprune.version import versions


class Planner:
    """A task whose criterion has seen the data, which may take minutes.

    Args:
        task: what to prune.

    Attributes:
        criterion: the recipe's, with what it has observed.
        refused: {group: why it stays whole}, by the options or by the criterion.

    Raises:
        CalibrationDataError: data does not fit the model or the recipe.
        InfeasibleBudgetError: the budget cannot be met with the groups that the criterion can rank.
    """

    def __init__(self, task: Task):
        self.task = task
        if task.recipe.allocator.measure:
            check_measurable(task.graph.view, task.run.data, task.recipe.allocator.measure)
        self.criterion = task.recipe.criterion.observe(task.graph, task.weights, task.seen, task.run.progress)
        found = {g.name: task.refused.get(g.name) or self.criterion.refuses(g) for g in task.graph.groups}
        self.refused = {name: why for name, why in found.items() if why is not None}
        if not task.budget.settles_counts and len(self.refused) > len(task.refused):
            task.check_feasible(self.refused)
        self._selected: dict[tuple[int, int], np.ndarray] = {}

    def again(self, model: keras.Model, recipe: Method | None = None) -> Planner:
        """Look anew, at this one's model after a round of cutting, with another recipe perhaps."""
        return Planner(self.task.again(model, recipe))

    @cached_property
    def trial(self) -> Trial | None:
        """What measures choices for the allocator, None if it asks for no measure."""
        task, measure = self.task, self.task.recipe.allocator.measure
        return Trial(task.graph, task.run.data, measure, task.run.progress) if measure else None

    def problem(self, limit: int | None = None) -> Allocation:
        """What the allocator is given; `limit` is the most that may be spent (None: the budget's)."""
        task, trial = self.task, self.trial
        found = task.allocation(self.refused, limit)
        keyed, progress = partial(self._key, found.rungs), task.run.progress
        found = replace(found, scores=self._scores, filters=self._filters, keyed=keyed, progress=progress)
        if trial is None:
            return found

        def evaluate(counts: np.ndarray) -> float:
            return trial(self.select(counts))

        def evaluate_all(choices: Sequence[np.ndarray]) -> Iterator[float]:
            return spread(task.model, trial, map(self.select, choices), task.recipe.allocator.executor)

        return replace(found, evaluate=evaluate, evaluate_all=evaluate_all)

    def counts(self, limit: int | None = None) -> np.ndarray:
        """Kept units of every group, int64 of shape (n_groups,), under the budget or another limit."""
        problem, task = self.problem(limit), self.task
        if task.budget.settles_counts:
            return problem.legal(task.budget.counts(task.graph.groups, self._redundant))
        return task.spent.raised(task.recipe.allocator.allocate(problem).astype(np.int64))

    def select(self, counts: np.ndarray) -> Kept:
        """The units that stay, given kept counts, int64 of shape (n_groups,)."""
        graph = self.task.graph
        chosen = track(enumerate(graph.groups), "choosing", len(graph.groups), self.task.run.progress)
        return Kept(graph, {group.name: self._select(number, int(counts[number])) for number, group in chosen})

    def plan(self, method: str, kept: Kept) -> PruningPlan:
        """The plan that keeps these units; `method` is the name the user gave."""
        task = self.task
        pins = [p._asdict() for p in task.graph.pinned]
        sizes = {group.name: group.size for group in task.graph.groups}
        pins += [{"layer": name, "channels": sizes[name], "reason": why} for name, why in self.refused.items()]
        plan = PruningPlan(
            model=self._fingerprint,
            method=method,
            budget=repr(task.budget),
            seed=task.run.seed,
            versions=versions(),
            groups=[],
            layers={},
            pinned=pins,
            cost={},
        )
        return refreshed(plan, task.costs, kept)

    @cached_property
    def _fingerprint(self) -> dict[str, str]:
        return fingerprint(self.task.graph, self.task.weights)

    def _key(self, rungs: Sequence[Sequence[int]]) -> str:
        """What a search depends on, its data and the key of its budget included."""
        task, data = self.task, self.trial and self.trial.digest()
        parts = self._fingerprint, task.recipe.name, vars(task.options), task.budget.key, rungs, task.run.seed, data
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _scores(self, number: int) -> np.ndarray:
        group = self.task.graph.groups[number]
        return self.criterion.scores(group, self.task.weights).astype(np.float64)

    def _filters(self, number: int) -> list[tuple[np.ndarray, int]]:
        members = [member for member in self.task.graph.groups[number].members if member.role == "filter"]
        spent = self.task.costs.macs.by_layer(self.task.costs.sizes)
        return [(read_filters(member, self.task.weights), spent.get(member.layer, 0)) for member in members]

    def _select(self, number: int, count: int) -> np.ndarray:
        group = self.task.graph.groups[number]
        if count == group.size:
            return np.arange(count)
        if (number, count) not in self._selected:
            self._selected[number, count] = self.criterion.select(group, count, self.task.weights)
        return self._selected[number, count]

    def _redundant(self, group: Group) -> int:
        """Units of a group that the criterion calls redundant, none where it may not shrink."""
        found = None if group.name in self.refused else self.criterion.redundant(group, self.task.weights)
        return found or 0
