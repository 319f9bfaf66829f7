"""Masks while training: the masked network is the shrunk one, masks only grow, and soft pruning lets filters return."""

from __future__ import annotations

import csv
from itertools import pairwise

import builders
import keras
import numpy as np
import pytest
from builders import MASKABLE, array, assert_same, labelled_images, network, predict, shrunk, total_macs
from keras import layers
from other_backends import on_every_backend, run_on
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.graph.keras_view import named_weights, view_model


def compiled(model: keras.Model) -> keras.Model:
    """Trains without a trace, which takes longer than the few steps here."""
    return builders.compiled(model, run_eagerly=True)


def fit(model: keras.Model, callback, epochs: int, first: int = 0, **settings) -> dict:
    x, y = labelled_images()
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0} | settings
    return model.fit(x, y, epochs=epochs, initial_epoch=first, callbacks=[callback], **settings).history


def masked(model: keras.Model, keep: float, method="l2") -> tuple[keras.Model, dict]:
    """The model behind masks for this fraction, and the logs."""
    other, schedule, logs = kfp.apply_filter_pruning(model), kfp.callbacks.PruningSchedule(keep, method), {}
    schedule.set_model(other)
    schedule.on_train_begin()
    schedule.on_epoch_begin(0)
    schedule.on_epoch_end(0, logs)
    return other, logs


def masks(model: keras.Model) -> dict[str, np.ndarray]:
    return {c.path: array(c.op.mask) for c in view_model(model).calls if isinstance(c.op, kfp.layers.FilterPruning)}


# ---------------------------------------------------------------------------------------------- masked equals shrunk


@pytest.mark.parametrize("name", MASKABLE)
def test_the_masked_network_the_stripped_one_and_the_shrunk_one_compute_the_same(name):
    model = ZOO[name]()
    x = random_inputs(model)
    untouched = kfp.apply_filter_pruning(model)
    tolerance = 2e-2 if name == "mixed_precision" else 1e-5
    assert_same(model, untouched, x, 1e-6)
    assert_same(model, kfp.strip_wrappers(untouched), x, 0)
    other, logs = masked(model, 0.5)
    plain = kfp.strip_wrappers(other)
    small = shrunk(plain)
    assert_same(other, plain, x, tolerance)
    assert_same(other, small, x, tolerance)
    assert max(np.abs(a - b).max() for a, b in zip(predict(model, x), predict(other, x), strict=True)) > 0
    assert total_macs(small) == logs["macs_if_pruned"] <= 0.5 * total_macs(model)
    graphs = [kfp.analyze(m) for m in (small, model)]
    filters = [sum(len(b.ids) for b in g.binds if b.role == "filter") for g in graphs]
    assert logs["kept_filters"] == filters[0]
    assert logs["filter_sparsity"] == pytest.approx(1 - filters[0] / filters[1])


def test_filters_masked_before_go_first_however_large_they_have_become():
    model = kfp.apply_filter_pruning(network())
    schedule, logs = kfp.callbacks.PruningSchedule([0.7, 0.5]), {}
    schedule.set_model(model)
    schedule.on_train_begin()
    schedule.on_epoch_begin(0)
    # What is masked has no gradient through its readers, but its own weights may be the largest.
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            norms = np.square(array(layer.kernel)).sum(axis=(0, 1, 2))
            layer.kernel.assign(array(layer.kernel) / norms)
    schedule.on_epoch_begin(1)
    schedule.on_epoch_end(1, logs)
    assert 0.9 * 0.5 * total_macs(network()) < logs["macs_if_pruned"] <= 0.5 * total_macs(network())


def test_bridgeout_goes_inside():
    model, (x, _) = network(), labelled_images()
    other = kfp.apply_filter_pruning(kfp.apply_bridgeout(model))
    assert [layer.name for layer in other.layers if isinstance(layer, kfp.layers.FilterPruning)] == [
        "conv2_bridgeout_masked",
        "conv3_bridgeout_masked",
        "head_masked",
    ]
    assert_same(model, other, x, 1e-6)
    drawn = [array(other(x, training=True)) for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4
    assert [type(layer) for layer in kfp.strip_wrappers(other).layers] == [type(layer) for layer in model.layers]


@pytest.mark.parametrize("wrap", [kfp.apply_bridgeout, kfp.apply_filter_pruning])
def test_a_wrapped_model_can_be_pruned_as_it_is(wrap):
    model, (x, _) = network(), labelled_images()
    ours, theirs = (kfp.prune_model(m, "l2", 0.5, compensate="none", progress=False) for m in (wrap(model), model))
    assert_same(kfp.strip_wrappers(ours), theirs, x, 1e-6)
    assert any(type(layer) in (kfp.layers.BatchBridgeout, kfp.layers.FilterPruning) for layer in ours.layers)


def test_dead_units_are_those_without_readers():
    model = network()
    model.get_layer("conv3").kernel.assign(model.get_layer("conv3").kernel * (np.arange(12) % 3 > 0)[:, None])
    small = shrunk(model)
    assert small.get_layer("conv2").filters == 8
    np.testing.assert_array_equal(
        array(small.get_layer("conv2").kernel), array(model.get_layer("conv2").kernel)[..., np.arange(12) % 3 > 0]
    )
    assert_same(model, small, labelled_images()[0], 1e-6)


def test_of_a_layer_that_nothing_reads_one_filter_stays():
    model = network()
    model.get_layer("conv3").kernel.assign(0 * model.get_layer("conv3").kernel)
    small = shrunk(model)
    assert small.get_layer("conv2").filters == 1
    assert_same(model, small, labelled_images()[0], 1e-6)


# ---------------------------------------------------------------------------------------------- in training


def test_masks_grow_with_the_schedule_and_the_logs_say_so(tmp_path):
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(masks(self.model))

    model = compiled(kfp.apply_filter_pruning(network()))
    keep = kfp.callbacks.polynomial(0.3, 3)
    x, y = labelled_images()
    callbacks = [
        kfp.callbacks.PruningSchedule(keep, "l1"),
        Watch(),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
    ]
    history = model.fit(x, y, epochs=5, verbose=0, callbacks=callbacks).history
    for before, after in pairwise(seen):
        assert all((after[name] <= before[name]).all() for name in before)
    hidden = [sum((mask == 0).sum() for mask in found.values()) for found in seen]
    assert 0 < hidden[0] < hidden[2] == hidden[4]
    full = total_macs(network())
    for fraction, macs in zip([*keep, keep[-1], keep[-1]], history["macs_if_pruned"], strict=True):
        assert 0.75 * fraction * full < macs <= fraction * full
    assert total_macs(shrunk(kfp.strip_wrappers(model))) == history["macs_if_pruned"][-1]
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kept_filters"]) for row in rows] == history["kept_filters"]


def test_masked_filters_stay_masked_when_the_criterion_would_want_them_back():
    model = compiled(kfp.apply_filter_pruning(network()))
    schedule = kfp.callbacks.PruningSchedule([0.6, 0.4], "l2")
    fit(model, schedule, 1)
    before = masks(model)
    gone = before["conv3_masked"] == 0
    assert gone.any()
    # The masked ones are now by far the largest.
    kernel = array(model.get_layer("conv2_masked").layer.kernel)
    model.get_layer("conv2_masked").layer.kernel.assign(np.where(gone, 100.0, kernel))
    fit(model, schedule, 2, first=1)
    assert all((masks(model)[name] <= mask).all() for name, mask in before.items())


@pytest.mark.parametrize(
    "method", ["pursuit", "cap", criteria.FPGM(), kfp.Method(criteria.L1(), allocators.Global(1.0))]
)
def test_any_method_chooses(method):
    model = compiled(kfp.apply_filter_pruning(network()))
    history = fit(model, kfp.callbacks.PruningSchedule(0.5, method, data=labelled_images()[0], exclude="conv2"), 1)
    assert history["macs_if_pruned"][0] <= 0.5 * total_macs(network())
    # The readers of conv2 hide nothing.
    assert masks(model)["conv3_masked"].all()


def test_training_goes_on_after_loading_as_if_nothing_had_happened(tmp_path):
    keep, path = [0.8, 0.6, 0.5, 0.5], tmp_path / "half.keras"
    whole, half = (compiled(kfp.apply_filter_pruning(kfp.apply_bridgeout(network()))) for _ in range(2))
    fit(whole, kfp.callbacks.PruningSchedule(keep), 4)
    fit(half, kfp.callbacks.PruningSchedule(keep), 3)
    half.save(path)
    again = keras.models.load_model(path)
    fit(again, kfp.callbacks.PruningSchedule(keep), 4, first=3)
    for a, b in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert any((mask == 0).any() for mask in masks(again).values())


def test_mixed_precision_trains_behind_masks():
    model = compiled(kfp.apply_filter_pruning(network("mixed_float16")))
    fit(model, kfp.callbacks.PruningSchedule(0.5), 2)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert keras.backend.standardize_dtype(model.get_layer("conv2_masked").output.dtype) == "float16"
    assert_same(model, shrunk(kfp.strip_wrappers(model)), labelled_images()[0], 2e-2)


# ---------------------------------------------------------------------------------------------- soft pruning


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_low_filters_are_multiplied_by_rho_with_bias_scale_and_shift(rho):
    model = network()
    for layer in ("conv1", "conv2", "conv3"):
        model.get_layer(layer).bias.assign(np.linspace(0.5, 1, model.get_layer(layer).filters))
    graph = kfp.analyze(model)
    plan = kfp.plan_pruning(model, "l2", 0.6, progress=False)
    layers_of = {call.path: call.op for call in graph.view.calls if call.inputs}
    weights = {path: {n: array(v) for n, v in named_weights(op).items()} for path, op in layers_of.items()}
    soft = kfp.callbacks.SoftPruning(0.6, "l2", rho)
    soft.set_model(model)
    soft.on_epoch_begin(0)
    soft.on_epoch_end(0, {})
    touched = set()
    for group in graph.groups:
        low = np.ones(group.size, bool)
        low[next(g["kept"] for g in plan.groups if g["name"] == group.name)] = False
        for member in group.members:
            before = weights[member.layer][member.weight]
            after = array(named_weights(layers_of[member.layer])[member.weight])
            factor = np.ones(before.shape[member.axis])
            if member.role != "input" and not member.weight.startswith("moving"):
                factor[member.positions[low].ravel()] = rho
                touched |= {(member.layer, member.weight)} if low.any() else set()
            shape = [-1 if axis == member.axis else 1 for axis in range(before.ndim)]
            if member.role != "input":
                np.testing.assert_allclose(after, before * factor.reshape(shape), rtol=1e-6)
    assert {("conv2", "kernel"), ("conv2", "bias")} <= touched


def test_filters_come_back_until_training_ends():
    chosen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            norms = np.abs(array(self.model.get_layer("conv2").kernel)).sum(axis=(0, 1, 2))
            chosen.append(set(np.flatnonzero(norms == 0)))

        def on_epoch_begin(self, epoch, logs=None):
            # A filter that training turned out to need.
            if chosen and epoch == 2:
                kernel = array(self.model.get_layer("conv2").kernel)
                kernel[..., min(chosen[-1])] = 5.0
                self.model.get_layer("conv2").kernel.assign(kernel)

    model, (x, y) = compiled(network()), labelled_images()
    history = model.fit(
        x, y, epochs=3, verbose=0, callbacks=[kfp.callbacks.SoftPruning([0.8, 0.6, 0.6], "l2"), Watch()]
    ).history
    assert len(chosen[0]) < len(chosen[1])
    assert min(chosen[1]) not in chosen[2]
    small = shrunk(model)
    assert total_macs(small) <= history["macs_if_pruned"][-1] <= 0.6 * total_macs(network())
    assert_same(model, small, x, 1e-5)


def test_shrinking_at_every_step():
    counts = []

    class Counting(kfp.callbacks.SoftPruning):
        def _scale(self, roles, factor):
            counts.append((roles, factor))
            super()._scale(roles, factor)

    fit(compiled(network()), Counting(0.6, rho=0.9, every=2), 2)
    # Four steps an epoch, two epochs, and the readers at the end.
    assert counts == [(("filter", "channel"), 0.9)] * 4 + [(("input",), 0.0)]


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("epochs", [1, 4, 40])
def test_schedules_fall_to_their_end(keep, epochs):
    for found in (
        kfp.callbacks.polynomial(keep, epochs),
        kfp.callbacks.polynomial(keep, epochs, power=1),
        kfp.callbacks.exponential(keep, epochs),
    ):
        assert len(found) == epochs
        assert found[-1] == pytest.approx(keep)
        assert all(a >= b for a, b in pairwise([1.0, *found]))
    removed = 1 - np.array(kfp.callbacks.polynomial(keep, epochs, power=3))
    assert removed == pytest.approx((1 - keep) * (1 - (1 - np.arange(1, epochs + 1) / epochs) ** 3))


def test_the_exponential_goes_three_quarters_in_the_first_quarter():
    removed = 1 - np.array(kfp.callbacks.exponential(0.2, 40))
    assert removed[9] == pytest.approx(0.75 * 0.8)
    # a exp(-k e) + b: equal ratios of neighbouring steps.
    steps = np.diff(removed)
    assert steps[1:] / steps[:-1] == pytest.approx(steps[1] / steps[0])


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("make", [kfp.callbacks.PruningSchedule, kfp.callbacks.SoftPruning])
def test_fractions_that_are_none_or_rise(make):
    for keep in (0, 1.5, [0.5, 0], [0.9, "0.5"], True, [None]):
        with pytest.raises(errors.InfeasibleBudgetError, match=r"keep is the fraction that is kept, in \(0, 1\]"):
            make(keep)
    for keep in ([0.5, 0.6], []):
        with pytest.raises(
            errors.InfeasibleBudgetError, match="one per epoch that never rises: filters do not come back"
        ):
            make(keep)
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'l2'"):
        make(0.5, "l22")


@pytest.mark.parametrize("settings", [{"rho": 1}, {"rho": -0.1}, {"rho": None}, {"every": 0}, {"every": 1.5}])
def test_soft_pruning_with_settings_out_of_range(settings):
    with pytest.raises(
        errors.InvalidValueError, match=r"rho is a factor, in \[0, 1\)|every is a number of steps, at least 1, or None"
    ):
        kfp.callbacks.SoftPruning(0.5, **settings)


def test_schedules_out_of_range():
    for make in (kfp.callbacks.polynomial, kfp.callbacks.exponential):
        with pytest.raises(errors.InfeasibleBudgetError, match="keep is the fraction"):
            make(0, 3)
        with pytest.raises(errors.InvalidValueError, match="epochs is an integer, at least 1"):
            make(0.5, 0)
    with pytest.raises(errors.InvalidValueError, match="power is a number, above 0"):
        kfp.callbacks.polynomial(0.5, 3, power=0)


def test_models_that_are_not_prepared():
    with pytest.raises(errors.UnsupportedModelError, match="found no FilterPruning layer in model 'network'"):
        fit(compiled(network()), kfp.callbacks.PruningSchedule(0.5), 1)
    with pytest.raises(errors.UnsupportedLayerError, match="whose input is not masked yet"):
        kfp.apply_filter_pruning(kfp.apply_filter_pruning(network()))
    with pytest.raises(errors.UnsupportedLayerError, match="expects a layer whose input is not masked yet"):
        kfp.layers.FilterPruning(3)
    head = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(errors.UnsupportedModelError, match="no layer that matches a layer that reads prunable filters"):
        kfp.apply_filter_pruning(head)
    with pytest.raises(errors.InfeasibleBudgetError, match="only ranks them"):
        kfp.prune_model(network(), "l2", kfp.budgets.RedundancyBudget(), progress=False)


# ---------------------------------------------------------------------------------------------- other backends

ELSEWHERE = """
import keras, numpy as np, keras_filterprune as kfp
keras.utils.set_random_seed(0)
inputs = keras.Input((8, 8, 3))
x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, name="conv1")(inputs)))
x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, name="conv2")(x))
model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
data, labels = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32"), np.arange(32) % 3
to_numpy = keras.ops.convert_to_numpy
def shrunk(model):
    return kfp.prune_model(model, "dead", kfp.budgets.RedundancyBudget(), compensate="none", progress=False)
other = kfp.apply_filter_pruning(model)
for trained, callback in (
    (other, kfp.callbacks.PruningSchedule([0.8, 0.5])),
    (model, kfp.callbacks.SoftPruning(0.5)),
    (model, kfp.callbacks.SoftPruning(0.5, every=1)),
):
    trained.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = trained.fit(data, labels, batch_size=8, epochs=2, verbose=0, callbacks=[callback]).history
    plain = kfp.strip_wrappers(trained)
    small = shrunk(plain)
    assert small.count_params() < plain.count_params()
    assert abs(to_numpy(small(data)) - to_numpy(trained(data))).max() < 1e-4
    cost = kfp.budgets.CostModel(kfp.analyze(small))
    assert cost.macs(cost.sizes) <= history["macs_if_pruned"][-1]
"""


@on_every_backend
def test_every_backend_masks_and_shrinks(backend):
    run_on(backend, ELSEWHERE)
