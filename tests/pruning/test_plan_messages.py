"""Plans of other models, impossible plans and damaged files get one clear sentence, and nothing changes."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from refusals import fails
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import errors


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
