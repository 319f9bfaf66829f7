"""Every kind of composite: opened it is equal; pruned it equals the original with zeroed weights, in a file too."""

import subprocess
import sys

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


def test_what_is_pruned_equals_the_original_with_zeroed_weights(analyzed, files):
    # It writes to the model: nothing comes after it.
    name, model, _, graph = analyzed
    assert not {call.path for call in graph.view.calls if call.closed} & set(graph.by_name)
    small, x, y = assert_pruned_is_masked(model, tolerance=TOLERANCE.get(name, 1e-5), graph=graph)
    # Layers that stay closed are of the user's classes.
    if not SITUATIONS[name].closed and name not in LOCAL:
        small.save(files / f"{name}.keras")
        values = {f"x{n}": v for n, v in enumerate(keras.tree.flatten(x))} | {f"y{n}": v for n, v in enumerate(y)}
        np.savez(files / f"{name}.npz", **values)


# They hold functions or classes of the user's, or round.
LOCAL = (
    "own_functions_as_activations lambda_layer_inside stochastic_depth half_precision "
    "layer_of_keras_without_configuration"
).split()
LOADS = """
import pathlib, sys
import keras, numpy as np, keras_filterprune
for path in pathlib.Path(sys.argv[1]).glob("*.keras"):
    model = keras.saving.load_model(path)
    values = np.load(path.with_suffix(".npz"))
    x = [values[f"x{n}"] for n in range(len(model.inputs))]
    x = keras.tree.pack_sequence_as(model.input, x)
    for n, y in enumerate(keras.tree.flatten(model(x, training=False))):
        np.testing.assert_allclose(y, values[f"y{n}"], rtol=1e-5, atol=1e-6, err_msg=path.name)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of what the tests of this module have pruned so far."""
    return tmp_path_factory.mktemp("pruned")


def test_pruned_models_load_in_another_process(files):
    """Without any class of the user's."""
    assert sum(not found.closed for found in SITUATIONS.values()) - len(LOCAL) > 45
    if not any(files.iterdir()):
        pytest.skip("no composite was pruned in this run")
    command = [sys.executable, "-c", LOADS, str(files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
