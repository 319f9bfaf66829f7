"""What the arguments of a call decide: one model, one recipe, one budget, and every refusal that needs no network."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import keras
import numpy as np

from keras_filterprune.allocators.base import Allocation
from keras_filterprune.analysis import analyze
from keras_filterprune.compensators import Adapters
from keras_filterprune.compensators.adapter_costs import AdaptedCost
from keras_filterprune.cost import Budget, Cost, CostModel, Tiles
from keras_filterprune.errors import CalibrationDataError, InfeasibleBudgetError
from keras_filterprune.graph.types import ChannelGraph, Group
from keras_filterprune.methods import Method
from keras_filterprune.outcome import Run
from keras_filterprune.probe import Weights
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.metrics import metric_name
from keras_filterprune.probe.proof import prove_linear
from keras_filterprune.pruning.options import Options

_NAMED = 3


@dataclass(frozen=True, eq=False)
class Task:
    """One model to prune by one recipe under one budget.

    Whatever is wrong shows when it is made, before the network is run.

    Args:
        model: the model.
        costs: its costs, and its channel graph.
        recipe: the method.
        budget: what may be spent.
        options: which groups may shrink, and how far.
        run: how the work is carried out.
        full: what the budget is a share of, in its unit (None: what this model costs).
        round: of the recipe's rounds, which one this is for (1).

    Raises:
        CalibrationDataError: the recipe needs data that is not there.
        InfeasibleBudgetError: no filter can be removed, the budget cannot be met, or does not go with the recipe.
        UnknownNameError: a pattern matches no layer.
        UnsupportedLayerError: an own layer does not multiply what its handler says.
        UnsupportedModelError: a weight is not finite.
    """

    model: keras.Model
    costs: CostModel
    recipe: Method
    budget: Budget
    options: Options
    run: Run
    full: int | None = None
    round: int = 1
    _ladders: dict[Tiles, list[list[int]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        self._check_data()
        self.weights.check_finite()
        prove_linear(self.graph.view)
        self.options.check_names(self.graph)
        if not self.graph.groups:
            raise InfeasibleBudgetError(self.graph.why_whole())
        if self.budget.settles_counts:
            self._check_counts()
        else:
            self.check_feasible(self.refused)

    def again(self, model: keras.Model, recipe: Method | None = None) -> Task:
        """The same task for this one's model after a round of cutting, with another recipe perhaps."""
        costs = CostModel(analyze(model))
        rest = self.budget, self.options, self.run, self._full, self.round + 1
        return Task(costs.graph.model, costs, recipe or self.recipe, *rest)

    @property
    def seen(self) -> Samples | None:
        """The data that the criterion sees: of all of it the last round alone needs to know."""
        return (self.run if self.round >= self.recipe.rounds else self.run.between).data

    @property
    def graph(self) -> ChannelGraph:
        return self.costs.graph

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.graph.view)

    @cached_property
    def spent(self) -> Cost:
        """What the budget counts, as a function of the kept counts."""
        between_adapters = isinstance(self.run.compensator, Adapters)
        return AdaptedCost(self.budget, self.graph) if between_adapters else self.budget.cost(self.costs)

    @cached_property
    def _full(self) -> int:
        return self.spent(self.costs.sizes) if self.full is None else self.full

    @cached_property
    def limit(self) -> int:
        """The most that may be spent."""
        return self.budget.limit(self._full)

    @cached_property
    def refused(self) -> dict[str, str]:
        """{group: why it stays whole} by the options."""
        return self.options.refusals(self.graph)

    def allocation(self, refused: Collection[str], limit: int | None = None) -> Allocation:
        """What an allocator is given before anything is measured.

        Args:
            refused: groups that stay whole.
            limit: the most that may be spent (None: the budget's).
        """
        sizes = self.costs.sizes
        floors = np.minimum(sizes, np.maximum(self.costs.least, self.options.min_filters))
        whole = [group.name in refused for group in self.graph.groups]
        floors[whole] = sizes[whole]
        limit = self.limit if limit is None else limit
        # The options' widths; or else the budget's, finer ones where these cannot meet the limit.
        for tiles in self.budget.widths if self.options.tiles == Tiles(1) else (self.options.tiles,):
            found = Allocation(sizes, floors, self._rungs(tiles), self.spent, limit, names=self.costs.groups)
            if found.feasible(found.legal(floors)):
                break
        return found

    def check_feasible(self, refused: dict[str, str]) -> None:
        """Raise `InfeasibleBudgetError` if the limit cannot be met while these groups stay whole."""
        problem = self.allocation(refused)
        least = problem.legal(problem.floors)
        if not problem.feasible(least):
            raise InfeasibleBudgetError(self._infeasible(least, refused))

    def _rungs(self, tiles: Tiles) -> list[list[int]]:
        """The counts worth having of every group."""
        if tiles not in self._ladders:
            rungs = [tiles.rungs(group.size) for group in self.graph.groups]
            # Counts that are asked for are kept, whether or not they save anything.
            by_hand = self.budget.settles_counts
            self._ladders[tiles] = rungs if by_hand else [self.spent.worthwhile(n, c) for n, c in enumerate(rungs)]
        return self._ladders[tiles]

    def _check_data(self) -> None:
        criterion, allocator, data = self.recipe.criterion, self.recipe.allocator, self.run.data
        if criterion.requires and data is None:
            raise CalibrationDataError(
                f"{criterion!r} needs calibration inputs: pass data=. A few hundred unlabelled ones are enough."
            )
        # One by one, what is measured is the order alone.
        if allocator.measure and self.budget.settles_counts and not self.recipe.one_by_one:
            raise InfeasibleBudgetError(
                f"{allocator!r} decides how many filters every group keeps, and {self.budget!r} does too. Give a "
                "MacsBudget or a ParamsBudget."
            )
        if allocator.measure and data is None:
            raise CalibrationDataError(
                f"measure='{metric_name(allocator.measure)}' needs samples to measure on: pass data=."
            )

    def _check_counts(self) -> None:
        """Refuse names that the budget does not find, and a criterion that cannot say what it is asked."""

        def redundant(group: Group) -> int:
            if self.recipe.criterion.ranks_only:
                raise InfeasibleBudgetError(
                    f"{self.budget!r} leaves the number of filters to the criterion, and {self.recipe.criterion!r} "
                    "only ranks them. Use method='similarity', 'nystrom' or 'dead', or give a fraction."
                )
            return 0

        self.budget.counts(self.graph.groups, redundant)

    def _infeasible(self, least: np.ndarray, refused: dict[str, str]) -> str:
        """Why the budget cannot be met: what is the least that can be reached, and what stands in the way."""
        reachable, spent, by_name = self.spent(least), self.spent.by_layer(least), self.graph.by_name
        reasons = {p.layer: p.reason for p in self.graph.pinned} | {
            layer: why for name, why in refused.items() for layer in by_name[name].producers
        }
        named = [
            f"'{layer}' ({spent[layer]:,}{', ' + reasons[layer] if layer in reasons else ''})"
            for layer in sorted(spent, key=lambda layer: -spent[layer])[:_NAMED]
        ]
        text = (
            f"{self.budget!r} asks for at most {self.limit:,} {self.budget.unit}; the smallest reachable is "
            f"{reachable:,} ({100 * reachable / self._full:.1f} % of {self._full:,}) with min_filters and "
            f"channel_multiple as given."
        )
        if named:
            text += f" What is left is mostly in layers {', '.join(named)}."
        if refused:
            some = "; ".join(f"'{name}' {why}" for name, why in list(refused.items())[:_NAMED])
            more = "; ..." if len(refused) > _NAMED else ""
            text += f" {len(refused)} of {len(by_name)} groups of filters stay whole: {some}{more}."
        return text
