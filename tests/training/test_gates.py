"""Gates that are relaxed in training: what they let through, how they are moved, and that they end as hard ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, assert_same, compiled, labelled_images, network, shrunk, total_macs
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.probe.gradients import gradients
from keras_filterprune.training.base import wrappers_of

KINDS = ("gumbel", "sigmoid")
VALUES = np.array([1.5, 0.3, -0.2, 0.0, -1.0], "float32")
NOISE = np.array([-7.0, 0.5, 1.2, -0.3, 0.4], "float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def gates(kind, slope=3.0):
    """A gated dense layer of five inputs, what it is given, and 4 g + n."""
    wrapper = kfp.layers.FilterPruning(keras.layers.Dense(2), gates=kind)
    x = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    wrapper(x)
    wrapper.mask.assign(VALUES)
    wrapper.slope.assign(slope)
    wrapper.noise.assign(NOISE)
    return wrapper, x, 4 * VALUES + NOISE


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_gate_lets_through_and_how_the_loss_moves_it(kind):
    wrapper, x, logits = gates(kind)
    soft = sigmoid(3 * logits)
    factor = {"gumbel": (logits > 0).astype(float), "sigmoid": soft}[kind]
    np.testing.assert_allclose(wrapper(x, training=True), wrapper.layer((x * factor).astype("float32")), atol=1e-5)
    np.testing.assert_allclose(wrapper(x, training=False), wrapper.layer(x * (VALUES > 0)), atol=1e-6)

    def total(at):
        with keras.StatelessScope(state_mapping=[(wrapper.mask, at["mask"])]):
            return keras.ops.sum(wrapper(x, training=True))

    found = array(gradients(total, {"mask": wrapper.mask.value})["mask"])
    upstream = (x * array(wrapper.layer.kernel).sum(axis=1)).sum(axis=0)
    np.testing.assert_allclose(found, upstream * soft * (1 - soft) * 3 * 4, rtol=1e-3, atol=1e-5)


def begun(model, callback, epochs=1):
    callback.set_model(model)
    callback.set_params({"epochs": epochs})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    return callback


def test_a_filter_is_open_with_the_probability_of_its_gate_in_all_its_readers_at_once():
    gated = kfp.apply_filter_gates(network(), gates="gumbel")
    values = {"conv2_masked": np.linspace(-0.5, 0.5, 8), "conv3_masked": np.linspace(-0.2, 0.9, 12)}
    values["head_masked"] = values["conv2_masked"]
    wrappers = {wrapper.name: wrapper for wrapper in wrappers_of(gated, kfp.layers.FilterPruning)}
    for name, wrapper in wrappers.items():
        wrapper.mask.assign(values[name])
    callback, opened = begun(gated, kfp.callbacks.BudgetGates(0.05, strength=1e-12)), {name: [] for name in values}
    for step in range(600):
        for name, wrapper in wrappers.items():
            opened[name].append(4 * array(wrapper.mask) + array(wrapper.noise) > 0)
        callback.on_train_batch_end(step)
    for name, draws in opened.items():
        np.testing.assert_allclose(np.mean(draws, axis=0), sigmoid(4 * values[name]), atol=0.06)
    np.testing.assert_array_equal(opened["conv2_masked"], opened["head_masked"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("residual_projection", "gumbel"), ("residual_projection", "sigmoid"), ("depthwise", "gumbel"),
     ("dense_concat", "sigmoid"), ("mixed_precision", "gumbel")],
)  # fmt: skip
def test_with_the_budget_met_training_sees_what_inference_does(name, kind):
    model = ZOO[name]()
    x = random_inputs(model)
    gated = kfp.apply_filter_gates(model, gates=kind)
    assert_same(model, gated, x, 1e-6)
    callback = begun(gated, kfp.callbacks.BudgetGates(0.5, strength=0.1))
    for step in range(100):
        callback.on_train_batch_end(step)
    for wrapper in wrappers_of(gated, kfp.layers.FilterPruning):
        logits = 4 * array(wrapper.mask).astype(float) + array(wrapper.noise)
        np.testing.assert_array_equal(sigmoid(np.clip(logits, -50, 50)) > 0.5, array(wrapper.open))
        assert np.abs(logits).min() > 100
    small = shrunk(kfp.strip_wrappers(gated))
    assert_same(gated, small, x, 2e-2 if name == "mixed_precision" else 1e-5)
    one_filter = kfp.budgets.CostModel(kfp.analyze(model)).macs.gradient(kfp.analyze(model).sizes).max()
    assert 0.5 * total_macs(model) - one_filter <= total_macs(small) <= 0.5 * total_macs(model)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_moves_gates_raises_the_slope_tenfold_and_goes_on_from_a_file(kind, tmp_path):
    model, (x, y) = network(), labelled_images()
    gated, slopes = compiled(kfp.apply_filter_gates(model, gates=kind)), []
    wrappers = wrappers_of(gated, kfp.layers.FilterPruning)

    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            slopes.append(float(array(wrappers[0].slope)))

    callback = kfp.callbacks.BudgetGates(0.5, epochs=4, strength=0.1)
    gated.fit(x, y, batch_size=8, epochs=6, verbose=0, callbacks=[callback, Seen()])
    np.testing.assert_allclose(slopes[:4], 10 ** np.array([0.25, 0.5, 0.75, 1]), rtol=1e-5)
    assert total_macs(shrunk(kfp.strip_wrappers(gated))) <= 0.5 * total_macs(model)
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    assert_same(gated, loaded, x, 1e-6)
    assert {w.gates for w in wrappers_of(loaded, kfp.layers.FilterPruning)} == {kind}
    for one, other in zip(view_model(gated).calls, view_model(loaded).calls, strict=True):
        if isinstance(one.op, kfp.layers.FilterPruning):
            np.testing.assert_array_equal(array(one.op.noise), array(other.op.noise))


@pytest.mark.parametrize("kind", ["soft", None, 1, False])
def test_the_kind_is_known(kind):
    with pytest.raises(errors.UnknownNameError, match="gates is True or one of straight, gumbel, sigmoid"):
        kfp.apply_filter_gates(network(), gates=kind)
