"""Recipes: what they need follows from their parts, and a registered one is met under its name everywhere."""

import re

import keras
import numpy as np
import pytest
from builders import assert_all_equal, chain, images, values

import keras_filterprune as kfp
from keras_filterprune.errors import InvalidValueError
from keras_filterprune.methods import recipes, registry

allocators, criteria = kfp.allocators, kfp.criteria


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        (kfp.Method(criteria.L1()), "nothing"),
        (kfp.Method(criteria.L1(), compensator=kfp.compensators.LeastSquares()), "nothing"),
        (kfp.Method(criteria.CaP()), "inputs"),
        (kfp.Method(criteria.L1(), allocators.Tolerance(measure="error")), "inputs"),
        (kfp.Method(criteria.L1(), allocators.Tolerance()), "labels"),
        (kfp.Method(criteria.CaP(), allocators.Search(measure="accuracy")), "labels"),
        (kfp.Method(criteria.Taylor()), "labels"),
        (kfp.Method(criteria.TaylorGate(), allocators.Search(measure="error")), "labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_needs_follow_from_the_parts(method, needs):
    assert method.needs == needs


def test_a_registered_recipe_is_given_seed_and_data_and_listed_with_its_first_line():
    asked = []

    @kfp.register_method("mine")
    def mine(seed, data):
        """Scores by chance.

        And no more.
        """
        asked.append((seed, data))
        return kfp.Method(criteria.Random(seed))

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Conv2D(2, 1)])
    assert kfp.list_methods()[-1] == ("mine", "nothing", "Scores by chance")
    asked.clear()
    plans = [kfp.plan_pruning(model, "mine", 0.5, seed=seed, progress=False) for seed in (3, 4)]
    kfp.plan_pruning(model, "mine", 0.5, data=np.zeros((4, 8, 8, 3)), progress=False)
    assert asked == [(3, False), (4, False), (0, True)]
    assert plans[0].groups[0]["kept"] != plans[1].groups[0]["kept"]
    assert plans[0].method == "mine"


@pytest.mark.parametrize("name", [name for name, *_ in kfp.list_methods()])
def test_every_method_has_one_line_and_parts_of_its_own(name):
    """Nobody's settings change when somebody changes those of a method he was given."""
    (line,) = [line for found, _, line in kfp.list_methods() if found == name]
    assert line and not line.endswith(".") and "\n" not in line
    one, other = (registry.as_method(name, 0, True) for _ in range(2))
    assert one.criterion is not other.criterion and one.allocator is not other.allocator


@pytest.mark.parametrize("name", [name for name, *_ in kfp.list_methods()])
def test_every_method_says_whether_it_is_a_papers_or_after_one_or_ours(name):
    (line,) = [line for found, _, line in kfp.list_methods() if found == name]
    exact, variant = r"[A-Z][\w ]+(?: et al\.)? (?:19|20)\d\d", r"after [A-Z][\w ]+(?: et al\.)? (?:19|20)\d\d: [^()]+"
    assert re.search(rf"\((?:ours|{exact}|{variant})\)$", line)


def test_a_papers_name_is_the_papers_selection_with_and_without_data():
    model, x = chain((12, 10, 8)), images(64, (6, 6, 3))
    budget = kfp.FiltersBudget(0.5)
    with_data, without = (kfp.plan_pruning(model, "fp_omp", budget, data=data, progress=False) for data in (x, None))
    assert with_data.groups == without.groups
    for selected in (criteria.FPOMP(), kfp.Method(criteria.FPOMP())):
        assert kfp.plan_pruning(model, selected, budget, data=x, progress=False).groups == without.groups


@pytest.mark.parametrize(
    ("data", "same", "compensate"),
    [(None, "l2", "linear"), (images(64, (6, 6, 3)), "pursuit", None)],
    ids=["nothing", "inputs"],
)
def test_auto_is_the_best_that_was_measured_for_what_is_given(monkeypatch, data, same, compensate):
    model, settings = chain((12, 10, 8)), {"data": data, "return_report": True, "progress": False}
    if data is not None:
        # A time limit of its own would make the result depend on the machine.
        monkeypatch.setattr(recipes, "Reconstruct", lambda **_: kfp.compensators.Reconstruct(steps=20))
        compensate = kfp.compensators.Reconstruct(steps=20)
    auto, report = kfp.prune_model(model, budget=0.6, **settings)
    named, other = kfp.prune_model(model, same, 0.6, compensate=compensate, **settings)
    assert_all_equal(values(auto), values(named))
    assert report.plan.groups == other.plan.groups
    assert report.plan.method == kfp.plan_pruning(model, budget=0.6, data=data, progress=False).method == "auto"
    assert next(note for note in report.notes if note.startswith("auto: "))
    assert_all_equal(values(auto), values(kfp.apply_plan(model, report.plan, data=data, progress=False)))


def test_recovery_is_a_part_of_auto_and_takes_two_minutes_at_most():
    compensator = registry.as_method("auto", 3, True).compensator
    assert (type(compensator).__name__, compensator.seconds, compensator.seed) == ("Reconstruct", 120, 3)


def test_the_time_of_recovery_is_limited_and_can_be_none():
    model, x = chain((12, 10, 8)), images(64, (6, 6, 3))
    settings = {"budget": 0.6, "data": x, "progress": False}
    fitted = kfp.prune_model(model, "pursuit", **settings)
    assert_all_equal(values(fitted), values(kfp.prune_model(model, seconds=0, **settings)))
    for wrong in ({"method": "l2"}, {"data": None}, {"compensate": "least_squares"}):
        with pytest.raises(InvalidValueError, match="seconds is a limit for compensate='reconstruct'"):
            kfp.prune_model(model, seconds=1, **settings | wrong)


def test_the_papers_search_is_plain_accuracy_of_every_group_between_1x1_convolutions():
    recipe = registry.as_method("fp_omp_search", 0, True)
    search = recipe.allocator
    assert (search.beta, search.alpha, search.exhaustive, search.measure) == (5, 0.0, True, "auto")
    model = chain((12, 10, 8))
    data = images(32, (6, 6, 3)), np.arange(32) % 3
    small, report = kfp.prune_model(model, "fp_omp_search", 0.7, data=data, return_report=True, progress=False)
    assert {"conv1_before", "conv2_before"} <= {group["name"] for group in report.plan.groups}
    plan = kfp.plan_pruning(model, "fp_omp_search", 0.7, data=data, progress=False)
    assert plan.groups == report.plan.groups
    assert_all_equal(values(small), values(kfp.apply_plan(model, plan, data=data, progress=False)))
