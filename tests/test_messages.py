"""Bad input gets one clear sentence, a built-in exception class, and changes nothing: no weight, no file."""

import re

import keras
import numpy as np
import pytest
from builders import images
from refusals import fails
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.compensators import BNRecalibration
from keras_filterprune.cost import as_budget


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidValueError, ValueError),
        (errors.FileError, OSError),
        (errors.UnsupportedModelError, ValueError),
        (errors.UnsupportedLayerError, TypeError),
        (errors.InfeasibleBudgetError, ValueError),
        (errors.PlanMismatchError, ValueError),
        (errors.CalibrationDataError, ValueError),
        (errors.SurgeryError, RuntimeError),
        (errors.ExportError, RuntimeError),
        (errors.MeasurementError, RuntimeError),
        (errors.MissingPackageError, ImportError),
        (errors.UnknownNameError, ValueError),
    ],
)
def test_every_error_is_a_filter_prune_error_and_a_built_in(error, builtin):
    assert issubclass(error, kfp.FilterPruneError)
    assert issubclass(error, builtin)


# ---------------------------------------------------------------------------------------------------------------- names


def test_unknown_method_lists_the_known_ones_and_guesses(chain):
    known = ", ".join(name for name, *_ in kfp.list_methods())
    text = fails(errors.UnknownNameError, ValueError, r"Received: method='fpmg'\.", kfp.prune_model, chain, "fpmg")
    assert f"method is a criterion object, a Method, or one of {known}." in text
    assert text.endswith("Did you mean 'fpgm'?")
    text = fails(errors.UnknownNameError, ValueError, r"Received: method='qqqq'\.", kfp.plan_pruning, chain, "qqqq")
    assert "Did you mean" not in text


def test_method_of_a_wrong_type(chain):
    fails(
        errors.UnknownNameError,
        ValueError,
        r"one of l1, .* Received: method=None\.",
        kfp.prune_model,
        chain,
        None,
    )
    fails(errors.UnknownNameError, ValueError, r"Received: method=3\.", kfp.prune_model, chain, 3)


def test_method_that_cannot_be_hashed(chain):
    fails(errors.UnknownNameError, ValueError, r"Received: method=\['l1'\]", kfp.prune_model, chain, ["l1"])


@pytest.mark.parametrize("seed", [-1, 1.0, True, "0", None])
def test_seed(chain, seed):
    sentence = rf"seed is an integer, at least 0\. Received: seed={seed!r}\."
    for call in (kfp.prune_model, kfp.plan_pruning):
        for method in ("random", "l1", criteria.L2(), kfp.Method(criteria.L2())):
            fails(errors.InvalidValueError, ValueError, sentence, call, chain, method, seed=seed)


def test_parts_of_a_method():
    for arguments, kind, found in (
        (("l1",), "Criterion", "'l1'"),
        ((criteria.L1,), "Criterion", "<class '.*L1'>"),
        ((criteria.L1(), "global"), "Allocator", "'global'"),
        ((criteria.L1(), allocators.Uniform(), None), "Compensator", "None"),
        ((criteria.L1(), BNRecalibration()), "Allocator", r"BNRecalibration\(\)"),
    ):
        sentence = rf"Method expects a {kind} object\. Received: {found}\."
        fails(errors.InvalidValueError, ValueError, sentence, kfp.Method, *arguments)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_unknown_layer_pattern(chain, option):
    text = fails(
        errors.UnknownNameError,
        ValueError,
        r"no layer matches 'convv1'\.",
        kfp.prune_model,
        chain,
        **{option: "convv1"},
    )
    assert text.endswith("Did you mean 'conv1'?")
    text = fails(
        errors.UnknownNameError,
        ValueError,
        r"no layer matches 'zz\*'\.",
        kfp.prune_model,
        chain,
        **{option: ["zz*"]},
    )
    assert text.endswith("analyze(model).groups lists the layers.")


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("entry", [3, None, ["conv1"]], ids=repr)
def test_layer_pattern_that_is_no_string(chain, option, entry):
    value = ["conv1", entry]
    sentence = (
        rf"{option} is the name of a layer, a glob, or a list of them\. Received: {option}={re.escape(repr(value))}\."
    )
    fails(errors.InvalidValueError, ValueError, sentence, kfp.plan_pruning, chain, **{option: value})


def test_unknown_layer_in_a_filters_budget(chain):
    fails(
        errors.UnknownNameError,
        ValueError,
        r"FiltersBudget names 'conv9', which matches no prunable layer\. Prunable: conv1, conv2, conv3\.",
        kfp.prune_model,
        chain,
        budget=kfp.FiltersBudget({"conv9": 0.5}),
    )


@pytest.mark.parametrize("criterion", [criteria.L1, criteria.L2, criteria.FPGM, criteria.BNScale])
def test_unknown_aggregate(criterion):
    fails(
        errors.UnknownNameError,
        ValueError,
        r"aggregate is one of mean, sum, max, prod, first\. Received: aggregate='median'\.",
        criterion,
        aggregate="median",
    )


def test_unknown_compensate(chain):
    fails(
        errors.UnknownNameError,
        ValueError,
        r"compensate is 'auto', 'none', one of least_squares, bn, .*, or a compensator\. Received: "
        r"compensate='least squares'\. Did you mean 'least_squares'\?",
        kfp.prune_model,
        chain,
        compensate="least squares",
    )


# -------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.5, 2, float("nan"), float("inf"), True, False])
def test_budget_out_of_range(chain, value):
    sentence = rf"budget is the fraction that is kept, in \(0, 1\]\. Received: budget={value!r}\."
    fails(errors.InfeasibleBudgetError, ValueError, sentence, kfp.prune_model, chain, "l2", value)
    for budget in (kfp.MacsBudget, kfp.FiltersBudget):
        sentence = rf"keep is the fraction that is kept, in \(0, 1\]\. Received: keep={value!r}\."
        fails(errors.InfeasibleBudgetError, ValueError, sentence, budget, keep=value)
    fails(errors.InfeasibleBudgetError, ValueError, sentence, kfp.ParamsBudget, keep=value)
    sentence = rf"conv1 is the fraction that is kept, in \(0, 1\]\. Received: conv1={value!r}\."
    fails(errors.InfeasibleBudgetError, ValueError, sentence, kfp.FiltersBudget, {"conv1": value})


@pytest.mark.parametrize("value", ["x", None, [0.5], "0.5"])
def test_budget_of_a_wrong_type(chain, value):
    with pytest.raises(
        errors.InvalidValueError, match=r"budget is a fraction in \(0, 1\], or a budget: MacsBudget,"
    ) as caught:
        kfp.prune_model(chain, "l2", value)
    assert f"Received: budget={value!r}." in str(caught.value)
    assert isinstance(caught.value, ValueError)
    fails(errors.InfeasibleBudgetError, ValueError, r"keep is the fraction that is kept", kfp.MacsBudget, keep=value)


def test_budget_may_be_a_numpy_number():
    assert as_budget(np.float32(0.5)).keep == 0.5


def test_params_budget_wants_one_of_two():
    for arguments in ({}, {"keep": 0.5, "count": 100}):
        fails(
            errors.InfeasibleBudgetError,
            ValueError,
            r"ParamsBudget expects either keep= or count=\. Received: ParamsBudget\(keep=",
            kfp.ParamsBudget,
            **arguments,
        )
    for count in (0, -1, 2.5, True, "x"):
        fails(
            errors.InfeasibleBudgetError,
            ValueError,
            rf"count is a number of parameters, at least 1\. Received: count={count!r}\.",
            kfp.ParamsBudget,
            count=count,
        )


@pytest.mark.parametrize("alpha", [-0.5, float("nan")])
def test_global_alpha(alpha):
    fails(
        errors.InvalidValueError,
        ValueError,
        rf"alpha is the exponent of the cost, at least 0\. Received: alpha={alpha!r}\.",
        allocators.Global,
        alpha,
    )


@pytest.mark.parametrize("option", ["min_filters", "channel_multiple"])
@pytest.mark.parametrize("value", [0, -8, 2.0, True, None])
def test_min_filters_and_channel_multiple(chain, option, value):
    sentence = rf"{option} is an integer, at least 1\. Received: {option}={value!r}\."
    fails(errors.InvalidValueError, ValueError, sentence, kfp.prune_model, chain, **{option: value})


def test_a_budget_below_the_minimum_names_the_minimum_and_what_stands_in_the_way(chain):
    text = fails(
        errors.InfeasibleBudgetError,
        ValueError,
        r"MacsBudget\(keep=0\.001\) asks for at most 197 MACs; the smallest reachable is ",
        kfp.prune_model,
        chain,
        "l2",
        0.001,
    )
    graph = kfp.analyze(chain)
    cost = kfp.budgets.CostModel(graph)
    least = cost.macs(np.ones(len(graph.groups), int))
    assert f"the smallest reachable is {least:,} ({100 * least / cost.macs(cost.sizes):.1f} % of" in text
    assert "What is left is mostly in layers 'conv1' (" in text
    # The minimum it names can in fact be reached, and nothing below it.
    macs = cost.macs(cost.sizes)
    kfp.plan_pruning(chain, "l2", kfp.MacsBudget((least + 0.5) / macs))
    fails(
        errors.InfeasibleBudgetError,
        ValueError,
        "smallest reachable",
        kfp.plan_pruning,
        chain,
        "l2",
        (least - 0.5) / macs,
    )


def test_a_budget_that_options_make_unreachable_names_the_excluded_layer(chain):
    text = fails(
        errors.InfeasibleBudgetError,
        ValueError,
        r"asks for at most \d+ parameters",
        kfp.prune_model,
        chain,
        "l2",
        kfp.ParamsBudget(keep=0.1),
        exclude="conv3",
    )
    assert ", is excluded by 'conv3')" in text


def test_a_model_without_a_removable_filter(bad):
    inputs = keras.Input((8,))
    x = keras.layers.Dense(32, name="hidden")(inputs)
    x = keras.layers.MelSpectrogram(fft_length=8, sequence_stride=4, num_mel_bins=2, name="bands")(x)
    model = bad.use(keras.Model(inputs, keras.layers.Dense(2, name="scores")(x), name="whole"))
    text = fails(
        errors.InfeasibleBudgetError,
        ValueError,
        "has no filter that can be removed",
        kfp.prune_model,
        model,
        "l2",
        0.5,
    )
    assert "model 'whole'" in text
    assert " % of the MACs) feeds unsupported layer 'bands' (MelSpectrogram); a kfp.handlers.Handler" in text


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("layer", "weight"), [("conv2", "kernel"), ("conv3_bn", "moving_variance")])
def test_weights_that_are_not_finite(bad, value, layer, weight):
    model = ZOO["conv_bn_relu_chain"]()
    variable = next(v for v in model.get_layer(layer).weights if v.name == weight)
    array = variable.numpy().copy()
    array.flat[[0, -1]] = value
    variable.assign(array)
    bad.use(model)
    sentence = rf"weight '{weight}' of layer '{layer}' holds 2 NaN or infinite values of {array.size}\."
    text = fails(errors.UnsupportedModelError, ValueError, sentence, kfp.prune_model, model)
    assert text.endswith("restore finite weights first.")
    fails(errors.UnsupportedModelError, ValueError, sentence, kfp.plan_pruning, model)


def test_finite_weights_whose_sum_is_infinite_are_fine(bad):
    model = ZOO["plain_chain"]()
    kernel = model.get_layer("conv1").kernel
    kernel.assign(np.full(kernel.shape, np.finfo("float32").max))
    kfp.plan_pruning(bad.use(model))


def test_unbuilt_sequential():
    model = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.Conv2D(4, 3)], name="bare")
    text = fails(
        errors.UnsupportedModelError, ValueError, "Sequential model 'bare' is not built", kfp.prune_model, model
    )
    assert text.endswith("Start it with keras.Input(shape), or call model.build((None, ...)) first.")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def test_subclassed_model_that_was_not_called_is_told_what_it_needs(bad):
    model = bad.use(Subclassed())
    text = fails(
        errors.UnsupportedModelError, ValueError, r"what model 'mine' \(Subclassed\) takes", kfp.prune_model, model
    )
    assert "Call it on data once, or open it with its inputs: kfp.open_model(model, input_spec=" in text


@pytest.mark.parametrize("value", [None, "model.keras", 3, keras.layers.Dense(2)])
def test_something_that_is_no_model(value):
    sentence = rf"expected a keras\.Model\. Received: {type(value).__name__}\."
    for call in (kfp.prune_model, kfp.plan_pruning, kfp.analyze):
        fails(errors.UnsupportedModelError, ValueError, sentence, call, value)


def test_channels_first_inside_of_another_layer(bad):
    x = keras.Input((2, 3, 8, 8))
    conv = keras.layers.Conv2D(4, 3, data_format="channels_first", name="first")
    model = bad.use(
        keras.Model(x, keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.TimeDistributed(conv)(x))))
    )
    text = fails(
        errors.UnsupportedModelError,
        ValueError,
        r"layer 'first' uses data_format='channels_first'; expected 'channels_last'",
        kfp.prune_model,
        model,
    )
    assert "rebuild it with data_format='channels_last' and copy its weights" in text


# -------------------------------------------------------------------------------------------------------------- options


def test_training_that_cannot_be_called(chain):
    method = kfp.Method(criteria.L2(), allocators.Search())
    data = images(8, (12, 12, 3)), np.zeros(8, int)
    sentence = r"finetune is a function of the model, or None\. Received: finetune=3\."
    fails(errors.InvalidValueError, ValueError, sentence, kfp.prune_model, chain, method, data=data, finetune=3)


def test_a_plan_between_adapters_replayed_without_them(chain):
    plan = kfp.prune_model(
        chain, "l2", kfp.FiltersBudget(0.5), compensate="adapter", return_report=True, progress=False
    )[1].plan
    sentence = r"the plan was made for model 'conv_bn_relu_chain' with topology [0-9a-f]{12}"
    fails(errors.PlanMismatchError, ValueError, sentence, kfp.apply_plan, chain, plan)


# --------------------------------------------------------------------------------------------------------------- layers


def test_register_handler_refuses_what_it_cannot_use():
    class MyLayer(keras.layers.Layer):
        pass

    for like in (keras.layers.Layer, MyLayer, "Conv2D", keras.layers.ReLU()):
        sentence = r"register_handler\(like=\) expects a layer class with a handler\. Received: " + re.escape(
            repr(like)
        )
        fails(errors.UnsupportedLayerError, TypeError, sentence, kfp.register_handler, MyLayer, like=like)
    sentence = r"register_handler expects classes\. Received: 'Conv2D'\."
    fails(errors.UnsupportedLayerError, TypeError, sentence, kfp.register_handler, "Conv2D")
