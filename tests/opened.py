"""An oracle for opened models: the original, with zeros in the weights that read removed channels.

It shares no code with what opens: which weight of the original is which is told by their values.
"""

import keras
import numpy as np

import keras_filterprune as kfp
from keras_filterprune.graph import Kept
from keras_filterprune.graph.keras_view import named_weights


def randomised(model):
    """Distinct numbers for all weights, so that a value tells the weight."""
    generator = np.random.default_rng(7)
    for variable in model.variables:
        if "seed" not in variable.path:
            low = 0.5 if "variance" in variable.path or "gamma" in variable.path else -0.7
            variable.assign(generator.uniform(low, 1.0, variable.shape).astype("float32"))
    return model


def batch(opened, count=4):
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
            id(v): v
            for v in model.weights
            if v.shape == variable.shape and np.array_equal(keras.ops.convert_to_numpy(v.value), value)
        }.values()
        found[id(variable)] = twin
    return found


def masked_original(model, graph, plan):
    """The original, with zeros where it makes and reads channels that the plan removes.

    Where channels end in a product of two tensors, no weight reads them.
    """
    alive = Kept(graph, {entry["name"]: entry["kept"] for entry in plan.groups}).alive
    of, ops = twins(model, graph.model), {call.path: call.op for call in graph.view.calls}
    for bind in graph.binds:
        gone = ~alive[bind.ids]
        if gone.any() and "variance" not in bind.weight:
            variable = of[id(named_weights(ops[bind.layer])[bind.weight])]
            value = np.moveaxis(np.array(keras.ops.convert_to_numpy(variable.value)), bind.axis, 0)
            value[gone] = 0
            variable.assign(np.moveaxis(value, 0, bind.axis))
    return model


def assert_pruned_is_masked(model, keep=0.6, tolerance=1e-5, graph=None):
    """Prune a model, opened inside unless its graph is given, and compare with the masked original.

    Returns the pruned model, inputs and its outputs.
    """
    graph = graph or kfp.analyze(model)
    # Opening is most of the time, and done once.
    plan = kfp.plan_pruning(graph.model, "l2", kfp.FiltersBudget(keep=keep), progress=False)
    small = kfp.apply_plan(graph.model, plan, compensate="none", verify=False, progress=False)
    x = batch(graph.model)
    before = graph.model.count_params()
    found = outputs(small, x)
    assert_close(outputs(masked_original(model, graph, plan), x), found, tolerance)
    assert small.count_params() < before
    return small, x, found
