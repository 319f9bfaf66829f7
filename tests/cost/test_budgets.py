"""Budgets of one's own: costs are put together exactly, and every place that takes a budget takes them."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest
from builders import array, compiled, images, labelled_images, network
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import allocators, callbacks, criteria, errors

QUIET = {"progress": False}
CHAINS = ["conv_bn_relu_chain", "residual_projection", "depthwise", "grouped_conv", "flatten_dense", "unet"]


@dataclass(frozen=True)
class EnergyBudget(kfp.budgets.Budget):
    """Fractions of multiply-accumulates and parameters, those of small layers at another price."""

    keep: float
    unit = "fJ"

    def cost(self, model):
        weights = model.params.by_layer(model.sizes)
        return 23 * model.macs + {layer: 1_250 if n < 300 else 16_000 for layer, n in weights.items()} * model.params


@dataclass(frozen=True)
class NarrowBudget(kfp.budgets.CountBudget):
    """At most so many filters in every group."""

    most: int

    def counts(self, groups, redundant):
        return np.array([min(group.size, self.most) for group in groups])


class Thousands(kfp.budgets.Cost):
    """A cost that is no polynomial: every layer's multiply-accumulates in whole thousands, upwards."""

    def __init__(self, model):
        self._macs = model.macs

    def __call__(self, keep):
        return sum(self.by_layer(keep).values())

    def by_layer(self, keep):
        return {layer: -(-macs // 1000) for layer, macs in self._macs.by_layer(keep).items()}


@dataclass(frozen=True)
class ThousandsBudget(kfp.budgets.Budget):
    """Keep at most this fraction of the thousands."""

    keep: float
    unit = "thousand MACs"

    def cost(self, model):
        return Thousands(model)


def costs_of(model: keras.Model) -> kfp.budgets.CostModel:
    return kfp.budgets.CostModel(kfp.analyze(model))


def energy(model: keras.Model, like: keras.Model | None = None) -> int:
    """Energy counted by hand, from weights and multiply-accumulates per layer; small layers are those of `like`."""
    whole = costs_of(like or model)
    small = {layer for layer, (_, params) in whole.per_layer(whole.sizes).items() if params < 300}
    costs = costs_of(model)
    return sum(
        23 * macs + (1_250 if layer in small else 16_000) * params
        for layer, (macs, params) in costs.per_layer(costs.sizes).items()
    )


# ------------------------------------------------------------------------------------------------------ costs


@pytest.mark.parametrize("name", CHAINS)
def test_costs_are_added_and_multiplied_exactly(name):
    costs, rng = costs_of(ZOO[name]()), np.random.default_rng(0)
    factors = {layer: int(rng.integers(0, 50)) for layer in costs.layers[::2]}
    both = 3 * costs.macs + costs.params * factors
    for _ in range(5):
        keep = rng.integers(costs.least, costs.sizes + 1)
        expected = {
            layer: 3 * macs + factors.get(layer, 0) * params for layer, (macs, params) in costs.per_layer(keep).items()
        }
        assert both.by_layer(keep) == expected
        assert both(keep) == sum(expected.values())
        once = costs.params * factors
        np.testing.assert_allclose(both.gradient(keep), 3 * costs.macs.gradient(keep) + once.gradient(keep))


def test_costs_of_two_models_do_not_mix():
    one, other = costs_of(network()), costs_of(network())
    with pytest.raises(errors.InvalidValueError, match="belong to one CostModel"):
        _ = one.macs + other.macs
    with pytest.raises(TypeError):
        _ = one.macs + 1


@pytest.mark.parametrize("factor", [0.5, "2", {"conv1": 0.5}])
def test_factors_are_whole_numbers(factor):
    with pytest.raises(errors.InvalidValueError, match="factor is a whole number, as costs are"):
        _ = costs_of(network()).macs * factor


# ---------------------------------------------------------------------------------------- wherever budgets go


@pytest.mark.parametrize("method", ["l2", "taylor_gate", kfp.Method(criteria.L2(), rounds=3), "pursuit"], ids=str)
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_filters_are_pruned_within_it(method, keep):
    model, data = network(), labelled_images() if method in ("taylor_gate", "pursuit") else None
    small, report = kfp.prune_model(model, method, EnergyBudget(keep), data=data, return_report=True, **QUIET)
    assert 0.85 * keep * energy(model) < energy(small, model) <= keep * energy(model)
    assert report.plan.budget == f"EnergyBudget(keep={keep})"
    plan = kfp.plan_pruning(model, method, EnergyBudget(keep), data=data, **QUIET)
    assert plan.groups == report.plan.groups


def test_a_limit_of_ones_own():
    @dataclass(frozen=True)
    class Joules(EnergyBudget):
        most: int = 0

        def limit(self, full):
            return self.most

    model = network()
    most = int(0.55 * energy(model))
    small = kfp.prune_model(model, "l2", Joules(1.0, most), **QUIET)
    assert 0.9 * most < energy(small, model) <= most


def test_what_is_out_of_reach_is_said_in_its_unit():
    sentence = r"EnergyBudget\(keep=0.001\) asks for at most [\d,]+ fJ; the smallest reachable is"
    with pytest.raises(errors.InfeasibleBudgetError, match=sentence):
        kfp.prune_model(network(), "l2", EnergyBudget(0.001), **QUIET)


def test_layers_are_pruned_within_it():
    model = blocks()
    small, report = kfp.prune_layers(model, budget=EnergyBudget(0.7), return_report=True, **QUIET)
    assert report.removed and report.unit == "fJ"
    assert energy(small, model) <= 0.7 * energy(model)


def blocks() -> keras.Model:
    inputs = x = keras.Input((8, 8, 8))
    for number in range(4):
        y = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=f"conv{number}")(x)
        x = keras.layers.Add()([x, y])
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def test_gates_are_trained_within_it():
    keras.utils.set_random_seed(0)
    model, (x, y) = network(), labelled_images()
    gated = compiled(kfp.apply_filter_gates(model))
    gated.fit(x, y, epochs=4, verbose=0, callbacks=[callbacks.BudgetGates(EnergyBudget(0.5), epochs=2, strength=0.2)])
    plain = kfp.strip_wrappers(gated)
    small = kfp.prune_model(plain, "dead", kfp.budgets.RedundancyBudget(), compensate="none", **QUIET)
    assert energy(small, model) <= 0.5 * energy(model)


def test_penalties_are_steered_by_it():
    model, (x, y) = network(), labelled_images()
    penalised = compiled(kfp.apply_penalty(model, kfp.regularizers.GroupLasso(1e-5)))
    schedule = callbacks.PenaltySchedule(EnergyBudget(0.01), step=1e-4)
    with pytest.warns(UserWarning, match=r"EnergyBudget\(keep=0.01\) allows [\d,]+ fJ, and after training"):
        history = penalised.fit(x, y, epochs=2, verbose=0, callbacks=[schedule])
    assert history.history["strength"][-1] > 1e-5


def test_widths_are_read_off_sensitivities_for_it():
    model, data = network(), images(64)
    table = kfp.measure_sensitivity(model, data, "error", (0.75, 0.5, 0.25), **QUIET)
    small = kfp.prune_model(model, "l2", table.keep_for(EnergyBudget(0.5)), **QUIET)
    assert 0.85 * 0.5 * energy(model) < energy(small, model) <= 0.5 * energy(model)


def test_adapters_are_priced_like_any_layer_unless_it_goes_by_names():
    @dataclass(frozen=True)
    class ByName(EnergyBudget):
        by_name = True

    model = network()
    kfp.prune_model(model, "l2", EnergyBudget(0.8), compensate="adapter", **QUIET)
    with pytest.raises(errors.InfeasibleBudgetError, match="adapters are new layers, of which"):
        kfp.prune_model(model, "l2", ByName(0.8), compensate="adapter", **QUIET)


@pytest.mark.parametrize("allocator", [allocators.Uniform(), allocators.Global()], ids=str)
def test_a_cost_that_is_no_polynomial(allocator):
    model = network()
    whole = Thousands(costs_of(model))(costs_of(model).sizes)
    small = kfp.prune_model(model, kfp.Method(criteria.L2(), allocator), ThousandsBudget(0.5), **QUIET)
    left = Thousands(costs_of(small))(costs_of(small).sizes)
    assert 0.7 * 0.5 * whole < left <= 0.5 * whole


# --------------------------------------------------------------------------------- budgets that settle counts


def test_counts_of_ones_own():
    small = kfp.prune_model(network(), "l2", NarrowBudget(5), **QUIET)
    assert [layer.filters for layer in small.layers if hasattr(layer, "filters")] == [5, 5, 5]


@pytest.mark.parametrize("take", [callbacks.BudgetGates, callbacks.PenaltySchedule])
def test_they_do_not_steer_costs(take):
    with pytest.raises(errors.InfeasibleBudgetError, match="steers what the network costs: give a fraction"):
        take(NarrowBudget(5))


def test_they_hold_for_the_whole_model_whatever_the_recipe_does_in_rounds():
    model, tuned = network(), []
    recipe = kfp.Method(criteria.L2(), rounds=3)
    small = kfp.prune_model(model, recipe, kfp.FiltersBudget(0.5), finetune=tuned.append, **QUIET)
    assert len(tuned) == 3
    assert [layer.filters for layer in small.layers if hasattr(layer, "filters")] == [4, 6, 4]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (kfp.MacsBudget(0.35), "at most 35 % of the MACs"),
        (kfp.ParamsBudget(count=12_345), "at most 12,345 parameters"),
        (kfp.ParamsBudget(keep=1 / 8), "at most 12.5 % of the parameters"),
        (kfp.budgets.BopsBudget(keep=0.5), "at most 50 % of the bit operations"),
        (kfp.LatencyBudget(keep=0.6, table="arm64"), "at most 60 % of the padded MACs"),
        (kfp.FiltersBudget(0.5), "50 % of the filters of every group"),
        (kfp.FiltersBudget({"a": 0.5, "b*": 0.25}), "50 % of the filters of a, 25 % of the filters of b*"),
        (kfp.budgets.RedundancyBudget(), "RedundancyBudget()"),
        (EnergyBudget(0.7), "at most 70 % of the fJ"),
    ],
)
def test_budgets_in_words(budget, words):
    assert str(budget) == words


# ------------------------------------------------------------------------------------------------- checkpoints


def test_a_search_is_taken_up_for_the_same_budget_alone(tmp_path):
    file = tmp_path / "search.json"
    model, x = network(), images(16)

    def plan(budget):
        search = allocators.Search(beta=4, measure="error", checkpoint=file)
        return kfp.plan_pruning(model, kfp.Method(criteria.L2(), search), budget, data=x, **QUIET)

    first = plan(EnergyBudget(0.7))
    assert plan(EnergyBudget(0.7)).groups == first.groups
    for other in (EnergyBudget(0.5), kfp.MacsBudget(0.7)):
        with pytest.raises(errors.FileError, match="belongs to another search"):
            plan(other)


def test_the_models_weights_are_those_of_the_units_that_stay():
    model = network()
    small, report = kfp.prune_model(model, "l2", EnergyBudget(0.5), compensate="none", return_report=True, **QUIET)
    kept = report.plan.kept["conv1"]
    assert (array(small.get_layer("conv1").kernel) == array(model.get_layer("conv1").kernel)[..., kept]).all()
