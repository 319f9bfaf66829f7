"""Grow-and-prune and shrinkage by percentage, against loops that are written out."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, assert_same, chain, compiled, labelled_images, network, shrunk, total_macs
from zoo import random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.training.base import wrappers_of

# Every layer for itself: what a loop can follow.
BY_LAYER = kfp.Method(kfp.criteria.L2(), kfp.allocators.Uniform())
READER = {"conv0": "conv1", "conv1": "conv2", "conv2": "head"}


def masks(model: keras.Model) -> dict[str, np.ndarray]:
    found = {wrapper.layer.name: array(wrapper.mask) > 0 for wrapper in wrappers_of(model, kfp.layers.FilterPruning)}
    return {name: found[reader] for name, reader in READER.items()}


def kernel(model: keras.Model, name: str) -> keras.Variable:
    inner = {w.layer.name: w.layer for w in wrappers_of(model, kfp.layers.FilterPruning)}
    return (inner[name] if name in inner else model.get_layer(name)).kernel


def norms(model: keras.Model, name: str) -> np.ndarray:
    return np.sqrt(np.square(array(kernel(model, name))).sum((0, 1, 2)))


def shaken(model: keras.Model, rng: np.random.Generator) -> None:
    """As if an optimizer had made a step: weights that masks hide stay."""
    seen = masks(model)
    for name, reader in READER.items():
        kernel(model, name).assign(array(kernel(model, name)) * rng.uniform(0.3, 1.7, kernel(model, name).shape[-1]))
        step = 0.1 * rng.normal(size=kernel(model, reader).shape) * seen[name].reshape((-1, 1))
        kernel(model, reader).assign(array(kernel(model, reader)) + step.astype("float32"))


@pytest.mark.parametrize(("parts", "epochs", "cycles"), [(3, 1, 1), (3, 2, 2), (2, 1, 1), (1, 3, 1)])
def test_one_part_after_the_other_grows_as_in_a_loop(parts, epochs, cycles):
    dense, rng = chain((8, 12, 10)), np.random.default_rng(0)
    plan = kfp.plan_pruning(dense, BY_LAYER, 0.5, progress=False)
    count = {group["name"]: len(group["kept"]) for group in plan.groups}
    assert all(1 < count[name] < size for name, size in zip(READER, (8, 12, 10), strict=True))
    model = kfp.apply_filter_pruning(dense)
    callback = kfp.callbacks.GrowAndPrune(0.5, parts, epochs, cycles, BY_LAYER)
    assert callback.last_cut == parts * epochs * cycles
    callback.set_model(model)
    callback.set_params({"epochs": 99})
    callback.on_train_begin()
    is_open = {name: np.ones(size, bool) for name, size in zip(READER, (8, 12, 10), strict=True)}
    for epoch in range(callback.last_cut + 2):
        shaken(model, rng)
        readers = {name: array(kernel(model, reader)).copy() for name, reader in READER.items()}
        if epoch % epochs == 0 and epoch <= callback.last_cut:
            before = {name: seen.copy() for name, seen in is_open.items()}
            for name, seen in is_open.items():
                score = np.where(seen, norms(model, name), -1)
                is_open[name] = np.isin(np.arange(len(seen)), np.argsort(-score)[: count[name]])
            if epoch < callback.last_cut:
                for name in np.array_split(list(READER), parts)[epoch // epochs % parts]:
                    is_open[name][:] = True
            for name, seen in is_open.items():
                readers[name][..., seen & ~before[name], :] = 0
        callback.on_epoch_begin(epoch)
        logs: dict[str, float] = {}
        callback.on_epoch_end(epoch, logs)
        for name, seen in masks(model).items():
            np.testing.assert_array_equal(seen, is_open[name])
            np.testing.assert_array_equal(array(kernel(model, READER[name])), readers[name])
        assert logs["kept_filters"] == sum(seen.sum() for seen in is_open.values()) + 3
    small, x = shrunk(kfp.strip_wrappers(model)), random_inputs(dense)
    assert_same(model, small, x, 1e-5)
    assert total_macs(small) == logs["macs_if_pruned"] <= 0.5 * total_macs(dense)


def fit(model: keras.Model, callback, epochs: int, first: int = 0) -> dict:
    x, y = labelled_images()
    settings = {"batch_size": 16, "shuffle": False, "verbose": 0, "callbacks": [callback]}
    return model.fit(x, y, epochs=epochs, initial_epoch=first, **settings).history


@pytest.fixture(scope="module")
def straight():
    """A model that grew without a break, and the logs."""
    model = compiled(kfp.apply_filter_pruning(network()), run_eagerly=True)
    return model, fit(model, kfp.callbacks.GrowAndPrune(0.5, parts=2, epochs=2), 6)


@pytest.mark.parametrize("stop", [2, 3], ids=["between two parts", "within one"])
def test_growing_goes_on_after_loading_as_if_nothing_had_happened(straight, stop, tmp_path):
    (straight, history), broken = straight, compiled(kfp.apply_filter_pruning(network()), run_eagerly=True)
    fit(broken, kfp.callbacks.GrowAndPrune(0.5, parts=2, epochs=2), stop)
    broken.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    with pytest.warns(UserWarning, match="before the budget was met"):
        kfp.strip_wrappers(loaded)
    rest = fit(loaded, kfp.callbacks.GrowAndPrune(0.5, parts=2, epochs=2), 6, first=stop)
    for a, b in zip(straight.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert rest["macs_if_pruned"] == history["macs_if_pruned"][stop:]
    small = shrunk(kfp.strip_wrappers(straight))
    assert_same(straight, small, labelled_images()[0], 1e-5)
    assert history["macs_if_pruned"][0] > 0.5 * total_macs(network()) >= history["macs_if_pruned"][-1]
    assert total_macs(small) == history["macs_if_pruned"][-1]


def test_training_that_is_stopped_while_a_part_is_grown_says_so():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model, (x, y) = compiled(kfp.apply_filter_pruning(network()), run_eagerly=True), labelled_images()
    with pytest.warns(UserWarning, match=r"training was stopped at keep=.*start_from_epoch=4"):
        model.fit(x, y, epochs=9, verbose=0, callbacks=[kfp.callbacks.GrowAndPrune(0.5), Stop()])


@pytest.mark.parametrize("settings", [{"parts": 0}, {"epochs": 1.5}, {"cycles": -1}])
def test_settings_out_of_range(settings):
    with pytest.raises(errors.InvalidValueError, match=next(iter(settings))):
        kfp.callbacks.GrowAndPrune(0.5, **settings)
    with pytest.raises(errors.InfeasibleBudgetError, match="keep"):
        kfp.callbacks.GrowAndPrune([0.7, 0.5])


def test_shrinkage_by_percentage_is_the_loop_of_the_paper():
    model, rng = chain((8, 12, 10)), np.random.default_rng(1)
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(weight + 0.1 * rng.uniform(size=weight.shape))
    callback = kfp.callbacks.SoftPruning(0.5, BY_LAYER, rho=0.95, every=1)
    plan = kfp.plan_pruning(model, BY_LAYER, 0.5, progress=False)
    low = {group["name"]: group["size"] - len(group["kept"]) for group in plan.groups}
    callback.set_model(model)
    callback.on_epoch_begin(0)
    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for step in range(6):
        for name in READER:
            change = rng.uniform(0.5, 1.5, model.get_layer(name).filters)
            model.get_layer(name).kernel.assign(array(model.get_layer(name).kernel) * change)
        expected = {}
        for name, normalization in zip(READER, normalizations, strict=True):
            conv = model.get_layer(name)
            weakest = np.argsort(np.sqrt(np.square(array(conv.kernel)).sum((0, 1, 2))))[: low[name]]
            for variable in (conv.kernel, conv.bias, normalization.gamma, normalization.beta):
                value = array(variable).copy()
                value[..., weakest] *= 0.95
                expected[id(variable)] = variable, value
        others = {id(v): (v, array(v).copy()) for v in model.weights if id(v) not in expected}
        callback.on_train_batch_end(step)
        for variable, value in (expected | others).values():
            np.testing.assert_allclose(array(variable), value, rtol=1e-6, err_msg=variable.path)
