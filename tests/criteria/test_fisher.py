"""Group Fisher: gradients of single samples, added over readers before they are squared, per what a unit frees."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, compiled, images, keeping, network, observed, predict, shrunk, total_macs
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import criteria
from keras_filterprune.probe.gates import sample_gate_gradients
from keras_filterprune.probe.gradients import BATCH

NETWORKS = {"coupled": network} | {
    name: ZOO[name] for name in ("flatten_dense", "shared_conv", "depthwise", "grouped_conv", "nested_functional")
}
LAYERS = "Conv1D Conv2D DepthwiseConv2D Dense SeparableConv2D".split()


def losses(model, x, y):
    """Cross-entropy of every sample, (samples,)."""
    scores = predict(model, x)[0]
    logits = scores - scores.max(axis=1, keepdims=True)
    if not np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return -np.log(scores[np.arange(len(y)), y])


def by_differences(graph, group, unit, x, y, step=3e-3):
    """sum_n (dL_n/dm)^2 of a factor m on everything that reads a unit, by central differences."""
    layers = {call.path: call.op for call in graph.view.calls if call.inputs}
    found = []
    for factor in (1 + step, 1 - step):
        kept = []
        for member in (m for m in group.members if m.role == "input"):
            variable = getattr(layers[member.layer], member.weight)
            kept.append((variable, array(variable)))
            value = np.moveaxis(array(variable).copy(), member.axis, 0)
            value[member.positions[unit]] *= factor
            variable.assign(np.moveaxis(value, 0, member.axis))
        found.append(losses(graph.model, x, y))
        for variable, value in kept:
            variable.assign(value)
    return np.square((found[0] - found[1]) / (2 * step)).sum()


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_squared_differences_of_the_losses_of_single_samples(name):
    model = NETWORKS[name]()
    x = random_inputs(model, batch=5, seed=1)
    y = np.arange(5) % model.output_shape[1]
    graph, weights, criterion = observed(criteria.GroupFisher(None), model, (x, y))
    for group in graph.groups:
        expected = np.array([by_differences(graph, group, unit, x, y) for unit in range(group.size)])
        np.testing.assert_allclose(
            criterion.scores(group, weights), expected, rtol=3e-2, atol=2e-3 * max(expected.max(), 1e-3)
        )


def outputs(model):
    """Values of one sample that the layers with kernels give out."""
    layers = [layer for layer in model.layers if type(layer).__name__ in LAYERS]
    return sum(int(np.prod(layer.output.shape[1:])) for layer in layers)


@pytest.mark.parametrize("name", ["coupled", "flatten_dense", "depthwise", "grouped_conv"])
def test_memory_and_macs_are_those_that_a_unit_frees(name):
    model = NETWORKS[name]()
    x = random_inputs(model, batch=4, seed=1)
    data = x, np.arange(4) % model.output_shape[1]
    graph, weights, plain = observed(criteria.GroupFisher(None), model, data)
    by_memory, by_macs = (
        criteria.GroupFisher(kind).observe(graph, weights, data, False) for kind in ("memory", "macs")
    )
    costs = kfp.budgets.CostModel(graph)
    for number, group in enumerate(graph.groups):
        fewer = kfp.apply_plan(model, keeping(model, **{group.name: range(group.size - 1)}), compensate="none")
        score = plain.scores(group, weights)
        np.testing.assert_allclose(
            by_memory.scores(group, weights) * (outputs(model) - outputs(fewer)), score, rtol=1e-5
        )
        price = by_macs.scores(group, weights) * costs.macs.gradient(costs.sizes)[number]
        np.testing.assert_allclose(price, score, rtol=1e-5)


def test_a_samples_gradient_depends_on_no_other_and_on_no_batch():
    """Through several batches, each of several parts."""
    model, count = network(), BATCH + 11
    x, y = images(count), np.arange(count) % 3
    graph = kfp.analyze(model)
    whole = np.concatenate(list(sample_gate_gradients(graph, (x, y), False)))
    assert whole.shape == (count, graph.unit_of_id.max() + 1)
    for chosen in ([0, 1], [5, BATCH + 3, 70], [BATCH - 1, BATCH, BATCH + 10]):
        alone = np.concatenate(list(sample_gate_gradients(graph, (x[chosen], y[chosen]), False)))
        np.testing.assert_allclose(alone, whole[chosen], rtol=1e-3, atol=1e-5 * np.abs(whole).max())


def test_of_equal_losses_the_larger_map_goes_first():
    keras.utils.set_random_seed(0)
    x = y = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(4, 1, name="large", use_bias=False)(y)
    y = keras.layers.Conv2D(4, 1, strides=2, name="small", use_bias=False)(y)
    model = keras.Model(x, keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D()(y)))
    # Whatever enters the second layer leaves it: a mask before it does what one behind it does.
    model.get_layer("small").kernel.assign(np.eye(4).reshape(1, 1, 4, 4))
    graph, weights, criterion = observed(criteria.GroupFisher(), model, (images(16), np.arange(16) % 3))
    large, small = (criterion.scores(graph.by_name[name], weights) for name in ("large", "small"))
    np.testing.assert_allclose(small, 4 * large, rtol=1e-4)


def test_heads_of_attention_stay_whole_and_say_why():
    x = keras.Input((6, 8))
    y = keras.layers.MultiHeadAttention(4, 4, name="attention")(x, x)
    y = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(8, name="own")(y)))
    data = images(16, (6, 8)), np.arange(16) % 3
    plan = kfp.plan_pruning(keras.Model(x, y), "group_fisher", kfp.FiltersBudget(0.5), data=data, progress=False)
    reasons = {pin["layer"]: pin["reason"] for pin in plan.pinned}
    assert "is read where no mask of a sample can stand" in reasons.values()
    assert {g["name"]: len(g["kept"]) for g in plan.groups}["own"] == 4


def test_the_papers_loop_masks_while_the_network_trains():
    model, data = compiled(network()), (images(64), np.arange(64) % 3)
    masked = kfp.apply_filter_pruning(model)
    schedule = kfp.callbacks.PruningSchedule(kfp.callbacks.polynomial(0.5, epochs=3), "group_fisher", data=data)
    masked.fit(*data, epochs=4, verbose=0, callbacks=[schedule])
    assert total_macs(shrunk(kfp.strip_wrappers(masked))) <= 0.5 * total_macs(model)


@pytest.mark.parametrize("normalise", ["flops", True, 0, "zz"])
def test_what_it_is_divided_by_is_known(normalise):
    with pytest.raises(kfp.errors.UnknownNameError, match="normalise is one of memory, macs, or None"):
        criteria.GroupFisher(normalise)
