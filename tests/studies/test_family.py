"""One network at several sizes: nested, costed, resumable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import assert_all_equal, chain, images, total_macs, values

import keras_filterprune as kfp
from keras_filterprune import studies
from keras_filterprune.errors import FileError, InfeasibleBudgetError, InvalidValueError
from keras_filterprune.methods import as_method
from keras_filterprune.studies import family as module

SHARES = (0.7, 0.5, 0.3)
QUIET = {"progress": False}


def network():
    return chain((12, 10, 8))


def test_every_size_is_a_run_from_the_size_before():
    model = network()
    family = kfp.prune_family(model, SHARES, "l2", **QUIET)
    assert family.models[0] is model
    assert [row.keep for row in family.rows] == [1.0, *SHARES]
    whole, before = total_macs(model), model
    for share, row, small in zip(SHARES, family.rows[1:], family.models[1:], strict=True):
        assert row.macs == total_macs(small) <= share * whole
        budget = kfp.MacsBudget(keep=share * whole / total_macs(before))
        assert_all_equal(values(kfp.prune_model(before, "l2", budget, **QUIET)), values(small))
        before = small


def test_with_data_the_original_teaches_every_size(monkeypatch):
    monkeypatch.setattr(module, "_STEPS", 10)
    model, x = network(), images(64, (6, 6, 3))
    family = kfp.prune_family(model, (0.7, 0.5), data=x, **QUIET)
    taught = kfp.compensators.Reconstruct(10, teacher=model)
    recipe = replace(as_method("auto", 0, True), rounds=1, compensator=taught)
    before = model
    for share, small in zip((0.7, 0.5), family.models[1:], strict=True):
        budget = kfp.MacsBudget(keep=share * total_macs(model) / total_macs(before))
        before = kfp.prune_model(before, recipe, budget, data=x, **QUIET)
        assert_all_equal(values(before), values(small))


def test_an_interrupted_family_goes_on(tmp_path):
    model, trained = network(), []

    def interrupted(small):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(small)

    with pytest.raises(KeyboardInterrupt):
        kfp.prune_family(model, SHARES, "l2", finetune=interrupted, folder=tmp_path, **QUIET)
    resumed = kfp.prune_family(model, SHARES, "l2", finetune=trained.append, folder=tmp_path, **QUIET)
    assert len(trained) == 3
    whole = kfp.prune_family(model, SHARES, "l2", **QUIET)
    for one, other in zip(resumed.models, whole.models, strict=True):
        assert_all_equal(values(one), values(other))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "family.json",
        "keep-0.3.keras",
        "keep-0.5.keras",
        "keep-0.7.keras",
    ]
    x = images(16, (6, 6, 3))
    for other in ({"method": "l1"}, {"data": x}, {"finetune": None}, {"min_filters": 2}, {"budgets": (0.7, 0.5)}):
        given = {"budgets": SHARES, "method": "l2", "finetune": trained.append, **QUIET} | other
        with pytest.raises(FileError, match="holds another family"):
            kfp.prune_family(model, folder=tmp_path, **given)
    (tmp_path / "keep-0.5.keras").write_bytes(b"cut")
    with pytest.raises(FileError, match="cut or changed"):
        kfp.prune_family(model, SHARES, "l2", finetune=trained.append, folder=tmp_path, **QUIET)


def test_what_cannot_be_taught_is_refitted_and_said():
    model, x = network(), images(12, (6, 6, 3))
    with pytest.warns(UserWarning, match=r"keep=0\.5 is refitted; not taught by the original, which takes 16 samples"):
        family = kfp.prune_family(model, (0.5,), data=x, **QUIET)
    assert family.rows[1].macs <= 0.5 * total_macs(model)


def test_a_file_of_the_users_is_not_replaced(tmp_path):
    (tmp_path / "keep-0.7.keras").write_bytes(b"mine")
    with pytest.raises(FileError, match="exists"):
        kfp.prune_family(network(), SHARES, "l2", folder=tmp_path, **QUIET)
    assert (tmp_path / "keep-0.7.keras").read_bytes() == b"mine"


def test_scores_choose_the_smallest_and_are_drawn(tmp_path):
    scores = iter((0.9, 0.89, 0.85, 0.5))
    family = kfp.prune_family(network(), SHARES, "l2", evaluate=lambda model: next(scores), **QUIET)
    assert family.smallest(0.85) is family.models[2]
    assert family.smallest(0.9) is family.models[0]
    with pytest.raises(InfeasibleBudgetError, match=r"has a score of 0\.95; the best is 0\.9\."):
        family.smallest(0.95)
    assert family.plot(tmp_path / "front.png").stat().st_size > 5000
    assert [row["score"] for row in family.to_dict()["rows"]] == [0.9, 0.89, 0.85, 0.5]
    assert len(family.table().rows) == 4
    assert family.rows[0].bytes == 4 * family.rows[0].params


REFUSED = {
    "rising": ({"budgets": (0.5, 0.75)}, "budgets is shares of the multiply-accumulates, falling"),
    "whole": ({"budgets": (1.0, 0.5)}, "budgets is shares"),
    "none": ({"budgets": ()}, "budgets is shares"),
    "text": ({"budgets": "half"}, "budgets is shares"),
    "evaluate": ({"evaluate": 1}, "evaluate is a function of the model"),
    "latency": ({"latency": "arm64"}, "latency is a LatencyTable"),
    "score": ({"evaluate": lambda model: np.nan}, "evaluate is to return a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(case):
    wrong, message = REFUSED[case]
    with pytest.raises(InvalidValueError, match=message):
        kfp.prune_family(network(), **{"method": "l2", **QUIET} | wrong)


def test_nothing_is_drawn_without_scores(tmp_path):
    family = kfp.prune_family(network(), (0.5,), "l2", **QUIET)
    with pytest.raises(InvalidValueError, match="pass evaluate= to prune_family"):
        family.plot(tmp_path / "front.png")
    assert isinstance(family, studies.Family)
