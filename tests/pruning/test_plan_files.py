"""Whatever is written into a plan's file, it is either refused as no plan of this model or carried out as it stands."""

import copy
import json

import numpy as np
import pytest
from builders import array, chain
from hypothesis import event, given, settings
from hypothesis import strategies as st

import keras_filterprune as kfp
from keras_filterprune import errors

WIDTHS = {"conv0": 5, "conv1": 4}
QUIET = {"compensate": "none", "verify": False, "progress": False}

scalars = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | st.text(max_size=3)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
in_any_order = {name: st.lists(st.integers(0, n - 1), min_size=1, unique=True) for name, n in WIDTHS.items()}
kept_units = {
    name: in_any_order[name].map(sorted) | in_any_order[name] | st.lists(st.integers(-1, n), max_size=n)
    for name, n in WIDTHS.items()
}


@pytest.fixture(scope="module")
def model():
    return chain(WIDTHS.values(), side=4)


@pytest.fixture(scope="module")
def content(model):
    """What plan.json holds."""
    return kfp.plan_pruning(model, "l2", kfp.FiltersBudget(0.5)).to_dict()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("plan") / "plan.json"


def carried_out(model, file):
    """The kernels of the model that the plan in a file makes, which the report agrees with."""
    plan = kfp.PruningPlan.load(file)
    assert all(units.ndim == 1 for units in plan.kept.values())
    small, report = kfp.apply_plan(model, plan, return_report=True, **QUIET)
    assert report.summary() and report.to_dict()
    return {name: array(small.get_layer(name).kernel) for name in WIDTHS}


def expected(model, kept):
    """The kernels that are left when these units stay, and all of the groups that are not named."""
    first, second = (kept.get(name, range(width)) for name, width in WIDTHS.items())
    kernels = [array(model.get_layer(name).kernel) for name in WIDTHS]
    return {"conv0": kernels[0][..., list(first)], "conv1": kernels[1][:, :, list(first)][..., list(second)]}


@given(kept=st.fixed_dictionaries({}, optional=kept_units))
@settings(max_examples=30)
def test_units_that_rise_within_a_group_are_carried_out_and_others_refused(model, content, file, kept):
    groups = [group | {"kept": kept[group["name"]]} for group in content["groups"] if group["name"] in kept]
    file.write_text(json.dumps(content | {"groups": groups, "layers": {}}))
    if all(units and units == [n for n in range(WIDTHS[name]) if n in units] for name, units in kept.items()):
        np.testing.assert_equal(carried_out(model, file), expected(model, kept))
    else:
        with pytest.raises(errors.PlanMismatchError, match="kept is a list of increasing integers within"):
            carried_out(model, file)


def test_what_contradicts_itself_is_refused(content, file):
    twice = content["groups"] + [content["groups"][0] | {"kept": [0]}]
    layers = content["layers"] | {"conv0": {"channels": 999, "kept": [5]}}
    for edit, what in (({"groups": twice}, "group 'conv0' is there twice"), ({"layers": layers}, "1 of 999 channels")):
        file.write_text(json.dumps(content | edit))
        with pytest.raises(errors.FileError, match=f"contradicts itself: {what}"):
            kfp.PruningPlan.load(file)


def edited(draw, content):
    """The document with one entry, at any depth, removed, replaced or written twice."""
    content = copy.deepcopy(content)
    node = content
    while True:
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            break
        node = node[key]
    act = draw(st.sampled_from(["remove", "replace", "repeat"]))
    if act == "remove":
        del node[key]
    elif act == "replace":
        node[key] = draw(anything)
    elif isinstance(node, list):
        node.insert(key, node[key])
    return content


@given(data=st.data())
@settings(max_examples=60)
def test_an_edited_file_is_refused_or_means_what_it_says(model, content, file, data):
    document = edited(data.draw, content)
    file.write_text(json.dumps(document))
    try:
        found = carried_out(model, file)
    except (errors.FileError, errors.PlanMismatchError) as refused:
        event("refused")
        assert len(str(refused)) > 40
        return
    event("carried out")
    np.testing.assert_equal(found, expected(model, {group["name"]: group["kept"] for group in document["groups"]}))
