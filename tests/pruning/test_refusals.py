"""What the arguments alone decide is refused before any data is read, and with it before the network runs."""

import functools

import keras
import numpy as np
import pytest
from builders import network as built

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors

QUIET = {"progress": False}
# No verb changes what it is given.
network = functools.cache(built)
MEASURING = {
    "tolerance": kfp.Method(criteria.L2(), allocators.Tolerance()),
    "evolution": kfp.Method(criteria.L2(), allocators.Evolution(10, 1, measure="error")),
}
METHODS = {name: name for name in ("cap", "pursuit", "apoz", "genetic", "taylor", "search", "hu_ga")} | MEASURING
# The same pattern matches no layer that multiplies, none that can be pruned, and none at all.
REFUSED = {
    "a budget below the floors": ({"budget": 1e-4}, errors.InfeasibleBudgetError),
    "a count below the floors": ({"budget": kfp.ParamsBudget(count=1)}, errors.InfeasibleBudgetError),
    "floors above the budget": ({"budget": 0.5, "min_filters": 8}, errors.InfeasibleBudgetError),
    "steps above the budget": ({"budget": 0.3, "channel_multiple": 12}, errors.InfeasibleBudgetError),
    "nothing that may go": ({"exclude": "conv?"}, errors.InfeasibleBudgetError),
    "a fraction out of range": ({"budget": 1.5}, errors.InfeasibleBudgetError),
    "a budget of another type": ({"budget": "50%"}, errors.InvalidValueError),
    "a pattern in include": ({"include": "nosuch"}, errors.UnknownNameError),
    "a pattern in exclude": ({"exclude": ["conv1", "nosuch*"]}, errors.UnknownNameError),
    "a pattern in bits": ({"budget": kfp.budgets.BopsBudget(0.5, weight_bits={"nosuch": 4})}, errors.UnknownNameError),
    "a layer without bits": (
        {"budget": kfp.budgets.BopsBudget(0.5, activation_bits={"conv1": 4})},
        errors.UnknownNameError,
    ),
    "a pattern in fractions": ({"budget": kfp.FiltersBudget({"nosuch": 0.5})}, errors.FilterPruneError),
    "a criterion that only ranks": ({"budget": kfp.budgets.RedundancyBudget()}, errors.InfeasibleBudgetError),
    "a target": ({"channel_multiple": "arm46"}, errors.UnknownNameError),
    "a seed": ({"seed": -1}, errors.FilterPruneError),
}
PRUNING_ONLY = {
    "adapters with bits by name": (
        {"budget": kfp.budgets.BopsBudget(0.5, weight_bits={"*": 4}), "compensate": "adapter"},
        errors.InfeasibleBudgetError,
    ),
    "adapters around nothing": ({"exclude": "conv*", "compensate": "adapter"}, errors.InfeasibleBudgetError),
    "adapters below the floors": ({"budget": 1e-4, "compensate": "adapter"}, errors.InfeasibleBudgetError),
    "a compensator": ({"compensate": "nosuch"}, errors.UnknownNameError),
    "finetune": ({"finetune": 3}, errors.InvalidValueError),
}


class Watched:
    """Batches that know whether they were asked for."""

    def __init__(self):
        self.touched = False

    def __iter__(self):
        self.touched = True
        rng = np.random.default_rng(0)
        yield rng.normal(size=(16, 8, 8, 3)).astype("float32"), np.arange(16) % 3


def refused(function, *arguments, error, **options) -> str:
    data = Watched()
    with pytest.raises(error) as caught:
        function(*arguments, data=data, **options, **QUIET)
    assert not data.touched
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("verb", [kfp.prune_model, kfp.plan_pruning], ids=["prune", "plan"])
def test_before_data_is_read(verb, method, case):
    options, error = REFUSED[case]
    # Allocators that settle counts by measuring refuse another that does so, whatever it names.
    refused(verb, network(), METHODS[method], error=error, **options)


@pytest.mark.parametrize("case", PRUNING_ONLY)
@pytest.mark.parametrize("method", ["cap", "search"])
def test_before_data_is_read_by_what_prunes(method, case):
    options, error = PRUNING_ONLY[case]
    refused(kfp.prune_model, network(), method, error=error, **options)


@pytest.mark.parametrize("method", ["cap", "taylor", "search"])
def test_the_check_can_fail(method):
    data = Watched()
    kfp.plan_pruning(network(), method, 0.7, data=data, **QUIET)
    assert data.touched


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"budget": 1e-4}, errors.InfeasibleBudgetError),
        ({"n_layers": 99}, errors.InfeasibleBudgetError),
        ({"n_layers": 0}, errors.InvalidValueError),
        ({"n_layers": "1"}, errors.InvalidValueError),
        ({"budget": "50%"}, errors.InvalidValueError),
        ({"budget": kfp.FiltersBudget(0.5)}, errors.InfeasibleBudgetError),
        ({"budget": kfp.budgets.BopsBudget(0.5, weight_bits={"nosuch": 4})}, errors.UnknownNameError),
        ({"n_layers": 1, "include": "nosuch"}, errors.UnknownNameError),
        ({"n_layers": 1, "exclude": "conv*"}, errors.InfeasibleBudgetError),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["cap", "taylor", "imprinting", "ensemble"])
def test_before_layers_are_scored(method, options, error):
    inputs = x = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
    for name in ("conv1", "conv2"):
        x = keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same", name=name)(x)])
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    refused(kfp.prune_layers, model, method=method, error=error, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keep": (0.5, 0.75)}, errors.FilterPruneError),
        ({"method": "nosuch"}, errors.UnknownNameError),
        ({"metric": "nosuch"}, errors.FilterPruneError),
        ({"seed": -1}, errors.FilterPruneError),
    ],
    ids=str,
)
def test_before_sensitivity_is_measured(options, error):
    refused(kfp.measure_sensitivity, network(), error=error, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keep": (1.0, 1e-4)}, errors.InfeasibleBudgetError),
        ({"keep": ()}, errors.FilterPruneError),
        ({"bits": (8, 1)}, errors.InvalidValueError),
        ({"bits": ({"nosuch": 4},)}, errors.UnknownNameError),
        ({"method": "nosuch"}, errors.UnknownNameError),
    ],
    ids=str,
)
def test_before_bits_are_compared(options, error):
    refused(kfp.studies.compare_bits, network(), error=error, **({"method": "cap"} | options))


def test_groups_that_the_criterion_refuses_are_said_with_the_reason():
    """They show only once it has looked; the budget is checked again then."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, name="bare")(inputs)
    x = keras.layers.Conv2D(16, 3, name="normal")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    with pytest.raises(errors.InfeasibleBudgetError) as caught:
        kfp.prune_model(model, "bn_scale", 0.06, **QUIET)
    assert "1 of 2 groups of filters stay whole: 'bare' has no batch normalization scale for bn_scale to read." in str(
        caught.value
    )
    kfp.prune_model(model, "l2", 0.06, **QUIET)
