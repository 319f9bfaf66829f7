"""Rounds: the budget is reached in steps, and what stays is counted in filters of the original."""

import numpy as np
import pytest
from builders import array, chain, images, total_macs

import keras_filterprune as kfp
from keras_filterprune import Method, criteria

QUIET = {"progress": False}


@pytest.mark.parametrize("rounds", [2, 3, 4])
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_rounds_go_by_equal_factors_of_the_cost(rounds, keep):
    model, seen = chain(), []
    recipe = Method(criteria.L2(), rounds=rounds)
    kfp.prune_model(model, recipe, keep, finetune=lambda small: seen.append(total_macs(small)), **QUIET)
    limits = [total_macs(model) * keep ** (number / rounds) for number in range(1, rounds + 1)]
    assert len(seen) == rounds
    assert all(0.97 * limit < macs <= limit for limit, macs in zip(limits, seen, strict=True))


@pytest.mark.parametrize("method", [Method(criteria.L2(), rounds=3), "hu_ga", "fp_omp_search"], ids=str)
def test_what_stays_is_counted_in_filters_of_the_original(method):
    model, data = chain((12, 10, 8)), (images(32, (6, 6, 3)), np.arange(32) % 3)
    small, report = kfp.prune_model(
        model, method, 0.4, data=data, compensate="none", finetune=lambda _: None, return_report=True, **QUIET
    )
    assert report.plan.kept
    read = np.arange(3)
    for name in ("conv0", "conv1", "conv2"):
        before, after = (array(m.get_layer(name).kernel) for m in (model, small))
        made = report.plan.kept.get(name, np.arange(before.shape[-1]))
        assert (after == before[:, :, read][..., made]).all()
        read = made
