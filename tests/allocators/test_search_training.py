"""Search with training between its rounds, also between adapters, and what a killed one leaves behind."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from builders import assert_all_equal, images, kept_counts, values
from trials import NEVER, Hook, Killed, chain, kept_of, labelled, rounds_of, trained

import keras_filterprune as kfp
from keras_filterprune import criteria, errors
from keras_filterprune.compensators.adapted_models import add_adapters, wrappable
from keras_filterprune.files import read_json, write_json

# ------------------------------------------------------------------------------------------------- search with training


def test_the_hook_sees_a_smaller_compiled_model_after_every_round(tmp_path):
    model, hook, path = chain(), Hook(), tmp_path / "search.json"
    model.compile("adam", "mse", metrics=["mae"])
    data, before = labelled(model, images()), values(model)
    small, report = trained(model, data, hook, path)
    assert hook.compiled == [True] * len(rounds_of(path))
    assert [model.count_params(), *hook.sizes] == sorted({model.count_params(), *hook.sizes}, reverse=True)
    assert hook.sizes[-1] == small.count_params() == report.plan.cost["params"][1]
    moved = keras.ops.convert_to_numpy(small.get_layer("head").bias.value - model.get_layer("head").bias.value)
    assert moved == pytest.approx(len(hook.sizes) * np.array([0.01, -0.02, 0.01]), abs=1e-5)
    assert_all_equal(before, values(model))


def test_real_training_in_the_hook():
    model = chain()
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = labelled(model, images(64))
    small, _ = trained(model, (x, y), lambda m: m.fit(x, y, batch_size=32, verbose=0) and None, compensate="auto")
    assert small.compiled
    assert all(np.isfinite(w).all() for w in values(small))


def test_units_are_the_originals_and_the_budget_is_a_share_of_the_original():
    """With a hook that does nothing the result is a slice of the original, and replays from the report."""
    model = chain()
    small, report = trained(model, labelled(model, images()), lambda m: None)
    full, left = report.plan.cost["macs"]
    cost = kfp.budgets.CostModel(kfp.analyze(small))
    assert (full, left) == (kfp.budgets.CostModel(kfp.analyze(model)).macs(np.array([8, 8, 8])), cost.macs(cost.sizes))
    assert 0.15 * full < left <= 0.4 * full
    again = kfp.apply_plan(model, report.plan, compensate="none", progress=False)
    assert_all_equal(values(small), values(again))


@pytest.mark.parametrize("at", [1, 3])
def test_a_search_killed_while_training_goes_on_where_it_was(at, tmp_path):
    model, path = chain(), tmp_path / "search.json"
    data, whole, killed, rest = labelled(model, images()), Hook(), Hook(at), Hook()
    more = {"compensate": "least_squares", "keep": 0.25}
    wanted, first = trained(model, data, whole, **more)
    assert len(whole.sizes) > 3
    with pytest.raises(Killed):
        trained(model, data, killed, path, **more)
    assert path.exists() == (at > 1)
    small, second = trained(model, data, rest, path, **more)
    assert len(killed.sizes) + len(rest.sizes) == len(whole.sizes) + 1
    assert first.plan.groups == second.plan.groups
    assert_all_equal(values(wanted), values(small))
    # The model of the last round, and no other.
    left = " ".join(sorted(p.name for p in tmp_path.iterdir()))
    assert re.fullmatch(rf"search\.json search\.json\.{len(whole.sizes)}\.[0-9a-f]{{8}}\.keras", left)


def test_a_search_killed_between_training_and_the_next_round_repeats_nothing(evaluations, tmp_path):
    model, path, hook = chain(), tmp_path / "search.json", Hook()
    data = labelled(model, images())
    wanted, _ = trained(model, data, Hook(), tmp_path / "whole.json")
    rounds = len(rounds_of(tmp_path / "whole.json"))
    evaluations.clear()
    evaluations.at = 7
    with pytest.raises(Killed):
        trained(model, data, hook, path)
    evaluations.at = NEVER
    small, _ = trained(model, data, hook, path)
    assert rounds <= len(hook.sizes) <= rounds + 1
    assert_all_equal(values(wanted), values(small))


def test_a_checkpoint_without_its_model_is_a_clear_error(tmp_path):
    model, path = chain(), tmp_path / "search.json"
    data = labelled(model, images())
    with pytest.raises(Killed):
        trained(model, data, Hook(3), path)
    (saved,) = tmp_path.glob("*.keras")
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(
        errors.FileError, match=rf"needs its model: cannot load .*{saved.name} .* Delete the checkpoint"
    ):
        trained(model, data, Hook(), path)
    saved.unlink()
    with pytest.raises(errors.FileError, match=rf"needs its model: no model at .*{saved.name}.* Delete the checkpoint"):
        trained(model, data, Hook(), path)


# What another program may write, with a digest of its own.
SEALED_AGAIN = {
    "units that are not there": {"kept": {"conv1": [0, 999]}},
    "units twice": {"kept": {"conv1": [1, 1, 0]}},
    "another group": {"kept": {"none": [0]}},
    "no units": {"kept": 3},
    "a model elsewhere": {"model": "../../elsewhere.keras"},
}


@pytest.mark.parametrize("change", SEALED_AGAIN)
def test_a_checkpoint_that_says_what_cannot_be_is_a_clear_error(change, tmp_path):
    model, path = chain(), tmp_path / "search.json"
    data = labelled(model, images())
    with pytest.raises(Killed):
        trained(model, data, Hook(3), path)
    content = read_json(path, "a checkpoint")
    write_json(path, content | {"more": content["more"] | SEALED_AGAIN[change]})
    with pytest.raises(errors.FileError, match=r"search\.json.* Delete"):
        trained(model, data, Hook(), path)


def test_a_checkpoint_deletes_its_own_models_alone(tmp_path):
    model, path = chain(), tmp_path / "run[1]"
    data = labelled(model, images())
    mine = {"run[1].best.keras", "run1.3.keras", "run[1].3.h5", "run[1].1.keras", "run[1].2.0123abcd.keras"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    trained(model, data, Hook(), path)
    left = {p.name for p in tmp_path.iterdir()}
    assert mine | {"run[1]"} < left
    assert len(left) == len(mine) + 2
    assert {(tmp_path / name).read_text() for name in mine} == {"mine"}


def test_training_goes_on_towards_a_smaller_budget(tmp_path):
    model, path, whole, first, second = chain(), tmp_path / "search.json", Hook(), Hook(), Hook()
    data = labelled(model, images())
    wanted, _ = trained(model, data, whole, keep=0.3)
    trained(model, data, first, path, keep=0.6)
    small, _ = trained(model, data, second, path, keep=0.3)
    assert len(first.sizes) + len(second.sizes) == len(whole.sizes)
    assert_all_equal(values(wanted), values(small))


# ------------------------------------------------------------------------------------------------------------- adapters


def test_both_sides_of_a_convolution_are_groups_of_their_own():
    model = chain(widths=(8, 10, 6))
    data = labelled(model, images())
    small, report = kfp.prune_model(
        model, "search", 0.6, data=data, compensate="adapter", return_report=True, progress=False
    )
    sizes = {group["name"]: group["size"] for group in report.plan.groups}
    assert {"conv2": 10, "conv2_before": 8, "conv3": 6, "conv3_before": 10}.items() <= sizes.items()
    counts = kept_counts(report.plan)
    assert counts["conv1"] == 8
    assert (counts["conv2"] - 10, counts["conv3_before"] - 10) != (0, 0)
    # Outside, every tensor keeps its width.
    assert small.get_layer("conv1").filters == 8
    last = "conv2_after" if "conv2_after" in [layer.name for layer in small.layers] else "conv2"
    assert small.get_layer(last).filters == 10
    full, left = report.plan.cost["macs"]
    whole, cost = kfp.budgets.CostModel(kfp.analyze(model)), kfp.budgets.CostModel(kfp.analyze(small))
    assert (full, left) == (whole.macs(whole.sizes), cost.macs(cost.sizes))
    assert left <= 0.6 * full


def test_a_search_between_adapters_with_training_goes_on_where_it_was(tmp_path):
    model, path = chain(), tmp_path / "search.json"
    data, whole, killed, rest = labelled(model, images()), Hook(), Hook(3), Hook()
    wanted, _ = trained(model, data, whole, compensate="adapter", keep=0.7, criterion=criteria.FPOMP())
    with pytest.raises(Killed):
        trained(model, data, killed, path, compensate="adapter", keep=0.7, criterion=criteria.FPOMP())
    small, report = trained(model, data, rest, path, compensate="adapter", keep=0.7, criterion=criteria.FPOMP())
    assert len(killed.sizes) + len(rest.sizes) == len(whole.sizes) + 1
    assert_all_equal(values(wanted), values(small))
    assert report.plan.cost["macs"][1] <= 0.7 * report.plan.cost["macs"][0]
    wide = add_adapters(model, graph := kfp.analyze(model), wrappable(graph))
    assert set(kept_of(report.plan)) == {group.name for group in kfp.analyze(wide).groups}
