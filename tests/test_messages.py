"""Bad input gets one clear sentence, a built-in exception class, and changes nothing: no weight, no file."""

import copy
import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from zoo import ZOO, randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.compensators import BNRecalibration
from keras_filterprune.cost import as_budget


class Bad:
    """Collects the model under test, so that one fixture can look at it afterwards."""

    def __init__(self, folder):
        self.folder = folder
        self.model = None
        self._before = None

    def use(self, model):
        self.model, self._before = model, [w.copy() for w in model.get_weights()]
        return model

    def unchanged(self):
        if self.model is not None:
            for old, new in zip(self._before, self.model.get_weights(), strict=True):
                np.testing.assert_array_equal(old, new)


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Whatever a test does with `bad.use(model)`: the weights stay bit-identical and no file appears."""
    monkeypatch.chdir(tmp_path)
    guard = Bad(tmp_path)
    yield guard
    guard.unchanged()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("given")] == []


@pytest.fixture
def chain(bad):
    return bad.use(ZOO["conv_bn_relu_chain"]())


def fails(error, builtin, sentence, call, *args, **kwargs):
    """`call` raises exactly `error`, which also is a `builtin` and a FilterPruneError, with `sentence` in its text."""
    with pytest.raises(error, match=sentence) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is error
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, kfp.FilterPruneError)
    return str(caught.value)


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


# ----------------------------------------------------------------------------------------------------- names


def test_unknown_method_lists_the_known_ones_and_guesses(chain):
    known = ", ".join(name for name, *_ in kfp.list_methods())
    text = fails(errors.UnknownNameError, ValueError, r"Received: method='fpmg'\.", kfp.prune_model, chain, "fpmg")
    assert f"method is a criterion, a Method, or one of {known}." in text
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


# --------------------------------------------------------------------------------------------------- budgets


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
    model = bad.use(ZOO["conv_lstm"]())
    text = fails(
        errors.InfeasibleBudgetError,
        ValueError,
        "has no filter that can be removed",
        kfp.prune_model,
        model,
        "l2",
        0.5,
    )
    assert "model 'conv_lstm'" in text


# ---------------------------------------------------------------------------------------------------- models


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


def test_subclassed_model_is_told_how_to_become_functional(bad):
    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    bad.use(model)
    text = fails(
        errors.UnsupportedModelError, ValueError, "model 'mine' is a subclassed Subclassed", kfp.prune_model, model
    )
    assert "Wrap it as a functional model: x = keras.Input(shape); keras.Model(x, my_call(x))" in text


@pytest.mark.parametrize("value", [None, "model.keras", 3, keras.layers.Dense(2)])
def test_something_that_is_no_model(value):
    sentence = rf"expected a keras\.Model\. Received: {type(value).__name__}\."
    for call in (kfp.prune_model, kfp.plan_pruning, kfp.analyze):
        fails(errors.UnsupportedModelError, ValueError, sentence, call, value)


def test_channels_first(bad):
    x = keras.Input((3, 8, 8))
    y = keras.layers.Conv2D(4, 3, data_format="channels_first", name="first")(x)
    y = keras.layers.Dense(2)(keras.layers.Flatten()(y))
    model = bad.use(keras.Model(x, y))
    text = fails(
        errors.UnsupportedModelError,
        ValueError,
        r"layer 'first' uses data_format='channels_first'; expected 'channels_last'",
        kfp.prune_model,
        model,
    )
    assert "Rebuild the model with data_format='channels_last' and copy its weights" in text


# ----------------------------------------------------------------------------------------------------- plans


@pytest.fixture
def plan(chain):
    return kfp.plan_pruning(chain, "l2", kfp.FiltersBudget(0.5))


def edited(plan, **changes):
    """The plan with its first group's entry changed."""
    groups = copy.deepcopy(plan.groups)
    groups[0] |= changes
    return dataclasses.replace(plan, groups=groups)


def test_plan_for_other_weights_and_for_another_model(chain, plan, bad):
    other = ZOO["conv_bn_relu_chain"]()
    other.get_layer("conv3").bias.assign_add(np.ones(14)) if other.get_layer("conv3").use_bias else None
    other.get_layer("logits").bias.assign(np.ones(5))
    bad.use(other)
    text = fails(
        errors.PlanMismatchError,
        ValueError,
        r"the plan was made for model 'conv_bn_relu_chain' with weights [0-9a-f]{12}; model ",
        kfp.apply_plan,
        other,
        plan,
    )
    assert text.endswith("Make a new plan with plan_pruning().")
    bad.unchanged()
    another = bad.use(ZOO["plain_chain"]())
    fails(
        errors.PlanMismatchError,
        ValueError,
        r"with topology [0-9a-f]{12}; model 'plain_chain' has topology",
        kfp.apply_plan,
        another,
        plan,
    )


@pytest.mark.parametrize(
    "kept", [[], [0, 0, 1], [1, 0], [-1, 0], [0, 9], [9], [10**9]], ids=lambda k: "_".join(map(str, k)) or "empty"
)
def test_edited_plan_with_impossible_units(chain, plan, kept):
    text = fails(
        errors.PlanMismatchError,
        ValueError,
        r"group 'conv1' of the plan: kept is a list of increasing integers within 0\.\.8, not empty\.",
        kfp.apply_plan,
        chain,
        edited(plan, kept=kept),
    )
    assert text.endswith(f"Received: {kept}.")


@pytest.mark.parametrize("kept", [["a"], None, [0.5, 1.5], [[0], [1]], [True]], ids=repr)
def test_edited_plan_with_units_that_are_no_integers(chain, plan, kept):
    sentence = r"group 'conv1' of the plan: kept is a list of increasing integers within 0\.\.8, not empty\."
    text = fails(errors.PlanMismatchError, ValueError, sentence, kfp.apply_plan, chain, edited(plan, kept=kept))
    assert text.endswith(f"Received: {kept!r}.")


def test_edited_plan_with_another_size_or_an_unknown_group(chain, plan):
    fails(
        errors.PlanMismatchError,
        ValueError,
        r"the plan's group 'conv1' has 12 units, the model's has 9\. .* made for another model\.",
        kfp.apply_plan,
        chain,
        edited(plan, size=12),
    )
    fails(
        errors.PlanMismatchError,
        ValueError,
        r"the plan's group 'conv7' has 9 units, the model's has None\.",
        kfp.apply_plan,
        chain,
        edited(plan, name="conv7"),
    )


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("name", r"the plan's group None has 9 units, the model's has None\."),
        ("size", r"the plan's group 'conv1' has None units, the model's has 9\."),
        ("kept", r"group 'conv1' of the plan: kept is a list .* Received: None\."),
    ],
)
def test_edited_plan_with_an_incomplete_group(chain, plan, missing, sentence):
    groups = copy.deepcopy(plan.groups)
    del groups[0][missing]
    fails(
        errors.PlanMismatchError,
        ValueError,
        sentence,
        kfp.apply_plan,
        chain,
        dataclasses.replace(plan, groups=groups),
    )


def test_edited_plan_with_something_that_is_no_group(chain, plan):
    damaged = dataclasses.replace(plan, groups=["conv1"])
    fails(errors.PlanMismatchError, ValueError, "the plan's group None has None units", kfp.apply_plan, chain, damaged)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_plan_file(bad, plan, share):
    path = bad.folder / "given.json"
    plan.save(path)
    path.write_text(path.read_text()[: int(share * path.stat().st_size)])
    before = path.read_bytes()
    fails(
        errors.FileError,
        OSError,
        rf"cannot read a plan from '{path}': .*line \d+ column",
        kfp.PruningPlan.load,
        path,
    )
    assert path.read_bytes() == before


def test_plan_file_that_is_none(bad):
    path = bad.folder / "given.json"
    fails(errors.FileError, OSError, "cannot read a plan from .*No such file", kfp.PruningPlan.load, path)
    path.write_bytes(b"\xff\xfe\x00\x01")
    fails(errors.FileError, OSError, "cannot read a plan from", kfp.PruningPlan.load, path)
    for text, found in (("[]", "'list'"), ('{"format": 2}', "2"), ('{"a": 1}', "None"), ("3", "'int'")):
        path.write_text(text)
        sentence = rf"is no plan of format 1\. Received: format={found}\."
        fails(errors.FileError, OSError, sentence, kfp.PruningPlan.load, path)


@pytest.mark.parametrize("missing", ["model", "groups", "layers", "versions"])
def test_plan_file_with_a_part_missing(bad, plan, missing):
    path = bad.folder / "given.json"
    content = plan.to_dict()
    del content[missing]
    path.write_text(json.dumps(content))
    sentence = rf"is no complete plan: {missing} missing\."
    fails(errors.FileError, OSError, sentence, kfp.PruningPlan.load, path)


@pytest.mark.parametrize("part", ["model", "groups", "layers", "pinned", "cost"])
def test_plan_file_with_a_part_of_a_wrong_type(bad, plan, part):
    path = bad.folder / "given.json"
    path.write_text(json.dumps(plan.to_dict() | {part: 3}))
    sentence = rf"'{path}' is no plan: {part} of another type than plans have\."
    fails(errors.FileError, OSError, sentence, kfp.PruningPlan.load, path)


def test_plan_that_cannot_be_written_leaves_nothing_behind(bad, plan):
    missing = bad.folder / "no" / "plan.json"
    fails(errors.FileError, OSError, rf"cannot write {missing}: .*No such file", plan.save, missing)
    target = bad.folder / "given"
    target.mkdir()
    fails(errors.FileError, OSError, rf"cannot write {target}: ", plan.save, target)
    assert list(target.iterdir()) == []


# ---------------------------------------------------------------------------------------------- calibration data


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def with_nan(value):
    array = images(4, 12, 12, 3)
    array[2, 1, 1, 1] = value
    return array


BAD_DATA = {
    "no samples": (images(0, 12, 12, 3), "calibration data holds no samples"),
    "no batches": (iter(()), "calibration data holds no samples"),
    "no arrays": ([], r"expected one array per model input \['image'\]\. Received: 0 arrays\."),
    "rank": (images(12, 12, 3), r"input 'image' has shape \(12, 12, 3\); expected \(samples, 12, 12, 3\)\."),
    "channels": (images(4, 12, 12, 1), r"has shape \(4, 12, 12, 1\); expected \(samples, 12, 12, 3\)\."),
    "side": (images(4, 12, 10, 3), r"has shape \(4, 12, 10, 3\); expected"),
    "a later batch": (iter([images(4, 12, 12, 3), images(4, 9, 9, 3)]), r"has shape \(4, 9, 9, 3\)"),
    "nan": (with_nan(np.nan), "calibration data for input 'image' holds NaN or infinite values"),
    "inf": (with_nan(-np.inf), "calibration data for input 'image' holds NaN or infinite values"),
    "four arrays": (
        [images(4, 12, 12, 3), *[np.zeros(4)] * 3],
        r"expected one array .* \['image'\]\. Received: 4 arrays",
    ),
    "keys": ({"picture": images(4, 12, 12, 3)}, r"model input \['image'\]\. Received: keys=\['picture'\]\."),
    "number": (5, r"calibration data is an array, .*, or batches of them\. Received: int\."),
    "function": (print, r"Received: builtin_function_or_method\."),
    "text": ("abc", r"calibration data is an array, .*, or batches of them\. Received: str\."),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_calibration_data_that_does_not_fit(chain, case):
    data, sentence = BAD_DATA[case]
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, data=data, progress=False)


def test_calibration_data_that_a_plan_does_not_fit(chain, plan):
    data, sentence = BAD_DATA["side"]
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.apply_plan, chain, plan, data=data, progress=False)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((), r"expected one array per model input \['image'\]\. Received: 0 arrays\."),
        ([[[1.0, 2.0], [3.0]]], "calibration data is ragged: .* Expected arrays of one shape"),
        (np.full((4, 12, 12, 3), "a"), r"calibration data is numeric\. Received: ndarray of <U1\."),
        ({1: images(4, 12, 12, 3), "b": images(1, 1)}, r"model input \['image'\]\. Received: keys=\['1', 'b'\]\."),
    ],
    ids=["empty tuple", "ragged", "strings", "mixed keys"],
)
def test_calibration_data_of_no_numbers(chain, data, sentence):
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, data=data)


def test_samples_of_two_inputs_must_match(bad):
    model = bad.use(ZOO["siamese"]())
    data = [images(4, 6, 8, 3), images(3, 6, 8, 3)]
    sentence = r"every input needs the same number of samples\. Received: \[4, 3\]\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, model, data=data, progress=False)
    sentence = r"expected one array per model input \['left', 'right'\]\. Received: 1 arrays\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, model, data=data[0], progress=False)


def test_wrong_channels_on_a_model_with_open_sides():
    x = keras.Input((None, None, 3), name="image")
    y = keras.layers.Conv2D(6, 3, name="conv")(x)
    y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(y)))
    fails(
        errors.CalibrationDataError,
        ValueError,
        r"has shape \(4, 9, 9, 5\)",
        kfp.prune_model,
        keras.Model(x, y),
        data=images(4, 9, 9, 5),
        progress=False,
    )


def test_a_compensator_without_its_data_stops_before_any_work(chain, monkeypatch):
    monkeypatch.setattr("keras_filterprune.rebuild.outcome.rebuild", lambda *_: pytest.fail("work was done"))
    sentence = r"BNRecalibration\(\) needs calibration inputs: pass data=\. A few hundred are enough\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, compensate=BNRecalibration())


NEEDS_DATA = ["least_squares", "bn", "mean_shift"]


@pytest.mark.parametrize("compensate", NEEDS_DATA)
def test_a_compensator_by_name_without_its_data(chain, compensate):
    sentence = r"\) needs calibration inputs: pass data=\. A few hundred are enough\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, compensate=compensate)


@pytest.mark.parametrize(
    ("method", "measure"),
    [
        ("search", "accuracy"),
        (kfp.Method(criteria.L2(), allocators.Search(measure="error")), "error"),
        (kfp.Method(criteria.L2(), allocators.Tolerance()), "accuracy"),
    ],
    ids=["by name", "search", "tolerance"],
)
def test_a_measure_without_data(chain, method, measure):
    sentence = rf"(measure='{measure}' needs samples to measure on|needs calibration inputs): pass data="
    for call in (kfp.prune_model, kfp.plan_pruning):
        fails(errors.CalibrationDataError, ValueError, sentence, call, chain, method)


@pytest.mark.parametrize(
    "allocator", [allocators.Search(), allocators.Tolerance(), allocators.Tolerance(drop=0.1)], ids=repr
)
def test_accuracy_without_labels(chain, allocator):
    sentence = (
        r"'accuracy' needs labelled samples: pass data=\(x, y\) or batches of them, not from the test split\. What "
        r"measures an 'error' needs no labels\."
    )
    method = kfp.Method(criteria.L2(), allocator)
    for data in (images(8, 12, 12, 3), (images(8, 12, 12, 3),), {"image": images(8, 12, 12, 3)}):
        fails(
            errors.CalibrationDataError,
            ValueError,
            sentence,
            kfp.prune_model,
            chain,
            method,
            data=data,
            progress=False,
        )
    fails(
        errors.CalibrationDataError,
        ValueError,
        sentence,
        kfp.prune_model,
        chain,
        "search",
        data=images(8, 12, 12, 3),
        progress=False,
    )


BAD_LABELS = {
    "too few": np.zeros(5, int),
    "per position": np.zeros((8, 12, 12), int),
    "fractions": np.full(8, 0.5),
    "nan": np.where(np.arange(8) == 3, np.nan, 1.0),
    "strings": np.array(list("abababab")),
    "none": None,
    "by output": {"logits": np.zeros(8, int)},
    "of two outputs": [np.zeros(8, int), np.zeros((8, 3))],
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_are_no_class_numbers(chain, case):
    data = images(8, 12, 12, 3), BAD_LABELS[case]
    method = kfp.Method(criteria.L2(), allocators.Search())
    sentence = r"'accuracy' (expects one class number per sample|needs labelled samples)"
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, method, data=data, progress=False)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_nobody_looks_at_do_not_matter(chain, case):
    data = images(8, 12, 12, 3), BAD_LABELS[case]
    small = kfp.prune_model(chain, "energy", 0.5, data=data, compensate="mean_shift", progress=False)
    assert small.count_params() < chain.count_params()


@pytest.mark.parametrize("name", ["multi_input_output", "unet"])
def test_accuracy_of_a_model_that_gives_no_single_class(bad, name):
    """Two outputs side by side, or a class per position, are no scores of one class per sample."""
    model = bad.use(ZOO[name]())
    x = [images(8, *tensor.shape[1:]) for tensor in model.inputs]
    with pytest.raises(kfp.FilterPruneError):
        kfp.plan_pruning(
            model,
            kfp.Method(criteria.L2(), allocators.Search()),
            0.5,
            data=(x, np.zeros(8, int)),
            progress=False,
        )


@pytest.mark.parametrize(
    "method",
    ["pursuit", "energy", "cap", kfp.Method(criteria.L2(), allocators.Search(measure="error"))],
    ids=["pursuit", "energy", "cap", "search"],
)
def test_one_image_for_a_method(chain, method):
    sentence = r"calibration needs at least 2 samples, better a few hundred\. Received: 1\."
    data = images(1, 12, 12, 3)
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, method, data=data, progress=False)


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "bn", "linear", "adapter"])
def test_one_image_for_a_compensator(chain, compensate):
    data = images(1, 12, 12, 3)
    if compensate in ("bn", "linear"):
        # Its positions are samples enough; or no data is looked at.
        assert all_finite(kfp.prune_model(chain, "l2", 0.5, data=data, compensate=compensate, progress=False))
        return
    arguments = {"data": data, "compensate": compensate, "progress": False}
    sentence = r"calibration needs at least 2 samples, better a few hundred\. Received: 1\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, **arguments)


@pytest.mark.parametrize("compensate", ["least_squares", "bn", "mean_shift"])
def test_a_later_batch_of_a_wrong_shape(chain, compensate):
    data = iter([images(4, 12, 12, 3), images(4, 12, 12, 4)])
    sentence = r"input 'image' has shape \(4, 12, 12, 4\); expected \(samples, 12, 12, 3\)\."
    arguments = {"data": data, "compensate": compensate, "progress": False}
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, **arguments)


def all_finite(model):
    return all(np.isfinite(weight).all() for weight in model.get_weights())


COMPENSATORS = ["least_squares", "bn", "mean_shift", "linear", "adapter"]


@pytest.mark.parametrize(
    ("method", "compensate"),
    [*(("l2", name) for name in COMPENSATORS), *((name, "none") for name in ("energy", "cap", "pursuit", "lrf"))],
)
def test_constant_channels_give_finite_weights(bad, method, compensate):
    """Filters of zeros, scales of zero, channels that a ReLU switches off, and images that are all the same."""
    model = ZOO["conv_bn_relu_chain"]()
    for layer, weight, where, value in (
        ("conv1", "kernel", [0, 1], 0.0),
        ("conv1_bn", "gamma", [2, 3], 0.0),
        ("conv1_bn", "beta", [3, 4], -50.0),
        ("conv2", "kernel", [5, 6, 7], 0.0),
        ("conv3", "kernel", [0, 1, 2, 3], 0.0),
        ("conv3_bn", "gamma", [3, 4, 5], 0.0),
    ):
        variable = getattr(model.get_layer(layer), weight)
        array = variable.numpy().copy()
        array[..., where] = value
        variable.assign(array)
    bad.use(model)
    budget = kfp.FiltersBudget(0.5) if compensate == "adapter" else 0.4
    for data in (images(16, 12, 12, 3), np.ones((16, 12, 12, 3), "float32"), np.zeros((16, 12, 12, 3), "float32")):
        small = kfp.prune_model(model, method, budget, data=data, compensate=compensate, progress=False)
        assert all_finite(small)
        assert np.isfinite(small(data)).all()


def logarithms():
    """Finite inputs, but the logarithm of negative numbers in the middle."""
    x = keras.Input((8, 8, 3), name="image")
    y = keras.ops.log(keras.layers.Conv2D(6, 3, padding="same", name="conv1")(x))
    y = keras.layers.Conv2D(5, 3, padding="same", name="conv2")(y)
    y = keras.layers.BatchNormalization(name="bn")(y)
    y = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D()(y))
    return randomise(keras.Model(x, y, name="logarithms"))


@pytest.mark.parametrize("compensate", COMPENSATORS)
def test_activations_that_are_not_finite_for_a_compensator(bad, compensate):
    """Either a clear error that names a layer, or weights that are finite."""
    model, data = bad.use(logarithms()), images(16, 8, 8, 3)
    budget = kfp.FiltersBudget(0.5)
    try:
        small = kfp.prune_model(model, "l2", budget, data=data, compensate=compensate, verify=False, progress=False)
    except errors.CalibrationDataError as error:
        assert re.search("'(conv2|bn|head|log[_0-9]*)'", str(error))
        return
    assert all_finite(small)


@pytest.mark.parametrize(
    "method",
    [
        "energy",
        "cap",
        "pursuit",
        kfp.Method(criteria.L2(), allocators.Search(measure="error")),
        kfp.Method(criteria.L2(), allocators.Tolerance(measure="error")),
    ],
    ids=["energy", "cap", "pursuit", "search", "tolerance"],
)
def test_activations_that_are_not_finite_for_a_method(bad, method):
    model = bad.use(logarithms())
    sentence = "'(conv2|bn|head|log[_0-9]*)'"
    arguments = {"data": images(16, 8, 8, 3), "compensate": "none", "progress": False}
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, model, method, 0.5, **arguments)


@pytest.mark.parametrize("compensate", ["none", *COMPENSATORS])
@pytest.mark.parametrize("keep", [1e-9, 0.01])
def test_one_filter_stays_whatever_the_fraction(chain, keep, compensate):
    budget = kfp.FiltersBudget(keep)
    small = kfp.prune_model(chain, "l2", budget, data=images(16, 12, 12, 3), compensate=compensate, progress=False)
    inner = "conv3" if compensate == "adapter" else "conv1"
    assert small.get_layer(inner).filters == 1
    assert all_finite(small)
    assert np.isfinite(small(images(2, 12, 12, 3))).all()


def test_training_between_the_rounds_of_a_method_that_has_none(chain):
    sentence = r"finetune= is for methods that .* prunes in one go\. Train the result instead\."
    fails(errors.InvalidValueError, ValueError, sentence, kfp.prune_model, chain, "l2", finetune=lambda model: None)


def test_training_that_cannot_be_called(chain):
    method = kfp.Method(criteria.L2(), allocators.Search())
    data = images(8, 12, 12, 3), np.zeros(8, int)
    sentence = r"finetune is a function of the model, or None\. Received: finetune=3\."
    fails(errors.InvalidValueError, ValueError, sentence, kfp.prune_model, chain, method, data=data, finetune=3)


def test_a_plan_between_adapters_replayed_without_them(chain):
    plan = kfp.prune_model(
        chain, "l2", kfp.FiltersBudget(0.5), compensate="adapter", return_report=True, progress=False
    )[1].plan
    sentence = r"the plan was made for model 'conv_bn_relu_chain' with topology [0-9a-f]{12}"
    fails(errors.PlanMismatchError, ValueError, sentence, kfp.apply_plan, chain, plan)


# ------------------------------------------------------------------------------------------------------- layers


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
