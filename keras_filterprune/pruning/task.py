"""From a method and a budget to a plan: which groups may shrink, how far, and which of their units stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_filterprune.allocators.base import Allocation
from keras_filterprune.analysis import analyze
from keras_filterprune.cost import Budget, CostModel, Tiles
from keras_filterprune.errors import CalibrationDataError, InfeasibleBudgetError
from keras_filterprune.graph.types import ChannelGraph, Group
from keras_filterprune.methods import Method
from keras_filterprune.probe import Weights
from keras_filterprune.probe.trial import Trial
from keras_filterprune.probe.workers import spread
from keras_filterprune.progress import track
from keras_filterprune.pruning.options import Options
from keras_filterprune.rebuild.plan import PruningPlan, fingerprint, refreshed, versions


class Task:
    """One model to prune by one recipe under one budget: what every step of planning looks at.

    Args:
        model: the model.
        graph: its channel graph.
        recipe: the method; its criterion sees `data` here, its allocator's trials run on it.
        budget: what may be spent.
        options: which groups may shrink, and how far.
        data: calibration data or None.
        seed: seed of everything random.
        progress: show progress bars.
        original: costs of the model that the budget is a fraction of (None: this model's).

    Raises:
        CalibrationDataError: the recipe needs data that is not there.
        InfeasibleBudgetError: no filter can be removed, or the budget does not go with the allocator.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: ChannelGraph,
        recipe: Method,
        budget: Budget,
        options: Options,
        data: Any,
        seed: int,
        progress: bool,
        original: CostModel | None = None,
    ):
        if recipe.criterion.requires and data is None:
            raise CalibrationDataError(
                f"{recipe.criterion!r} needs calibration inputs: pass data=. A few hundred unlabelled ones are enough."
            )
        weights = Weights(graph.view)
        weights.check_finite()
        measure = recipe.allocator.measure
        if measure and budget.settles_counts:
            raise InfeasibleBudgetError(
                f"{recipe.allocator!r} decides how many filters every group keeps, and {budget!r} does too. Give a "
                "MacsBudget or a ParamsBudget."
            )
        self._recipe = recipe
        self.model, self.graph, self.weights = model, graph, weights
        self.budget, self.options, self.data, self.seed, self.progress = budget, options, data, int(seed), progress
        self._trial = Trial(graph, data, measure, progress) if measure else None
        self.recipe = replace(recipe, criterion=recipe.criterion.observe(graph, weights, data, progress))
        self.cost = CostModel(graph)
        self.refused = options.refusals(graph, self.recipe.criterion)
        self._fingerprint = fingerprint(graph, weights)
        self._original = original or self.cost
        self._full = budget.cost(self._original)(self._original.sizes)
        self.limit = budget.limit(self._full)
        self._selected: dict[tuple[int, int], np.ndarray] = {}

    def again(self, model: keras.Model, recipe: Method | None = None) -> Task:
        """The same task for this one's model after a round of cutting, with another recipe perhaps."""
        return Task(
            model,
            analyze(model),
            recipe or self._recipe,
            self.budget,
            self.options,
            self.data,
            self.seed,
            self.progress,
            self._original,
        )

    def select(self, keep: np.ndarray) -> dict[str, np.ndarray]:
        """{group name: indices of the units that stay}, given kept counts."""
        chosen = track(enumerate(self.graph.groups), "choosing", len(self.graph.groups), self.progress)
        return {group.name: self._select(number, int(keep[number])) for number, group in chosen}

    def _select(self, number: int, count: int) -> np.ndarray:
        group = self.graph.groups[number]
        if count == group.size:
            return np.arange(count)
        if (number, count) not in self._selected:
            self._selected[number, count] = self.recipe.criterion.select(group, count, self.weights)
        return self._selected[number, count]

    def problem(self) -> Allocation:
        """What the allocator is given."""
        floors = np.minimum(self.cost.sizes, np.maximum(self.cost.least, self.options.min_filters))
        for number, group in enumerate(self.graph.groups):
            if group.name in self.refused:
                floors[number] = group.size
        cost = self.budget.cost(self.cost)

        def problem(tiles: Tiles) -> Allocation:
            rungs = [cost.worthwhile(number, tiles.rungs(group.size)) for number, group in enumerate(self.graph.groups)]
            return Allocation(
                sizes=self.cost.sizes,
                floors=floors,
                rungs=rungs,
                cost=cost,
                limit=self.limit,
                scores=lambda number: self.recipe.criterion.scores(self.graph.groups[number], self.weights).copy(),
                evaluate=(lambda keep: self._trial(self.select(keep))) if self._trial else None,
                evaluate_all=self._evaluate_all if self._trial else None,
                key=self._key(tiles),
                progress=self.progress,
            )

        for tiles in self._tiles():
            found = problem(tiles)
            if found.feasible(found.legal(found.floors)):
                break
        return found

    def _tiles(self) -> tuple[Tiles, ...]:
        """The counts worth having: the options', or else the budget's, finer ones where these cannot do it."""
        return self.budget.widths if self.options.tiles == Tiles(1) else (self.options.tiles,)

    def _evaluate_all(self, keeps: Sequence[np.ndarray]) -> Iterator[float]:
        return spread(self.model, self._trial, map(self.select, keeps), self._recipe.allocator.executor)

    def _key(self, tiles: Tiles) -> str:
        """What a search depends on, its data, its table of latencies and its bits included."""
        data = self._trial and self._trial.digest()
        parts = self._fingerprint, self.recipe.name, vars(self.options), self.budget.key, tiles, self.seed, data
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def counts(self) -> np.ndarray:
        """Kept units of every group under the budget."""
        if not self.graph.groups:
            reasons = [f"'{p.layer}' {p.reason}" for p in self.graph.pinned[:3]]
            reasons = "; ".join(reasons or ["no layer with a handler makes filters"])
            raise InfeasibleBudgetError(f"model '{self.graph.view.name}' has no filter that can be removed: {reasons}.")
        problem = self.problem()
        if self.budget.settles_counts:
            return problem.legal(self.budget.counts(self.graph.groups, self._redundant))
        least = problem.legal(problem.floors)
        if not problem.feasible(least):
            raise InfeasibleBudgetError(self._infeasible(problem, least))
        return self.recipe.allocator.allocate(problem)

    def _redundant(self, group: Group) -> int:
        """Units of a group that the criterion calls redundant, none where it may not shrink."""
        if group.name in self.refused:
            return 0
        found = self.recipe.criterion.redundant(group, self.weights)
        if found is None:
            raise InfeasibleBudgetError(
                f"{self.budget!r} leaves the number of filters to the criterion, and {self.recipe.criterion!r} only "
                "ranks them. Use method='similarity', 'nystrom' or 'dead', or give a fraction."
            )
        return found

    def _infeasible(self, problem: Allocation, least: np.ndarray) -> str:
        """Why the budget cannot be met: what is the least that can be reached, and what stands in the way."""
        full, reachable = self._full, problem.cost(least)
        spent = problem.cost.by_layer(least)
        reasons = {p.layer: p.reason for p in self.graph.pinned} | {
            layer: why for name, why in self.refused.items() for layer in self.graph.by_name[name].producers
        }
        named = [
            f"'{layer}' ({spent[layer]:,}{', ' + reasons[layer] if layer in reasons else ''})"
            for layer in sorted(spent, key=lambda layer: -spent[layer])[:3]
        ]
        return (
            f"{self.budget} asks for at most {problem.limit:,} {self.budget.unit}; the smallest reachable is "
            f"{reachable:,} ({100 * reachable / full:.1f} % of {full:,}) with min_filters and channel_multiple as "
            f"given. What is left is mostly in layers {', '.join(named)}."
        )

    def plan(self, method: str, kept: dict[str, np.ndarray]) -> PruningPlan:
        """The plan that keeps these units; `method` is the name the user gave."""
        pins = [p._asdict() for p in self.graph.pinned]
        sizes = {group.name: group.size for group in self.graph.groups}
        pins += [{"layer": name, "channels": sizes[name], "reason": why} for name, why in self.refused.items()]
        plan = PruningPlan(
            model=self._fingerprint,
            method=method,
            budget=repr(self.budget),
            seed=self.seed,
            versions=versions(),
            groups=[],
            layers={},
            pinned=pins,
            cost={},
        )
        return refreshed(plan, self.graph, self.cost, kept)
