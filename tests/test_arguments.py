"""Whatever stands in for an argument of a public name, one sentence says what is wrong, and nothing has changed.

The table is the public surface itself: every public name that takes arguments is called with every bad value for each
of them. What a value is good for is said once, by the name of the argument: one word means one thing everywhere.
"""

import inspect
import math

import keras
import numpy as np
import pytest
from builders import assert_all_equal, compiled, labelled_images, network, values

import keras_filterprune as kfp

BAD = {
    "none": lambda: None,
    "true": lambda: True,
    "number": lambda: -1.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "huge": lambda: 10**400,
    "text": lambda: "zz",
    "nul": lambda: "a\0b",
    "array": lambda: np.zeros((2, 3)),
    "generator": lambda: (n for n in ()),
    "list": lambda: [object()],
    "object": object,
}
# What is no bad value after all, by the name of the argument.
TAKEN = {
    # An empty list.
    "generator": "exclude features include",
    "true": "branches dynamic_batch exhaustive gates group integer_io one_by_one overwrite progress projections "
    "rectified return_report squared_temperature variance verify",
    "none": "accuracy accuracy_drop "
    "augment benchmark checkpoint data device drop evaluate exclude executor features finetune first "
    "folder include labels latency like m metadata normalise normalization quantize seconds sensitivity test tolerance",
    "text": "checkpoint folder path",
}
# The same where it differs, by the argument's owner and it.
TAKEN_BY = {
    "BatchBridgeout.seed": "none",
    "BudgetGates.epochs": "none",
    "BudgetGates.scorer": "none",
    "LatencyTable.load.path": "",
    "Metadata.plan": "none",
    "PruneReport.save.exports": "generator",
    "compress.budget": "none",
    "compress.integer_io": "none true",
    "compress.out": "text",
    "PruningPlan.load.path": "",
    # What depends on the model is known when training begins.
    "PruningSchedule.data": " ".join(BAD),
    "PruningSchedule.exclude": "none generator text nul",
    "PruningSchedule.include": "none generator text nul",
    "Reconstruct.teacher": "none",
    "SensitivityScorer.data": " ".join(BAD),
    "SensitivityTable.to_csv.path": "none text",
    "SoftPruning.every": "none",
    # Batches that nothing looks at.
    "apply_filter_gates.data": "none generator",
    "distill.temperature": "inf",
    "measure_latency.path": "none text",
    "measure_sensitivity.data": "",
    "open_model.input_spec": "none",
    "plan_pruning.data": "none generator",
    "predict_tflite.path": "",
    "prune_layers.data": "none generator",
    "read_metadata.path": "",
    "register_method.name": "text",
}
# Bases to subclass, and values that the library makes and hands to those who do.
MADE_HERE = (
    "ActivationCriterion Allocation Allocator BopsTable Budget Call ChannelGraph Compensator Compressed Cost CostModel "
    "CountBudget Criterion Device Elementwise ExportResult Family FamilyRow GateScorer Group Handler Kept LayerReport "
    "Linear Member MemberCriterion Prices PruneReport PruningPlan Rebuilt Resize SensitivityTable Statistics Tensor "
    "TensorRef Tracer Weights Window Samples count_macs handler_for read_filters read_last_axis"
).split()
METHODS = (
    "LatencyTable.load LatencyTable.predict LatencyTable.save PruneReport.save PruningPlan.load PruningPlan.save "
    "SensitivityTable.keep_for SensitivityTable.plot SensitivityTable.to_csv"
).split()
TABLE = {
    "format": 1,
    "machine": {"cpu": "Cortex-A76"},
    "settings": {"threads": 1},
    "call_floor_us": 0.5,
    "operators": [{"kind": "CONV_2D", "channels": 8, "filters": 8, "data_type": "float32", "us": 9.0}],
}


def public():
    """{name: class or function} of all that users call."""
    found = {}
    for name in kfp.__all__:
        value = getattr(kfp, name)
        found |= vars(value) if inspect.ismodule(value) else {name: value}
    own = {
        n: v for n, v in found.items() if callable(v) and v.__module__.startswith("keras_filterprune") and n[0] != "_"
    }
    methods = {name: getattr(own[name.partition(".")[0]], name.partition(".")[2]) for name in METHODS}
    return {n: v for n, v in own.items() if not n.endswith("Error") and n not in MADE_HERE} | methods


def arguments(function):
    """Named parameters without `self`, {name: whether it has to be there}."""
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default is p.empty for p in found if p.kind not in several and p.name != "self"}


class World:
    """Good arguments by their names, and objects that have the methods."""

    def __init__(self, folder):
        self.model, x = compiled(network()), labelled_images()
        self.plan = kfp.plan_pruning(self.model, "l2", kfp.FiltersBudget(0.5), progress=False)
        report = kfp.prune_model(self.model, "l2", kfp.FiltersBudget(0.5), return_report=True, progress=False)[1]
        self.file = kfp.export_tflite(self.model, folder / "net.tflite", verify=False).path
        self.objects = {
            "LatencyTable": kfp.LatencyTable(TABLE),
            "PruneReport": report,
            "PruningPlan": self.plan,
            "SensitivityTable": kfp.measure_sensitivity(self.model, x, keep=(0.5,), progress=False),
        }
        self.good = {
            "budget": 0.5,
            "content": TABLE,
            "criterion": kfp.criteria.L2(),
            "data": x,
            "epochs": 3,
            "keep": 0.5,
            "layer": keras.layers.Dense(2),
            "model": self.model,
            "name": "zz",
            "original": self.model,
            "path": "zz",
            "penalty": kfp.regularizers.GroupLasso(),
            "plan": self.plan,
            "step": 8,
            "student": self.model,
            "teacher": network(),
            "train": "builders:chain",
            "x": x[0],
        }

    def call(self, name, function, /, **given):
        """Call with one argument given, the others good."""
        if name == "predict_tflite":
            given = {"path": self.file} | given
        needed = [n for n, needed in arguments(function).items() if needed and n not in given]
        given = {n: self.good[n] for n in needed} | given
        owner, _, method = name.partition(".")
        if method:
            return getattr(self.objects[owner], method)(**given)
        if name == "Metadata":
            return kfp.export_tflite(self.model, "zz", metadata=kfp.export.Metadata(**given))
        if name == "register_handler":
            return kfp.register_handler(keras.layers.Layer, **given)
        if name == "prune_layers" and not {"budget", "n_layers"} & set(given):
            given["n_layers"] = 1
        if name == "LatencyBudget":
            given = {"table": "arm64"} | ({} if {"keep", "ms"} & set(given) else {"keep": 0.5}) | given
        if name in ("BopsBudget", "ParamsBudget") and not {"keep", "count"} & set(given):
            given["keep"] = 0.5
        return function(**given)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def taken(name, argument):
    """Kinds of values that are no bad ones for this argument."""
    if f"{name}.{argument}" in TAKEN_BY:
        return TAKEN_BY[f"{name}.{argument}"].split()
    return [kind for kind, names in TAKEN.items() if argument in names.split()]


ROWS = [(name, argument) for name, function in sorted(public().items()) for argument in arguments(function)]


@pytest.mark.parametrize(("name", "argument"), ROWS)
def test_bad_values_get_a_sentence_and_change_nothing(world, name, argument, tmp_path, monkeypatch, registry):
    monkeypatch.chdir(tmp_path)
    before, unsaid = values(world.model), {}
    for kind in (kind for kind in BAD if kind not in taken(name, argument)):
        value = BAD[kind]()
        try:
            unsaid[kind] = world.call(name, public()[name], **{argument: value})
        except kfp.FilterPruneError as error:
            words = "Received", f"{argument}=", "calibration data", str(value), repr(value)
            if not any(word in str(error) for word in words):
                unsaid[kind] = str(error)
    assert unsaid == {}
    assert list(tmp_path.iterdir()) == []
    assert_all_equal(before, values(world.model))
