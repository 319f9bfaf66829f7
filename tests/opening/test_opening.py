"""Every kind of composite: opened it is equal, in training too; pruned it equals the original with zeroed weights."""

import keras
import numpy as np
import pytest
from composites import SITUATIONS
from opened import assert_close, assert_pruned_is_masked, batch, outputs, randomised
from raw_composites import KERNELS
from text_composites import UNITS

import keras_filterprune as kfp

TOLERANCE = {"half_precision": 2e-2}


@pytest.fixture(scope="module", params=SITUATIONS)
def analyzed(request):
    """(Name, model, what stood in it before it was analyzed, its graph)."""
    model = randomised(SITUATIONS[request.param].build())
    before = (
        [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.variables],
        [layer.name for layer in model.layers],
    )
    return request.param, model, before, kfp.analyze(model)


def test_the_opened_model_is_equal(analyzed):
    name, model, before, graph = analyzed
    opened, x = graph.model, batch(graph.model)
    assert_close(outputs(model, x), outputs(opened, x), TOLERANCE.get(name, 1e-5))
    assert len(opened.trainable_weights) == len(model.trainable_weights)
    for old, new in zip(before[0], model.variables, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new.value))
    assert before[1] == [layer.name for layer in model.layers]
    closed = {type(c.op).__name__: c.closed for c in graph.view.calls if c.closed}
    assert closed.keys() == SITUATIONS[name].closed.keys()
    for kind, word in SITUATIONS[name].closed.items():
        assert word in closed[kind]
    sizes = [group.size for group in graph.groups]
    for size in (UNITS | KERNELS).get(name, ()):
        sizes.remove(size)


def test_what_is_pruned_equals_the_original_with_zeroed_weights(analyzed):
    # It writes to the model: nothing comes after it.
    name, model, _, graph = analyzed
    assert not {call.path for call in graph.view.calls if call.closed} & set(graph.by_name)
    assert_pruned_is_masked(model, tolerance=TOLERANCE.get(name, 1e-5), graph=graph)
