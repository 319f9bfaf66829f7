"""A plan replays exactly, knows the model it was made for, and its file and report say what was done."""

import copy
import dataclasses
import json
import os
import platform

import keras
import numpy as np
import pytest
from builders import assert_all_equal
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors

METHODS = [name for name, needs, _ in kfp.list_methods() if needs == "nothing"]


def assert_same_model(a, b):
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
    assert [v.path for v in a.weights] == [v.path for v in b.weights]
    assert_all_equal(a.get_weights(), b.get_weights())


@pytest.mark.parametrize(
    ("name", "method"),
    [("residual_projection", "l2"), ("residual_projection", "random"), ("unet", "random"), ("nested_functional", "l2"),
     ("dict_input_output", "random"), ("sequential", "l2")],
)  # fmt: skip
def test_a_saved_plan_replays_bit_for_bit(name, method, tmp_path):
    model = ZOO[name]()
    direct = kfp.prune_model(model, method, 0.6, seed=3, progress=False)
    plan = kfp.plan_pruning(model, method, 0.6, seed=3)
    plan.save(tmp_path / "plan.json")
    loaded = kfp.PruningPlan.load(tmp_path / "plan.json")
    assert loaded.to_dict() == plan.to_dict()
    assert_same_model(direct, kfp.apply_plan(model, plan, progress=False))
    assert_same_model(direct, kfp.apply_plan(model, loaded, progress=False))
    assert direct.count_params() < model.count_params()


def test_a_plan_replays_calibration_too(tmp_path):
    model = ZOO["conv_bn_relu_chain"]()
    x = np.random.default_rng(0).normal(size=(20, 12, 12, 3)).astype("float32")
    direct = kfp.prune_model(model, "fpgm", 0.5, data=x, progress=False)
    kfp.plan_pruning(model, "fpgm", 0.5).save(tmp_path / "plan.json")
    replayed = kfp.apply_plan(model, kfp.PruningPlan.load(tmp_path / "plan.json"), data=x, progress=False)
    assert_same_model(direct, replayed)


# What is cut layer by layer is chosen by one mechanism, whatever the criterion.
@pytest.mark.parametrize("method", [name for name in METHODS if name != "lrf_layerwise"])
def test_planning_is_deterministic_and_leaves_no_trace(method):
    model = ZOO["residual_identity"]()
    first = kfp.plan_pruning(model, method, 0.5, channel_multiple=2).to_dict()
    kfp.prune_model(model, method, 0.7, verify=False, progress=False)
    assert kfp.plan_pruning(model, method, 0.5, channel_multiple=2).to_dict() == first


def test_the_file_holds_format_1(tmp_path):
    x = keras.Input((8, 8, 3), name="image")
    y = keras.layers.Conv2D(4, 3, name="conv1")(x)
    y = keras.layers.BatchNormalization(name="bn1")(y)
    y = keras.layers.Dense(2, name="fc")(keras.layers.GlobalAveragePooling2D(name="gap")(y))
    model = keras.Model(x, y, name="small")
    kernel = np.ones((3, 3, 3, 4), "float32") * [0.1, 0.3, 0.2, 0.4]
    model.get_layer("conv1").set_weights([kernel, np.zeros(4)])
    plan = kfp.plan_pruning(model, "l1", kfp.FiltersBudget(0.5), seed=7)
    plan.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    assert list(content) == [
        *("format", "model", "method", "budget", "seed", "versions", "groups", "layers", "pinned", "cost", "sha256")
    ]
    assert content.pop("sha256") == plan.sha256
    assert content == plan.to_dict()
    assert content["format"] == 1
    assert content["model"]["name"] == "small"
    assert all(len(content["model"][part]) == 64 for part in ("topology", "weights"))
    assert (content["method"], content["budget"], content["seed"]) == ("l1", "FiltersBudget(keep=0.5)", 7)
    assert set(content["versions"]) >= {"keras_filterprune", "keras", "numpy", "python"}
    assert content["versions"]["keras"] == keras.__version__
    assert content["versions"]["python"] == platform.python_version()
    (group,) = content["groups"]
    assert (group["name"], group["size"], group["kept"]) == ("conv1", 4, [1, 3])
    members = {(m["layer"], m["weight"], m["axis"]) for m in group["members"]}
    bn = {("bn1", name, 0) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert members == {("conv1", "kernel", 3), ("conv1", "bias", 0), ("fc", "kernel", 0)} | bn
    for layer in ("conv1", "bn1"):
        assert content["layers"][layer] == {"channels": 4, "kept": [1, 3]}
    assert content["pinned"] == [{"layer": "fc", "channels": 2, "reason": "is model output 'fc'"}]
    # 6 x 6 positions x 3 x 3 x 3 weights per filter, and the classifier.
    assert content["cost"]["macs"] == [36 * 27 * 4 + 8, 36 * 27 * 2 + 4]
    assert content["cost"]["params"] == [27 * 4 + 4 + 16 + 10, 27 * 2 + 2 + 8 + 6]
    loaded = kfp.PruningPlan.load(tmp_path / "plan.json")
    assert loaded.kept["conv1"].tolist() == [1, 3]
    assert loaded.kept["conv1"].dtype.kind == "i"


def test_a_configured_method_names_itself():
    plan = kfp.plan_pruning(ZOO["plain_chain"](), kfp.Method(criteria.L2("max"), allocators.Global(1.0)), 0.5)
    assert plan.method == "L2(aggregate='max') + Global(alpha=1.0)"
    assert plan.budget == "MacsBudget(keep=0.5)"


@pytest.mark.parametrize(
    "name", ["residual_projection", "shufflenet_v2", "decoder", "depthwise", "flatten_dense", "separable"]
)
def test_kept_indices_are_those_of_the_layers_own_weights(name):
    model = ZOO[name]()
    plan = kfp.plan_pruning(model, "random", kfp.FiltersBudget(0.5))
    small = kfp.apply_plan(model, plan, progress=False)
    checked = 0
    for layer, kept in plan.kept.items():
        old, new = model.get_layer(layer), small.get_layer(layer)
        for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
            if a.ndim == 1:
                np.testing.assert_array_equal(a[kept], b)
                checked += 1
    assert checked > 2


@pytest.mark.parametrize("name", ["residual_projection", "shufflenet_v2", "depthwise", "sequential", "unet"])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_kept_knows_every_layer_that_makes_or_normalises_channels(name, keep):
    """Those that stay whole, the classifier's and those that nothing may go from among them."""
    model = ZOO[name]()
    pinned = [p.layer for p in kfp.analyze(model).pinned]
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(keep))
    small = kfp.apply_plan(model, plan, progress=False)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense | keras.layers.BatchNormalization):
            assert len(plan.kept[layer.name]) == small.get_layer(layer.name).output.shape[-1]
            assert plan.layers[layer.name]["channels"] == layer.output.shape[-1]
    assert set(pinned) & set(plan.kept)


# ------------------------------------------------------------------------------------------------ fingerprint


def ops_model(constant=2.0, width=6, activation="relu", cut=slice(0, 3), image="image"):
    keras.utils.set_random_seed(5)
    x = keras.Input((8, 8, 3), name=image)
    y = keras.layers.Conv2D(width, 3, activation=activation, name="conv1")(x)
    y = keras.ops.concatenate([y[..., cut], keras.ops.tanh(y) * constant], axis=-1)
    y = keras.layers.Conv2D(4, 1, name="conv2")(y)
    y = keras.layers.Dense(2, name="fc")(keras.layers.GlobalAveragePooling2D(name="gap")(y))
    return keras.Model(x, y, name="ops")


def fingerprint(model):
    return kfp.plan_pruning(model, "l1", kfp.FiltersBudget(0.5)).model


def test_automatic_names_of_raw_operations_do_not_count():
    a, b = ops_model(), ops_model()
    names = [{op.name for op in m.operations} for m in (a, b)]
    assert names[0] != names[1], "the two models were meant to differ in automatic names"
    assert_all_equal(a.get_weights(), b.get_weights())
    assert fingerprint(a) == fingerprint(b)
    kfp.apply_plan(b, kfp.plan_pruning(a, "l2", 0.6), progress=False)


def test_automatic_names_of_inputs_do_not_count():
    assert fingerprint(ops_model(image=None)) == fingerprint(ops_model(image=None))


def test_one_changed_weight_is_another_model():
    model = ZOO["residual_projection"]()
    before = fingerprint(model)
    for variable in (model.get_layer("b2").kernel, model.get_layer("a2_bn").moving_variance):
        value = variable.numpy().copy()
        changed = value.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], 9, dtype=value.dtype)
        variable.assign(changed)
        after = fingerprint(model)
        assert after["weights"] != before["weights"]
        assert after["topology"] == before["topology"]
        variable.assign(value)
        assert fingerprint(model) == before


def chain(order=("a", "b"), add=False, names=("conv1", "conv2")):
    x = keras.Input((8, 8, 3), name="image")
    a = keras.layers.Conv2D(3, 3, padding="same", name=names[0])(x)
    b = keras.layers.Conv2D(3, 3, padding="same", name=names[1])({"a": a, "b": x}[order[0]])
    join = keras.layers.Add(name="join") if add else keras.layers.Multiply(name="join")
    y = keras.layers.Dense(2, name="fc")(keras.layers.GlobalAveragePooling2D(name="gap")(join([a, b])))
    model = keras.Model(x, y, name="chain")
    for variable in model.weights:
        variable.assign(np.ones(variable.shape))
    return model


@pytest.mark.parametrize(
    "other",
    [{"order": ("b", "a")}, {"add": True}, {"names": ("conv1", "conv3")}],
    ids=["wiring", "operation", "layer name"],
)
def test_another_wiring_is_another_model(other):
    assert fingerprint(chain()) == fingerprint(chain())
    assert fingerprint(chain())["topology"] != fingerprint(chain(**other))["topology"]


@pytest.mark.parametrize(
    "other",
    [{"cut": slice(3, 6)}, {"constant": 3.0}, {"activation": "tanh"}],
    ids=["slice", "constant", "activation"],
)
def test_other_arguments_are_another_model(other):
    assert fingerprint(ops_model())["topology"] != fingerprint(ops_model(**other))["topology"]


# ------------------------------------------------------------------------------------------------------- files


def test_saving_replaces_a_file_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    plan = kfp.plan_pruning(ZOO["plain_chain"](), "l1", 0.5)
    plan.save(path)
    before = path.read_bytes()
    other = kfp.plan_pruning(ZOO["plain_chain"](), "l1", 0.7)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(errors.FileError, match=r"cannot write .*No space left on device"):
            other.save(path)
    assert path.read_bytes() == before
    unserialisable = dataclasses.replace(plan, seed=object())
    with pytest.raises(TypeError):
        unserialisable.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    other.save(str(path))
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_file_is_readable_like_any_new_file(tmp_path):
    kfp.plan_pruning(ZOO["plain_chain"](), "l1", 0.5).save(tmp_path / "plan.json")
    (tmp_path / "other").write_text("")
    assert os.stat(tmp_path / "plan.json").st_mode == os.stat(tmp_path / "other").st_mode


# ------------------------------------------------------------------------------------------------------ report


@pytest.mark.parametrize("name", ["residual_projection", "convnext", "depthwise", "nested_functional", "conv1d_lstm"])
def test_report_numbers_agree_with_the_models(name):
    model = ZOO[name]()
    small, report = kfp.prune_model(model, "l2", kfp.FiltersBudget(0.5), return_report=True, progress=False)
    assert report.plan.cost["params"] == [model.count_params(), small.count_params()]
    assert sum(r.params for r in report.layers) == model.count_params()
    assert sum(r.params_after for r in report.layers) == small.count_params()
    assert [sum(r.macs for r in report.layers), sum(r.macs_after for r in report.layers)] == report.plan.cost["macs"]
    cost = kfp.budgets.CostModel(kfp.analyze(small))
    assert cost.macs(cost.sizes) == report.plan.cost["macs"][1]
    for row in report.layers:
        if row.layer in report.plan.kept:
            assert row.kept == len(report.plan.kept[row.layer])
            old, new = find(model, row.layer), find(small, row.layer)
            for attribute in ("filters", "units"):
                if hasattr(old, attribute):
                    assert (row.channels, row.kept) == (getattr(old, attribute), getattr(new, attribute))
    assert report.pinned == report.plan.pinned
    assert 0 <= report.verification <= 1e-4
    assert report.compensation == "none"


def find(model, path):
    for part in path.split("/"):
        model = model.get_layer(part)
    return model


def test_report_is_json_and_a_table():
    model = ZOO["convnext"]()
    _, report = kfp.prune_model(model, "l2", 0.6, return_report=True, progress=False)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["plan"] == json.loads(json.dumps(report.plan.to_dict()))
    assert len(content["layers"]) == len(report.layers)
    assert content["layers"][0]["params"] == report.layers[0].params
    assert content["approximate"]
    assert set(content["approximate"]) <= {g["name"] for g in content["plan"]["groups"]}
    before, after = report.plan.cost["macs"]
    assert f"MACs {before:,} -> {after:,} ({100 * after / before:.1f} %)" in report.summary()
    assert f"surgery verified to {report.verification:.1e} relative; compensation: none" in report.summary()
    assert report.table().row_count == len(report.layers)


def test_report_without_verification_says_so():
    model = ZOO["plain_chain"]()
    _, report = kfp.prune_model(model, "l2", 0.6, verify=False, return_report=True)
    assert report.verification is None
    assert "surgery not verified" in report.summary()
    assert json.dumps(report.to_dict())


# ------------------------------------------------------------------------------------------------- edited plans


def edited_plan(model, kept):
    """The plan with the first group keeping other units, the way a user edits plan.json."""
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(0.5))
    groups = copy.deepcopy(plan.groups)
    groups[0]["kept"] = kept
    return dataclasses.replace(plan, groups=groups)


def test_an_edited_plan_keeps_what_it_says():
    model = ZOO["plain_chain"]()
    small = kfp.apply_plan(model, edited_plan(model, [1, 4]), progress=False)
    np.testing.assert_array_equal(
        small.get_layer("conv1").kernel.numpy(), model.get_layer("conv1").kernel.numpy()[..., [1, 4]]
    )


def test_the_report_of_an_edited_plan_tells_what_was_done():
    model = ZOO["plain_chain"]()
    small, report = kfp.apply_plan(model, edited_plan(model, [1, 4]), return_report=True, progress=False)
    assert report.layers[0].kept == 2
    assert report.plan.kept["conv1"].tolist() == [1, 4]
    assert report.plan.cost["params"][1] == small.count_params()


def test_a_group_left_out_of_a_plan_stays_whole_with_a_report_too():
    model = ZOO["convnext"]()
    plan = kfp.plan_pruning(model, "l2", 0.6)
    plan = dataclasses.replace(plan, groups=plan.groups[1:])
    small, _ = kfp.apply_plan(model, plan, return_report=True, progress=False)
    assert small.get_layer("stem").filters == model.get_layer("stem").filters
