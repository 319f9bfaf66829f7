"""Every kind of composite: opened it is equal, in training too; pruned it equals the original with zeroed weights."""

import keras
import numpy as np
import pytest
from composites import SITUATIONS

import keras_filterprune as kfp
from keras_filterprune.graph import Kept
from keras_filterprune.graph.keras_view import named_weights

every = pytest.mark.parametrize("name", SITUATIONS)


def randomised(model):
    """Distinct numbers for all weights, so that a value tells the weight."""
    generator = np.random.default_rng(7)
    for variable in model.variables:
        if "seed" not in variable.path:
            low = 0.5 if "variance" in variable.path or "gamma" in variable.path else -0.7
            variable.assign(generator.uniform(low, 1.0, variable.shape).astype("float32"))
    return model


def built(name):
    return randomised(SITUATIONS[name].build())


def batch(model, opened, count=4):
    generator = np.random.default_rng(3)
    flat = [
        generator.integers(0, 2, (count, *t.shape[1:]))
        if "int" in t.dtype
        else generator.normal(size=(count, *(n or 8 for n in t.shape[1:]))).astype(t.dtype)
        for t in opened.inputs
    ]
    return (
        keras.tree.pack_sequence_as(opened.input, flat) if len(flat) > 1 or isinstance(opened.input, dict) else flat[0]
    )


def outputs(model, x):
    with keras.StatelessScope():
        return [keras.ops.convert_to_numpy(y).astype(np.float64) for y in keras.tree.flatten(model(x, training=False))]


def assert_close(left, right, tolerance=1e-5):
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(1e-6, np.abs(a).max())


def twins(model, opened):
    """{id of a variable of the opened model: the original's}, told by their values."""
    found = {}
    for variable in opened.weights:
        value = keras.ops.convert_to_numpy(variable.value)
        (twin,) = {
            id(v): v for v in model.weights if v.shape == variable.shape and np.array_equal(v.numpy(), value)
        }.values()
        found[id(variable)] = twin
    return found


@every
def test_the_opened_model_is_equal(name):
    model = built(name)
    before = [np.array(v.numpy()) for v in model.variables], [layer.name for layer in model.layers]
    graph = kfp.analyze(model)
    opened, x = graph.model, batch(model, graph.model)
    tolerance = 2e-2 if name == "half_precision" else 1e-5
    assert_close(outputs(model, x), outputs(opened, x), tolerance)
    assert len(opened.trainable_weights) == len(model.trainable_weights)
    for old, new in zip(before[0], model.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    assert before[1] == [layer.name for layer in model.layers]
    closed = {type(c.op).__name__: c.closed for c in graph.view.calls if c.closed}
    assert closed.keys() == SITUATIONS[name].closed.keys()
    for kind, word in SITUATIONS[name].closed.items():
        assert word in closed[kind]


@every
def test_what_is_pruned_equals_the_original_with_zeroed_weights(name):
    model = built(name)
    graph = kfp.analyze(model)
    if not SITUATIONS[name].prunable:
        assert not graph.groups
        return
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(keep=0.6), progress=False)
    small = kfp.apply_plan(model, plan, compensate="none", progress=False)
    opened, x = graph.model, batch(model, graph.model)
    masked = masked_original(model, opened, graph, plan)
    assert_close(outputs(masked, x), outputs(small, x), 2e-2 if name == "half_precision" else 1e-5)
    assert small.count_params() < opened.count_params()


def masked_original(model, opened, graph, plan):
    """The original, with zeros where it reads channels that the plan removes."""
    alive = Kept(graph, {entry["name"]: entry["kept"] for entry in plan.groups}).alive
    of, ops = twins(model, opened), {call.path: call.op for call in graph.view.calls}
    for bind in graph.binds:
        if bind.role == "input":
            variable = of[id(named_weights(ops[bind.layer])[bind.weight])]
            value = np.moveaxis(np.array(variable.numpy()), bind.axis, 0)
            value[~alive[bind.ids]] = 0
            variable.assign(np.moveaxis(value, 0, bind.axis))
    return model
