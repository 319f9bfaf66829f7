"""Pruning between adapters: what is cut is an equal model that has them."""

from __future__ import annotations

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.compensators import Adapters
from keras_filterprune.compensators.adapted_models import add_adapters, wrappable
from keras_filterprune.compensators.adapters import AFTER, BEFORE
from keras_filterprune.cost import Budget, CostModel
from keras_filterprune.errors import InfeasibleBudgetError
from keras_filterprune.methods import Method
from keras_filterprune.outcome import Run
from keras_filterprune.pruning.options import Options
from keras_filterprune.pruning.task import Task
from keras_filterprune.rebuild.plan import PruningPlan


def task_for(model: keras.Model, costs: CostModel, recipe: Method, budget: Budget, options: Options, run: Run) -> Task:
    """A `Task`; where `Adapters` compensate, that of an equal model with adapters, which is pruned between them alone.

    The model itself stays where the budget leaves all of it.

    Raises:
        InfeasibleBudgetError: adapters fit around no convolution, or the budget says nothing of them.
    """
    if not isinstance(run.compensator, Adapters):
        return Task(model, costs, recipe, budget, options, run)
    options.check_names(costs.graph)
    full = budget.cost(costs)(costs.sizes)
    if not budget.settles_counts and budget.limit(full) >= full:
        return Task(model, costs, recipe, budget, options, run)
    if budget.by_name:
        raise InfeasibleBudgetError(
            f"adapters are new layers, of which {budget!r} says nothing: give the same to all layers, or another "
            "compensator."
        )
    paths = [path for path in wrappable(costs.graph) if options.refusal([path]) is None]
    if not paths:
        raise InfeasibleBudgetError(
            f"model '{costs.graph.view.name}' has no convolution that adapters fit around: one with a window, in one "
            "group, called once, not the first of the model."
        )
    wide = add_adapters(model, costs.graph, paths)
    only = options.only([*paths, *(path + BEFORE for path in paths)])
    return Task(wide, CostModel(analyze(wide)), recipe, budget, only, run, full)


def cut_by(plan: PruningPlan, model: keras.Model, costs: CostModel, run: Run) -> tuple[keras.Model, CostModel]:
    """The model that a plan cuts, and its costs: the given one, or an equal one with the adapters of the plan."""
    if not isinstance(run.compensator, Adapters):
        return model, costs
    layers = _layers(plan)
    paths = [path for path in wrappable(costs.graph) if {path + BEFORE, path + AFTER} <= layers]
    wide = add_adapters(model, costs.graph, paths)
    return wide, CostModel(analyze(wide))


def _layers(plan: PruningPlan) -> set[str]:
    """Layers that a plan's groups live in; a plan comes from a file, where anything may stand."""
    groups = [group.get("members") for group in plan.groups if isinstance(group, dict)]
    members = [member for found in groups if isinstance(found, list) for member in found if isinstance(member, dict)]
    return {member["layer"] for member in members if isinstance(member.get("layer"), str)}
