"""FP-OMP and LRF as criteria: what they take as filters, and that groups ranked together rank as they do alone."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune import criteria, errors
from keras_filterprune.criteria import omp
from keras_filterprune.criteria.greedy import backward_order, forward_order, replaceable_order
from keras_filterprune.graph.types import Group, Member
from keras_filterprune.probe.regression import coefficients

SELECTIONS = ("omp", "gain", "backward")


def member(layer: str, role: str, size: int) -> Member:
    """One member of an ungrouped convolution: filters on the last axis, input slices on the last but one."""
    return Member(layer, "kernel", {"filter": 3, "input": 2}[role], role, np.arange(size)[:, None])


def group_of(size: int, *members: Member) -> Group:
    return Group(members[0].layer, np.arange(size), members)


def convolution(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype("float32")


def filters(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(-1, kernel.shape[3]).T.astype(float)


def slices(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, 2, 0).reshape(kernel.shape[2], -1).astype(float)


def ranks(scores: np.ndarray) -> list[int]:
    """Units, the first to stay first."""
    return np.argsort(-scores).tolist()


def expected_order(rows: np.ndarray, selection: str) -> list[int]:
    gram = rows @ rows.T
    if selection == "backward":
        return backward_order([(gram, np.eye(len(gram)), np.arange(len(rows))[:, None])])[0][::-1].tolist()
    return forward_order(gram, selection).tolist()


@pytest.mark.parametrize("selection", SELECTIONS)
def test_scores_are_the_position_in_the_order(selection):
    kernel = convolution(np.random.default_rng(0), 3, 3, 4, 8)
    group = group_of(8, member("conv", "filter", 8), member("next", "input", 8), member("other", "input", 8))
    scores = criteria.FPOMP(selection).scores(group, {("conv", "kernel"): kernel})
    assert sorted(scores) == [k / 8 for k in range(1, 9)]
    assert ranks(scores) == expected_order(filters(kernel), selection)


def test_a_coupled_group_weighs_its_layers_equally():
    rng = np.random.default_rng(1)
    weights = {("a", "kernel"): convolution(rng, 3, 3, 4, 8), ("b", "kernel"): 50 * convolution(rng, 1, 1, 6, 8)}
    group = group_of(8, member("a", "filter", 8), member("b", "filter", 8))
    rows = np.hstack([filters(kernel) / np.linalg.norm(kernel) for kernel in weights.values()])
    for selection in SELECTIONS:
        assert ranks(criteria.FPOMP(selection).scores(group, weights)) == expected_order(rows, selection)


def test_scaling_one_filter_leaves_the_selection_of_fp_omp_unchanged():
    kernel = convolution(np.random.default_rng(2), 3, 3, 4, 12)
    scaled = kernel.copy()
    scaled[..., 3] *= 100
    group = group_of(12, member("conv", "filter", 12))
    before, after = (criteria.FPOMP().scores(group, {("conv", "kernel"): k}) for k in (kernel, scaled))
    assert before.tolist() == after.tolist()


@pytest.mark.parametrize("criterion", [criteria.FPOMP("omp"), criteria.FPOMP("gain"), criteria.LRF()], ids=repr)
def test_kept_filters_are_nested_and_reproduce_planted_duplicates(criterion):
    rng = np.random.default_rng(3)
    kernel = convolution(rng, 3, 3, 4, 6)
    kernel = np.concatenate([kernel, kernel @ rng.normal(size=(6, 6))], axis=3)[..., rng.permutation(12)]
    group = group_of(12, member("conv", "filter", 12))
    kept = [criterion.select(group, k, {("conv", "kernel"): kernel}) for k in range(1, 13)]
    assert all(set(a) < set(b) for a, b in pairwise(kept))
    rows = filters(kernel)
    found = coefficients(rows @ rows.T, kept[5])
    np.testing.assert_allclose(found @ rows[kept[5]], rows, atol=1e-6)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_papers_input_side_is_ranked_by_the_slices_that_read_it(selection):
    """conv1 -> identity 1x1 -> 3x3 -> identity 1x1: both 1x1 convolutions say nothing about the 3x3."""
    kernel = convolution(np.random.default_rng(4), 3, 3, 8, 6)
    weights = {
        ("bottom", "kernel"): np.eye(8)[None, None],
        ("conv", "kernel"): kernel,
        ("top", "kernel"): np.eye(6)[None, None],
    }
    before = group_of(8, member("bottom", "filter", 8), member("conv", "input", 8))
    after = group_of(6, member("conv", "filter", 6), member("top", "input", 6))
    for criterion in (
        (criteria.FPOMP(selection), criteria.LRF()) if selection == "backward" else (criteria.FPOMP(selection),)
    ):
        assert ranks(criterion.scores(before, weights)) == expected_order(slices(kernel), selection)
        assert ranks(criterion.scores(after, weights)) == expected_order(filters(kernel), selection)


def test_lrf_weighs_filters_by_what_reads_them_on_either_side():
    rng = np.random.default_rng(5)
    weights = {
        ("bottom", "kernel"): convolution(rng, 1, 1, 8, 8) * np.logspace(-1, 1, 8, dtype="float32"),
        ("conv", "kernel"): convolution(rng, 3, 3, 8, 6),
        ("top", "kernel"): convolution(rng, 1, 1, 6, 6) * np.logspace(1, -1, 6, dtype="float32")[:, None],
    }
    before = group_of(8, member("bottom", "filter", 8), member("conv", "input", 8))
    after = group_of(6, member("conv", "filter", 6), member("top", "input", 6))
    conv = weights["conv", "kernel"]
    sides = (
        (before, slices(conv), filters(weights["bottom", "kernel"])),
        (after, filters(conv), slices(weights["top", "kernel"])),
    )
    for group, dictionary, downstream in sides:
        order = replaceable_order(dictionary @ dictionary.T, downstream)[0][::-1].tolist()
        assert ranks(criteria.LRF().scores(group, weights)) == order
        assert ranks(criteria.FPOMP("backward").scores(group, weights)) != order


@pytest.mark.parametrize(
    "more",
    [
        (Member("bn", "gamma", 0, "channel", np.arange(8)[:, None]),),
        (member("other", "input", 8),),
        (member("other", "filter", 8),),
    ],
    ids=["normalized", "two readers", "two producers"],
)
def test_lrf_is_backward_elimination_where_no_single_layer_reads_a_single_one_linearly(more):
    rng = np.random.default_rng(6)
    weights = {
        ("conv", "kernel"): convolution(rng, 3, 3, 4, 8),
        ("next", "kernel"): convolution(rng, 5, 5, 8, 4) * np.logspace(-1, 1, 8, dtype="float32")[:, None],
        ("other", "kernel"): convolution(rng, 1, 1, 8, 8),
        ("bn", "gamma"): np.ones(8, "float32"),
    }
    alone = group_of(8, member("conv", "filter", 8), member("next", "input", 8))
    group = group_of(8, *alone.members, *more)
    criterion, plain = criteria.LRF(), criteria.FPOMP("backward")
    assert criterion.scores(group, weights).tolist() == plain.scores(group, weights).tolist()
    assert criterion.scores(group, weights).tolist() != criterion.scores(alone, weights).tolist()


def test_lrf_removes_first_the_filter_that_the_others_replace_best():
    rng = np.random.default_rng(7)
    kernel = convolution(rng, 3, 3, 4, 10)
    kernel[..., 7] = kernel[..., 1] - 2 * kernel[..., 4] + 0.5 * kernel[..., 8] + 0.01 * convolution(rng, 3, 3, 4)
    scores = criteria.LRF().scores(group_of(10, member("conv", "filter", 10)), {("conv", "kernel"): kernel})
    assert np.argmin(scores) in (1, 4, 7, 8)


@pytest.mark.parametrize(
    "criterion",
    [criteria.FPOMP("omp"), criteria.FPOMP("gain"), criteria.FPOMP("backward"), criteria.LRF()],
    ids=repr,
)
def test_more_filters_than_inputs_zero_filters_and_layers_of_zeros_are_ranked(criterion):
    kernel = convolution(np.random.default_rng(8), 1, 1, 4, 10)
    kernel[..., 6] = 0
    group = group_of(10, member("conv", "filter", 10))
    kept = criterion.select(group, 4, {("conv", "kernel"): kernel})
    assert np.linalg.matrix_rank(filters(kernel)[kept]) == 4
    scores = criterion.scores(group, {("conv", "kernel"): kernel})
    assert np.argmin(scores) == 6
    zeros = criterion.scores(group, {("conv", "kernel"): 0 * kernel})
    assert sorted(zeros) == sorted(scores)
    linear = group_of(10, member("conv", "filter", 10), member("next", "input", 10))
    weights = {("conv", "kernel"): 0 * kernel, ("next", "kernel"): np.zeros((3, 3, 10, 2))}
    assert sorted(criterion.scores(linear, weights)) == sorted(scores)


@pytest.fixture
def mixed() -> tuple[SimpleNamespace, dict]:
    """A graph of groups of two sizes, coupled, linear, dependent and zero ones among them."""
    rng = np.random.default_rng(9)
    weights, groups = {}, []
    for number in range(7):
        size = 8 if number % 2 else 12
        shape = (1, 1, 5, size) if number == 2 else (3, 3, 4, size)
        weights[f"conv{number}", "kernel"] = convolution(rng, *shape) * (number != 3)
        weights[f"next{number}", "kernel"] = convolution(rng, 3, 3, size, 9)
        reads = (member(f"next{number}", "input", size),) if number in (4, 5) else ()
        groups.append(group_of(size, member(f"conv{number}", "filter", size), *reads))
    return SimpleNamespace(groups=tuple(groups)), weights


@pytest.mark.parametrize("stack", [omp._STACK, 300, 1], ids=["together", "in pairs", "alone"])
@pytest.mark.parametrize(
    "criterion",
    [criteria.FPOMP("omp"), criteria.FPOMP("gain"), criteria.FPOMP("backward"), criteria.LRF()],
    ids=repr,
)
def test_groups_ranked_together_rank_as_they_do_alone(mixed, monkeypatch, criterion, stack):
    monkeypatch.setattr(omp, "_STACK", stack)
    graph, weights = mixed
    observed = criterion.observe(graph, weights, None, False)
    for group in graph.groups:
        assert observed.scores(group, weights).tolist() == criterion.scores(group, weights).tolist()
    assert repr(observed) == repr(criterion)


def test_what_is_ranked_together_is_not_ranked_again(mixed):
    graph, weights = mixed
    criterion = criteria.FPOMP()
    observed = criterion.observe(graph, weights, None, False)
    for group in graph.groups:
        assert observed.scores(group, {}).tolist() == criterion.scores(group, weights).tolist()
        with pytest.raises(KeyError):
            criterion.scores(group, {})
    # Other weights, another observation.
    other = {key: array[..., ::-1] for key, array in weights.items()}
    group = graph.groups[0]
    assert observed.observe(graph, other, None, False).scores(group, {}).tolist() == (
        criterion.scores(group, other).tolist()
    )


def test_representations_are_those_of_the_constructor():
    assert [repr(c) for c in (criteria.FPOMP(), criteria.FPOMP("gain"), criteria.LRF())] == [
        "FPOMP(selection='omp')",
        "FPOMP(selection='gain')",
        "LRF()",
    ]
    with pytest.raises(
        errors.UnknownNameError, match=r"selection is one of omp, gain, backward\. Received: selection='"
    ):
        criteria.FPOMP("forward")


@pytest.mark.parametrize("name", ["fp_omp", "lrf"])
def test_a_keras_model_with_1x1_convolutions_is_pruned_by_the_3x3_between_them(name):
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="stem")(x)))
    x = layers.Conv2D(8, 1, use_bias=False, name="bottom")(x)
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
    x = layers.Conv2D(6, 1, use_bias=False, name="top")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.get_layer("bottom").kernel.assign(np.eye(8)[None, None])
    model.get_layer("top").kernel.assign(np.eye(6)[None, None])
    kernel = model.get_layer("conv").kernel.numpy()
    selection = {"fp_omp": "omp", "lrf": "backward"}[name]
    plan = kfp.plan_pruning(model, name, kfp.FiltersBudget(0.5), include=["bottom", "conv"], progress=False)
    kept = {group["name"]: group["kept"] for group in plan.groups}
    for side, rows in (("bottom", slices(kernel)), ("conv", filters(kernel))):
        assert 0 < len(kept[side]) < len(rows)
        assert sorted(kept[side]) == sorted(expected_order(rows, selection)[: len(kept[side])])
