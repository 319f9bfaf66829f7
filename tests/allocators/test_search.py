"""Search by trials: its rounds are those of exhaustive trials, and what is left over is spent."""

from __future__ import annotations

import json

import numpy as np
import pytest
from builders import images, kept_counts
from trials import NEVER, Killed, chain, kept_of, labelled, rounds_of, score, trial_of

import keras_filterprune as kfp
from keras_filterprune import allocators, compensators, criteria, errors
from keras_filterprune.probe import Weights


def searched(model, data, budget=0.4, criterion=None, **settings) -> kfp.PruningPlan:
    method = kfp.Method(criterion or criteria.L2(), allocators.Search(**settings))
    return kfp.plan_pruning(model, method, budget, data=data, progress=False)


@pytest.mark.parametrize("measure", ["accuracy", "error"])
@pytest.mark.parametrize("beta", [1, 5])
@pytest.mark.parametrize("budget", [0.25, kfp.ParamsBudget(0.5), 1.0], ids=str)
def test_a_search_meets_its_budget_and_spends_it(budget, beta, measure):
    model = chain()
    plan = searched(model, labelled(model, images()), budget, beta=beta, measure=measure)
    kind, share = ("params", 0.5) if isinstance(budget, kfp.ParamsBudget) else ("macs", budget)
    full, left = plan.cost[kind]
    assert left <= share * full
    cost, counts = getattr(kfp.budgets.CostModel(kfp.analyze(model)), kind), np.array(list(kept_counts(plan).values()))
    assert counts.min() >= 1
    steps = [counts + np.eye(3, dtype=int)[n] for n in range(3) if counts[n] < 8]
    assert left >= 0.99 * share * full or all(cost(step) > share * full for step in steps)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_first_rounds_are_those_of_exhaustive_trials(alpha, tmp_path):
    """Least loss (per cost saved), every group tried in every round. Later the search takes losses to grow."""
    model, x, rounds = chain(), images(), 3
    searched(model, x, beta=1, measure="error", alpha=alpha, checkpoint=tmp_path / "search.json")
    graph = kfp.analyze(model)
    trial, cost, weights = trial_of(graph, x, "error"), kfp.budgets.CostModel(graph), Weights(graph.view)
    keep, expected = cost.sizes.copy(), []
    for _ in range(rounds):
        tried = []
        for group in range(3):
            fewer = keep - np.eye(3, dtype=int)[group]
            loss = max(score(trial, graph, keep, weights) - score(trial, graph, fewer, weights), 1e-6)
            tried.append((loss / (cost.macs(keep) - cost.macs(fewer)) ** alpha, group))
        group = min(tried)[1]
        keep[group] -= 1
        expected.append((group, int(keep[group])))
    assert rounds_of(tmp_path / "search.json")[:rounds] == expected
    assert len({group for group, _ in expected}) > 1


def made_up(seed: int) -> allocators.Allocation:
    """Losses that rise and fall, as on few samples or after training; seven groups, one without a choice."""

    class Cost(kfp.budgets.Cost):
        def __call__(self, keep):
            return int(keep @ prices)

        def by_layer(self, keep):
            return {}

    sizes = np.array([9, 4, 12, 7, 10, 6, 8])
    prices = np.random.default_rng(seed).integers(1, 9, len(sizes))
    floors = np.where(np.arange(len(sizes)) == 1, sizes, 1)

    def evaluate(keep):
        return keep.sum() / 40 + np.random.default_rng([seed, *keep]).normal(0, 0.1)

    rungs = [list(range(1, size + 1)) for size in sizes]
    return allocators.Allocation(sizes, floors, rungs, Cost(), int(sizes @ prices * 0.5), evaluate=evaluate)


def by_hand(problem: allocators.Allocation, beta: int, alpha: float) -> list[tuple[int, int]]:
    """The paper's rounds: every group is tried in every one of them."""
    keep, taken = problem.sizes.copy(), []
    while not problem.feasible(keep):
        tried = []
        for group in np.flatnonzero(keep > problem.floors):
            fewer = keep.copy()
            fewer[group] = max(problem.floors[group], fewer[group] - beta)
            loss = max(problem.evaluate(keep) - problem.evaluate(fewer), 1e-6)
            tried.append((loss / (problem.cost(keep) - problem.cost(fewer)) ** alpha, group, fewer[group]))
        _, group, left = min(tried)
        keep[group] = left
        taken.append((int(group), int(left)))
    return taken


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("beta", "alpha"), [(1, 0.0), (1, 1.0), (3, 0.0), (3, 0.5)])
def test_an_exhaustive_search_is_the_papers_whatever_losses_do(seed, beta, alpha, tmp_path):
    problem, file = made_up(seed), tmp_path / "search.json"
    allocators.Search(beta, alpha=alpha, exhaustive=True, checkpoint=file).allocate(problem)
    assert rounds_of(file) == by_hand(problem, beta, alpha)


def test_groups_are_tried_again_only_when_it_is_their_turn(evaluations, tmp_path):
    model = chain(widths=(12, 12, 12))
    searched(model, images(), 0.3, beta=1, measure="error", checkpoint=tmp_path / "search.json")
    rounds = len(rounds_of(tmp_path / "search.json"))
    assert rounds > 10
    # All three in the first round; later at least the group of the round before.
    assert 1 + 3 + rounds - 1 <= len(evaluations) < 1 + 0.8 * 3 * rounds


@pytest.mark.parametrize("settings", [{"beta": 4, "alpha": 0.0}, {"beta": 1, "alpha": 1.0}, {"beta": 8, "alpha": 0.0}])
def test_a_channel_multiple_does_not_keep_a_search_from_ending(settings, evaluations):
    """A group that cannot lose one more multiple is left alone."""
    evaluations.at = 200
    model = chain()
    method = kfp.Method(criteria.L2(), allocators.Search(measure="error", **settings))
    plan = kfp.plan_pruning(model, method, 0.35, data=images(), channel_multiple=4, progress=False)
    assert all(count in (4, 8) for count in kept_counts(plan).values())
    assert plan.cost["macs"][1] <= 0.35 * plan.cost["macs"][0]


def test_options_hold_in_a_search():
    model = chain()
    method = kfp.Method(criteria.L2(), allocators.Search(beta=3, measure="error"))
    plan = kfp.plan_pruning(model, method, 0.6, data=images(), exclude="conv2", min_filters=3, progress=False)
    assert kept_counts(plan)["conv2"] == 8
    assert min(kept_counts(plan).values()) >= 3


@pytest.mark.parametrize("at", [2, 5, 8, 11, 14])
def test_a_killed_search_goes_on_where_it_was(at, evaluations, tmp_path):
    """Exactly the plan of a search that was not killed, after one round more at most."""
    model, data, path = chain(), images(), tmp_path / "search.json"
    wanted = searched(model, data, beta=1, measure="error").groups
    whole = len(evaluations)
    assert whole > 14
    evaluations.clear()
    evaluations.at = at
    with pytest.raises(Killed):
        searched(model, data, beta=1, measure="error", checkpoint=path)
    # Before the first round is over there is nothing to go on from.
    assert path.exists() == (at > 4)
    evaluations.at = NEVER
    assert searched(model, data, beta=1, measure="error", checkpoint=path).groups == wanted
    # A round tries three groups at most; the first also the network as it is.
    assert whole <= len(evaluations) <= whole + 4
    assert [p.name for p in tmp_path.iterdir()] == ["search.json"]


def test_a_finished_search_is_not_run_again_and_goes_on_towards_a_smaller_budget(evaluations, tmp_path):
    model, data, path = chain(), images(), tmp_path / "search.json"
    settings = {"beta": 1, "measure": "error"}
    wanted = {budget: searched(model, data, budget, **settings).groups for budget in (0.3, 0.6, 0.8)}
    evaluations.clear()
    assert searched(model, data, 0.6, **settings, checkpoint=path).groups == wanted[0.6]
    made = len(evaluations)
    assert searched(model, data, 0.6, **settings, checkpoint=path).groups == wanted[0.6]
    assert len(evaluations) == made
    assert searched(model, data, 0.3, **settings, checkpoint=path).groups == wanted[0.3]
    assert len(evaluations) > made
    made = len(evaluations)
    for budget in (0.8, 0.6, 0.3):
        assert searched(model, data, budget, **settings, checkpoint=path).groups == wanted[budget]
    assert len(evaluations) == made


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    model, data, path = chain(), labelled(chain(), images()), tmp_path / "search.json"
    searched(model, data, 0.8, checkpoint=path)
    content = path.read_bytes()
    other = chain()
    other.get_layer("head").bias.assign_add(np.ones(3))
    x, y = data
    sentence = r"search\.json' belongs to another search: model, method, data, seed or fine-tuning differ\. Delete it"
    for arguments in (
        {"model": other},
        {"model": chain(widths=(8, 8, 9))},
        {"data": (x[:32], y[:32])},
        {"data": (x, (y + 1) % 3)},
        {"measure": "error"},
        {"beta": 4},
        {"alpha": 0.5},
        {"criterion": criteria.L1()},
    ):
        with pytest.raises(errors.FileError, match=sentence):
            searched(**{"model": model, "data": data, "budget": 0.8, "checkpoint": path} | arguments)
    method = kfp.Method(criteria.L2(), allocators.Search(checkpoint=path))
    for options in ({"seed": 1}, {"exclude": "conv1"}, {"min_filters": 2}, {"channel_multiple": 2}):
        with pytest.raises(errors.FileError, match=sentence):
            kfp.plan_pruning(model, method, 0.8, data=data, progress=False, **options)
    with pytest.raises(errors.FileError, match=sentence):
        kfp.prune_model(model, method, 0.8, data=data, finetune=lambda m: None, progress=False)
    assert path.read_bytes() == content


def test_a_checkpoint_of_another_kind_of_budget_is_not_mixed_up(tmp_path):
    """Losses per parameter and per multiply-accumulate do not compare: refused, or the plan of a search of its own."""
    model, data, path = chain(strides=2), images(), tmp_path / "search.json"
    settings = {"beta": 1, "measure": "error"}
    wanted = searched(model, data, kfp.ParamsBudget(0.5), **settings)
    others = searched(model, data, 0.5, **settings, checkpoint=path)
    assert kept_counts(others) != kept_counts(wanted)
    try:
        found = searched(model, data, kfp.ParamsBudget(0.5), **settings, checkpoint=path)
    except errors.FileError:
        return
    assert found.groups == wanted.groups


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "queue"}),
        lambda text: json.dumps(json.loads(text) | {"rounds": 3}),
        lambda text: json.dumps(json.loads(text) | {"score": "high"}),
        lambda text: json.dumps(json.loads(text) | {"more": [1]}),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(damage, tmp_path):
    model, path = chain(), tmp_path / "search.json"
    searched(model, images(), 0.8, measure="error", checkpoint=path)
    path.write_text(damage(path.read_text()))
    content = path.read_bytes()
    with pytest.raises(errors.FileError, match=r"search\.json' is no checkpoint of a search: .* Delete it"):
        searched(model, images(), 0.8, measure="error", checkpoint=path)
    assert path.read_bytes() == content


def test_a_search_prunes_what_its_criterion_finds():
    model = chain()
    data = labelled(model, images())
    method = kfp.Method(criteria.FPOMP(), allocators.Search(), compensators.LeastSquares())
    small, report = kfp.prune_model(model, method, 0.5, data=data, return_report=True, progress=False)
    weights = Weights(kfp.analyze(model).view)
    for group, kept in zip(kfp.analyze(model).groups, kept_of(report.plan).values(), strict=True):
        assert kept.tolist() == criteria.FPOMP().select(group, len(kept), weights).tolist()
    assert small.count_params() == report.plan.cost["params"][1]
