"""What runs at once is bounded, and what is measured does not depend on it."""

import itertools

import keras
import numpy as np
import pytest
from builders import images, labelled_images, predict
from hypothesis import given
from hypothesis import strategies as st
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import compensators, criteria
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe import Weights, memory
from keras_filterprune.probe.execute import Executor
from keras_filterprune.probe.gradients import BATCH, gate_gradients, weight_gradients
from keras_filterprune.probe.inputs import calibration_inputs

X, Y = labelled_images(count=160)


def trained_like(seed: int = 0) -> keras.Model:
    """Shortcuts, strides and a head, so that maps grow smaller on the way."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv1")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    y = keras.layers.Conv2D(12, 3, padding="same", activation="relu", name="conv2")(x)
    x = keras.layers.Add()([x, keras.layers.Conv2D(8, 3, padding="same", name="conv3")(y)])
    x = keras.layers.Conv2D(12, 3, strides=2, activation="relu", name="conv4")(x)
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu", name="conv5")(x)
    x = keras.layers.Dense(10, activation="relu", name="dense")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


@pytest.fixture
def little(monkeypatch):
    """Room for one to three samples of `trained_like`, as if they were large."""

    def allow(samples: float) -> None:
        model = trained_like()
        most = max(memory.live_values(view_model(model), 8 * 8 * 3))
        # The outputs of a batch are held together wherever its loss is differentiated.
        monkeypatch.setattr(memory, "MOST_VALUES", max(int(samples * most), BATCH * model.output_shape[-1]))

    return allow


@pytest.mark.parametrize("name", ["residual_projection", "unet", "siamese", "dict_input_output", "flatten_dense"])
def test_living_values_are_those_that_an_executor_holds(name):
    model = ZOO[name]()
    view = view_model(model)
    inputs = [
        np.zeros((1, *(n or 8 for n in view.calls[ref.call].output_shapes[0][1:])), "float32") for ref in view.inputs
    ]
    executor = Executor(view)
    executor.feed([keras.ops.convert_to_tensor(x) for x in inputs])
    live = memory.live_values(view, sum(x.size for x in inputs))
    for number, call in enumerate(view.calls):
        if call.inputs:
            before = dict(executor._values)
            outputs = executor.step(number)
            held = sum(int(np.prod(value.shape)) for value in [*before.values(), *outputs])
            assert live[number] == held, call.path


def test_images_of_open_size_count_as_large_as_they_are():
    inputs = keras.Input((None, None, 3))
    view = view_model(keras.Model(inputs, keras.layers.Conv2D(5, 1)(keras.layers.Conv2D(4, 1)(inputs))))
    assert max(memory.live_values(view, 32 * 32 * 3)) == 32 * 32 * 9


@given(st.integers(0, 300), st.integers(1, 40))
def test_slices_are_even_and_leave_nothing_out(count, size):
    slices = memory.even_slices(count, size)
    assert [n for part in slices for n in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in slices]
    assert all(n <= size for n in sizes) and len(slices) == -(-count // size)
    assert len(set(sizes)) <= 2 and len(set(sizes[:-1])) <= 1


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30), st.integers(1, 5000))
def test_samples_join_as_soon_as_they_fit_and_twice_as_many_do(live, samples):
    joins = list(memory.joining(live, samples))
    assert joins[0][0] == 0
    count = 0
    for number, values in enumerate(live):
        count = dict(joins).get(number, count)
        assert count == 1 or count * values <= memory.MOST_VALUES
    fit = [min(samples, max(1, memory.MOST_VALUES // max(live[number:]))) for number in range(len(live))]
    counts = [n for _, n in joins]
    assert all(b >= min(2 * a, samples) for a, b in itertools.pairwise(counts))
    assert counts[-1] > fit[-1] // 2


CRITERIA = {
    "CaP": (criteria.CaP, X),
    "Energy": (criteria.Energy, X),
    "OutputPursuit": (criteria.OutputPursuit, X),
    # These solve for nothing, which would take many samples.
    "Genetic": (criteria.Genetic, X[:20]),
    "APoZ": (criteria.APoZ, X[:20]),
    "MeanActivation": (criteria.MeanActivation, X[:20]),
    "Taylor": (criteria.Taylor, (X[:20], Y[:20])),
    "TaylorGate": (criteria.TaylorGate, (X[:20], Y[:20])),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_do_not_depend_on_how_many_samples_run_at_once(name, little):
    criterion, data = CRITERIA[name]
    graph = kfp.analyze(trained_like())
    weights = Weights(graph.view)

    def scores() -> np.ndarray:
        observed = criterion().observe(graph, weights, data, False)
        found = np.concatenate([observed.scores(group, weights) for group in graph.groups])
        # The deviation of the outputs, which all share, is that of the first samples.
        return found / found.mean()

    whole = scores()
    samples = len(data[0]) if isinstance(data, tuple) else len(data)
    # One by one takes long where something is solved for.
    for room, size in ((0.1, 1), (7, 7)) if samples < 100 else ((7, 7),):
        little(room)
        assert len(calibration_inputs(data, graph.view).slices()) == -(-samples // size)
        np.testing.assert_allclose(scores(), whole, rtol=2e-3, atol=1e-9, err_msg=str(room))


def test_gradients_of_a_batch_do_not_depend_on_it_either(little):
    graph = kfp.analyze(trained_like())
    keys = [("conv1", "kernel"), ("dense", "kernel")]

    def found() -> list:
        (weights,) = weight_gradients(graph.view, (X[:20], Y[:20]), keys, False)
        (gates,) = gate_gradients(graph, (X[:20], Y[:20]), False)
        return [*weights.values(), gates]

    whole = found()
    little(3)
    for a, b in zip(found(), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_samples_join_behind_layers_that_are_adjusted_to_fewer(little):
    """Where 10 samples fit it is a run with 10; what comes behind sees what all of them become there."""
    model, x = trained_like(), images(200, seed=3)

    def pruned(data: np.ndarray) -> tuple[keras.Model, str]:
        settings = {"data": data, "compensate": compensators.LeastSquares(), "return_report": True, "progress": False}
        small, report = kfp.prune_model(model, "l2", 0.5, **settings)
        return small, report.compensation

    few, all_at_once = pruned(x[:10])[0], pruned(x)
    assert "on 200 samples" in all_at_once[1]
    little(10)
    small, said = pruned(x)
    assert "on 10 to 200 samples" in said
    for name in ("conv2", "conv3"):
        weights = zip(small.get_layer(name).weights, few.get_layer(name).weights, strict=True)
        assert all(np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in weights), name

    # The last layer is the regression on all 200 samples, whatever lies before it.
    def read(net: keras.Model) -> np.ndarray:
        return predict(keras.Model(net.input, net.get_layer("head").input), x)[0].astype(np.float64)

    wanted = predict(model, x)[0]
    columns = np.column_stack([read(small), np.ones(200)])
    best = columns @ np.linalg.lstsq(columns, wanted, rcond=None)[0]
    scale = np.sqrt(wanted.var(axis=0) / best.var(axis=0))
    best = best.mean(axis=0) + scale * (best - best.mean(axis=0))
    np.testing.assert_allclose(predict(small, x)[0], best, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("most", [1, 2, 4, 7, 15, 100])
def test_few_samples_are_spread_over_all(most):
    """Data may be sorted, and is held in the parts it was read in."""
    view = kfp.analyze(keras.Sequential([keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)])).view
    numbers = np.arange(15.0)[:, None]
    inputs = calibration_inputs(np.split(numbers, [5, 6, 13]), view)
    few = inputs.spread(most)
    found = few.arrays()[0][:, 0]
    assert len(few) == len(found) <= most and len(inputs) == 15
    assert found[0] == 0 and found[-1] >= 15 - 15 / len(found) - 1
    assert len(set(np.diff(found))) <= 1
