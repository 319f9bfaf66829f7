"""Gates and penalties steered to a budget: the gated network is the shrunk one, on the budget to one filter."""

from __future__ import annotations

import functools

import builders
import keras
import numpy as np
import pytest
from builders import MASKABLE, array, assert_same, begun, digits, labelled_images, network, shrunk, total_macs
from keras import layers
from other_backends import on_every_backend, run_on
from zoo import ZOO, random_inputs

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.graph.keras_view import scale_slices, view_model


def compiled(model: keras.Model) -> keras.Model:
    """Trains without a trace, which takes longer than the few steps here."""
    return builders.compiled(model, run_eagerly=True)


def gates_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {c.path: array(c.op.mask) for c in view_model(model).calls if isinstance(c.op, kfp.layers.FilterPruning)}


def fit(model: keras.Model, callback, epochs: int, first: int = 0) -> dict:
    x, y = labelled_images()
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": [callback]}
    return model.fit(x, y, epochs=epochs, initial_epoch=first, **settings).history


def loss_scaled(model: keras.Model, readers: list[str], unit: int, factor: float) -> float:
    """Loss of a copy of a plain model in which what `readers` see of a channel is multiplied by a factor."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    for name in readers:
        scale_slices(other.get_layer(name).kernel, -2, np.array([unit]), factor)
    x, y = labelled_images()
    return float(compiled(other).evaluate(x, y, verbose=0, batch_size=len(x)))


# ---------------------------------------------------------------------------------------------- gates


# Networks take turns at two budgets; masks, which lie where gates do, meet all of them.
BUDGETS = kfp.MacsBudget(0.5), kfp.ParamsBudget(0.6)
BUDGETED = [(name, BUDGETS[number % 2]) for number, name in enumerate(MASKABLE[::2])]
BUDGETED += [("mixed_precision", BUDGETS[0])] * ("mixed_precision" not in MASKABLE[::2])


@pytest.mark.parametrize(("name", "budget"), BUDGETED, ids=str)
def test_the_hinge_closes_gates_to_the_budget_and_the_gated_network_is_the_shrunk_one(name, budget):
    model = ZOO[name]()
    x = random_inputs(model)
    gated = kfp.apply_filter_gates(model)
    tolerance = 2e-2 if name == "mixed_precision" else 1e-5
    assert_same(model, gated, x, 1e-6)
    callback = begun(gated, kfp.callbacks.BudgetGates(budget, strength=0.2))
    for step in range(50):
        callback.on_train_batch_end(step)
    plain = kfp.strip_wrappers(gated)
    small = shrunk(plain)
    assert_same(gated, plain, x, tolerance)
    assert_same(gated, small, x, tolerance)
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["macs_if_pruned"] == total_macs(small)
    cost = kfp.budgets.CostModel(kfp.analyze(small))
    dense = kfp.budgets.CostModel(kfp.analyze(model))
    spent, limit = budget.cost(cost)(cost.sizes), budget.limit(budget.cost(dense)(dense.sizes))
    one_filter = budget.cost(dense).gradient(dense.sizes).max()
    assert limit - one_filter <= spent <= limit


def test_what_is_allowed_falls_on_a_straight_line():
    model = network()
    gated = compiled(kfp.apply_filter_gates(model))
    history = fit(gated, kfp.callbacks.BudgetGates(0.5, epochs=5, strength=0.2), 6)
    one_filter = kfp.budgets.CostModel(kfp.analyze(model)).macs.gradient(np.array([8, 12])).max()
    line = total_macs(model) * np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.5])
    assert (history["macs_if_pruned"] <= line).all() and (history["macs_if_pruned"] >= line - one_filter).all()


def test_gates_start_at_the_scores_and_pinned_channels_are_open():
    model = network()
    kernel = array(model.get_layer("conv2").kernel)
    norms = np.sqrt((kernel**2).sum((0, 1, 2)))
    gates = gates_of(kfp.apply_filter_gates(model))
    np.testing.assert_allclose(gates["conv3_masked"], norms / norms.mean(), rtol=1e-5)
    scale = np.linspace(1, 3, 8)
    for name in ("bn1", "bn3"):
        model.get_layer(name).gamma.assign(scale)
    by_scale = gates_of(kfp.apply_filter_gates(model, "bn_scale"))
    # No batch normalization follows conv2.
    np.testing.assert_array_equal(by_scale["conv3_masked"], 1)
    np.testing.assert_allclose(by_scale["head_masked"], scale / 2, rtol=1e-5)


def test_gates_move_as_one_factor_shared_by_all_readers():
    model, (x, y) = network(), labelled_images()
    gated = kfp.apply_filter_gates(model)
    for layer in gated.layers:
        # Batch statistics would make training another function than evaluation.
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    gated.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = gates_of(gated)
    with pytest.warns(UserWarning, match=r"BudgetGates: MacsBudget\(keep=0.5\) allows .* are needed"):
        gated.fit(x, y, batch_size=len(x), verbose=0, callbacks=[kfp.callbacks.BudgetGates(0.5, strength=1e-12)])
    after = gates_of(gated)
    # conv1's filters are added to conv3's: conv2 reads the first, head the sum.
    for unit in (0, 5):
        slope = (loss_scaled(model, ["head"], unit, 1.01) - loss_scaled(model, ["head"], unit, 0.99)) / 0.02
        moved = after["head_masked"][unit] - before["head_masked"][unit]
        assert abs(slope) > 1e-3
        both = slope + (loss_scaled(model, ["conv2"], unit, 1.01) - loss_scaled(model, ["conv2"], unit, 0.99)) / 0.02
        assert moved == pytest.approx(-0.1 * both, rel=0.02)
        assert after["head_masked"][unit] == after["conv2_masked"][unit]


def test_the_hinge_pulls_by_the_derivative_of_the_cost():
    model = network()
    gated = kfp.apply_filter_gates(model)
    before = gates_of(gated)
    callback = begun(gated, kfp.callbacks.BudgetGates(0.5, strength=0.01))
    callback.on_train_batch_end(0)
    after = gates_of(gated)
    # Multiply-accumulates per filter at 8x8: conv1 and conv3 with what reads them, conv2 likewise.
    first = 64 * 9 * (3 + 12 + 12) + 3
    inner = 64 * 9 * (8 + 8)
    mean = (8 * first + 12 * inner) / 20
    np.testing.assert_allclose(before["head_masked"] - after["head_masked"], 0.01 * first / mean, rtol=1e-4)
    np.testing.assert_allclose(before["conv3_masked"] - after["conv3_masked"], 0.01 * inner / mean, rtol=1e-4)


def test_on_the_budget_gates_stay_as_they_are():
    gated = compiled(kfp.apply_filter_gates(network()))
    fit(gated, kfp.callbacks.BudgetGates(0.5, epochs=1, strength=0.2), 1)
    before, kernel = gates_of(gated), array(gated.get_layer("conv2_masked").layer.kernel)
    fit(gated, kfp.callbacks.BudgetGates(0.5, strength=0.2), 2)
    for name, gates in gates_of(gated).items():
        np.testing.assert_array_equal(gates, before[name])
    assert np.abs(array(gated.get_layer("conv2_masked").layer.kernel) - kernel).max() > 0


def test_channels_that_cannot_be_pruned_stay_open():
    inputs = keras.Input((8, 8, 3))
    x = layers.Concatenate()([inputs, layers.Conv2D(8, 3, padding="same", name="conv")(inputs)])
    gated = kfp.apply_filter_gates(keras.Model(inputs, layers.Conv2D(4, 1, name="reader")(x)))
    callback = begun(gated, kfp.callbacks.BudgetGates(0.7, strength=0.3))
    for step in range(20):
        callback.on_train_batch_end(step)
    (gates,) = gates_of(gated).values()
    np.testing.assert_array_equal(gates[:3], 1)
    assert (gates[3:] <= 0).any()


def test_some_filters_of_every_group_stay_open():
    gated = kfp.apply_filter_gates(network())
    callback = begun(gated, kfp.callbacks.BudgetGates(0.3, strength=1.0, min_filters=3))
    for step in range(20):
        callback.on_train_batch_end(step)
    opened = {name: int((gates > 0).sum()) for name, gates in gates_of(gated).items()}
    assert min(opened.values()) >= 3
    assert total_macs(shrunk(kfp.strip_wrappers(gated))) <= 0.3 * total_macs(network())


def test_gated_training_goes_on_after_loading_as_if_nothing_had_happened(tmp_path):
    straight, broken = (compiled(kfp.apply_filter_gates(network())) for _ in range(2))
    make = functools.partial(kfp.callbacks.BudgetGates, 0.5, epochs=3, strength=0.05)
    fit(straight, make(), 4)
    with pytest.warns(UserWarning, match="are needed"):
        fit(broken, make(), 2)
    broken.save(tmp_path / "half.keras")
    broken = keras.models.load_model(tmp_path / "half.keras")
    fit(broken, make(), 4, first=2)
    for a, b in zip(straight.get_weights(), broken.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name, gates in gates_of(straight).items():
        np.testing.assert_array_equal(gates, gates_of(broken)[name])


def test_bridgeout_and_mixed_precision_go_with_gates():
    gated = compiled(kfp.apply_filter_gates(kfp.apply_bridgeout(network("mixed_float16"), rate=0.1)))
    fit(gated, kfp.callbacks.BudgetGates(0.5, strength=0.2), 3)
    plain = kfp.strip_wrappers(gated)
    assert total_macs(shrunk(plain)) <= 0.5 * total_macs(plain)
    assert all(np.isfinite(array(w)).all() for w in gated.weights)


# ---------------------------------------------------------------------------------------------- penalties


def test_penalties_go_on_the_filters_that_can_be_removed():
    model = network()
    other = kfp.apply_penalty(model, kfp.regularizers.GroupLasso(1e-3))
    names = {layer.name for layer in other.layers if getattr(layer, "kernel_regularizer", None) is not None}
    assert names == {"conv1", "conv2", "conv3"}
    assert model.get_layer("conv1").kernel_regularizer is None
    rows = [np.sqrt((array(other.get_layer(n).kernel) ** 2).sum((0, 1, 2))).sum() for n in ("conv1", "conv2", "conv3")]
    expected = 1e-3 * np.dot(np.sqrt([27, 72, 108]), rows)
    assert float(sum(other.losses)) == pytest.approx(expected, rel=1e-4)
    assert_same(model, other, labelled_images()[0], 0)
    scales = kfp.apply_penalty(model, kfp.regularizers.BridgePenalty(1.0, 1e-3), "scale", include="bn3")
    assert float(sum(scales.losses)) == pytest.approx(1e-3 * np.abs(array(model.get_layer("bn3").gamma)).sum())
    assert scales.get_layer("bn1").gamma_regularizer is None


def test_the_group_lasso_follows_the_filters_of_the_layer():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2DTranspose(6, 3, name="up")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="out")(layers.SeparableConv2D(5, 3, name="sep")(x)))
    other = kfp.apply_penalty(kfp.apply_bridgeout(model), kfp.regularizers.GroupLasso(1.0))
    up = array(model.get_layer("up").kernel)
    sep = array(model.get_layer("sep").pointwise_kernel)
    expected = np.sqrt(27) * np.sqrt((up**2).sum((0, 1, 3))).sum() + np.sqrt(6) * np.sqrt((sep**2).sum((0, 1, 2))).sum()
    assert float(sum(other.losses)) == pytest.approx(expected, rel=1e-4)


def test_filters_without_energy_are_counted_out():
    model = network()
    scale = np.array([0.05, 0.05, 1, 1, 1, 1, 1, 0.5])
    model.get_layer("bn3").gamma.assign(scale)
    model.get_layer("bn1").gamma.assign(scale)
    other = kfp.apply_penalty(model, kfp.regularizers.BridgePenalty(1.0, 1e-3), "scale")
    callback = begun(other, kfp.callbacks.PenaltySchedule(0.5, "bn_scale", energy=0.01))
    # 2 x 0.0025 of 5.255 is 0.1 %; the next filter would make it 4.9 %. conv2 has no scales.
    assert list(callback.counts()) == [6, 12]
    assert list(begun(other, kfp.callbacks.PenaltySchedule(0.5, "bn_scale", energy=0.03)).counts()) == [6, 12]
    assert list(begun(other, kfp.callbacks.PenaltySchedule(0.5, "bn_scale", energy=0.06)).counts()) == [5, 12]


def test_strength_follows_the_line_to_the_budget():
    model = kfp.apply_penalty(network(), kfp.regularizers.BridgePenalty(1.0, 1e-3), "scale")
    model.get_layer("bn1").gamma_regularizer.strength = 3e-3
    callback = begun(model, kfp.callbacks.PenaltySchedule(0.5, "bn_scale", step=2e-3), epochs=10)
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["strength"] == 5e-3
    assert model.get_layer("bn3").gamma_regularizer.strength == 3e-3
    # What is asked of an epoch is its share of the way that is left, here of two.
    for kept, change in ((6, 0), (6, 2e-3), (1, -2e-3)):
        for name in ("bn1", "bn3"):
            model.get_layer(name).gamma.assign([1] * kept + [0] * (8 - kept))
        before = logs["strength"]
        callback.on_epoch_end(7, logs)
        assert logs["strength"] - before == pytest.approx(change, abs=1e-9)
    callback.on_epoch_end(8, logs)
    callback.on_epoch_end(8, logs)
    callback.on_epoch_end(8, logs)
    assert logs["strength"] == 0 == model.get_layer("bn3").gamma_regularizer.strength


def test_compiled_steps_see_the_strength():
    model = builders.compiled(kfp.apply_penalty(network(), kfp.regularizers.BridgePenalty(1.0, 0.0), "scale"))
    x, y = labelled_images()
    model.optimizer.learning_rate = 0.0
    schedule = kfp.callbacks.PenaltySchedule(0.1, step=0.125)
    with pytest.warns(UserWarning, match="take larger steps"):
        history = model.fit(x, y, epochs=3, batch_size=32, verbose=0, callbacks=[schedule]).history
    assert history["strength"] == [0.125, 0.25, 0.375]
    # 16 scales of 1.
    np.testing.assert_allclose(np.diff(history["loss"]), 2, rtol=1e-3)


def test_the_strength_is_saved(tmp_path):
    model = kfp.apply_penalty(network(), kfp.regularizers.GroupLasso(0.0))
    begun(model, kfp.callbacks.PenaltySchedule(0.5, step=1e-4)).on_epoch_end(0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("conv2").kernel_regularizer.strength == 1e-4
    assert float(sum(again.losses)) == pytest.approx(float(sum(model.losses)))


def test_slimming_reaches_the_budget():
    x, y = digits(800)

    def trained(step: float) -> tuple[keras.Model, dict]:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        h = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.Conv2D(16, 3)(inputs)))
        h = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.Conv2D(16, 3)(h)))
        plain = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(h)))
        model = kfp.apply_penalty(plain, kfp.regularizers.BridgePenalty(1.0, 0.0), "scale")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
        callback = kfp.callbacks.PenaltySchedule(0.75, "bn_scale", step=step)
        return model, model.fit(x, y, epochs=25, batch_size=32, verbose=0, callbacks=[callback]).history

    model, logs = trained(3e-3)
    assert logs["macs_if_pruned"][0] == total_macs(model)
    assert logs["macs_if_pruned"][-1] <= 0.75 * total_macs(model)
    with pytest.warns(UserWarning, match="PenaltySchedule"):
        other, logs = trained(1e-9)
    assert logs["accuracy"][-1] > 0.95

    def harm(model: keras.Model) -> float:
        small = kfp.prune_model(model, "bn_scale", 0.75, compensate="none", progress=False)
        return np.abs(array(small(x)) - array(model(x))).mean() / np.abs(array(model(x))).mean()

    assert harm(model) < 0.5 * harm(other)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("budget", [kfp.FiltersBudget(0.5), kfp.budgets.RedundancyBudget()])
@pytest.mark.parametrize("kind", [kfp.callbacks.BudgetGates, kfp.callbacks.PenaltySchedule])
def test_budgets_that_are_no_cost(kind, budget):
    with pytest.raises(errors.InfeasibleBudgetError, match=f"{kind.__name__} steers what the network costs"):
        kind(budget)


@pytest.mark.parametrize(
    "make",
    [
        lambda: kfp.callbacks.BudgetGates(0.5, strength=0),
        lambda: kfp.callbacks.BudgetGates(0.5, strength=True),
        lambda: kfp.callbacks.BudgetGates(0.5, epochs=0),
        lambda: kfp.callbacks.BudgetGates(0.5, min_filters=0),
        lambda: kfp.callbacks.BudgetGates(0.5, min_filters=1.5),
        lambda: kfp.callbacks.PenaltySchedule(0.5, energy=0),
        lambda: kfp.callbacks.PenaltySchedule(0.5, energy=1),
        lambda: kfp.callbacks.PenaltySchedule(0.5, step=0),
        lambda: kfp.callbacks.PenaltySchedule(0.5, "cap"),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(errors.InvalidValueError, match="Received"):
        make()


def test_budgets_below_the_floors():
    with pytest.raises(errors.InfeasibleBudgetError, match=r"with min_filters=8, .* are the least"):
        begun(kfp.apply_filter_gates(network()), kfp.callbacks.BudgetGates(0.1, min_filters=8))


def test_two_gates_stay_open_before_layer_normalization():
    inputs = keras.Input((4, 4, 2))
    h = layers.LayerNormalization()(layers.Conv2D(8, 3, name="conv")(inputs))
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="reader")(h))
    cost = kfp.budgets.CostModel(kfp.analyze(model))
    gated = kfp.apply_filter_gates(model)
    with pytest.raises(errors.InfeasibleBudgetError, match=f"{cost.params(np.array([2])):,} are the least"):
        begun(gated, kfp.callbacks.BudgetGates(kfp.ParamsBudget(count=cost.params(np.array([1])))))


def test_models_that_are_not_prepared():
    model = network()
    with pytest.raises(errors.UnsupportedModelError, match="apply_filter_gates"):
        begun(model, kfp.callbacks.BudgetGates(0.5))
    with pytest.raises(errors.UnsupportedModelError, match="apply_filter_gates"):
        begun(kfp.apply_filter_pruning(model), kfp.callbacks.BudgetGates(0.5))
    with pytest.raises(errors.UnsupportedModelError, match="PruningSchedule found no FilterPruning"):
        begun(kfp.apply_filter_gates(model), kfp.callbacks.PruningSchedule(0.5))
    with pytest.raises(errors.UnsupportedModelError, match="found no BridgePenalty or GroupLasso"):
        begun(model, kfp.callbacks.PenaltySchedule(0.5))
    with pytest.raises(errors.UnsupportedLayerError, match="not masked yet"):
        kfp.apply_filter_gates(kfp.apply_filter_pruning(model))
    with pytest.raises(errors.CalibrationDataError, match="pass data="):
        kfp.apply_filter_gates(model, "cap")
    with pytest.raises(errors.InvalidValueError, match="penalty is a BridgePenalty or a GroupLasso"):
        kfp.apply_penalty(model, keras.regularizers.L1(1e-3))
    with pytest.raises(errors.UnknownNameError, match="weights is one of kernel, scale"):
        kfp.apply_penalty(model, kfp.regularizers.GroupLasso(), "gamma")
    with pytest.raises(errors.UnknownNameError, match="has no scale of a filter"):
        kfp.apply_penalty(model, kfp.regularizers.BridgePenalty(1.0), "scale", include="conv*")


# ---------------------------------------------------------------------------------------------- other backends

ELSEWHERE = """
import keras, numpy as np, keras_filterprune as kfp
keras.utils.set_random_seed(0)
inputs = keras.Input((8, 8, 3))
x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(8, 3, name="conv1")(inputs)))
x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, name="conv2")(x))
model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
data, labels = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32"), np.arange(32) % 3
to_numpy, entropy = keras.ops.convert_to_numpy, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
for kind in ("straight", "gumbel", "sigmoid"):
    gated = kfp.apply_filter_gates(model, gates=kind)
    gated.compile("sgd", entropy)
    gates = kfp.callbacks.BudgetGates(0.5, strength=0.2)
    history = gated.fit(data, labels, batch_size=8, epochs=4, verbose=0, callbacks=[gates]).history
    budget = kfp.budgets.RedundancyBudget()
    small = kfp.prune_model(kfp.strip_wrappers(gated), "dead", budget, compensate="none", progress=False)
    assert abs(to_numpy(small(data)) - to_numpy(gated(data))).max() < 1e-4
    cost = kfp.budgets.CostModel(kfp.analyze(small))
    full = kfp.budgets.CostModel(kfp.analyze(model))
    assert cost.macs(cost.sizes) == history["macs_if_pruned"][-1] <= 0.5 * full.macs(full.sizes)
slim = kfp.apply_penalty(model, kfp.regularizers.BridgePenalty(1.0, 0.0), "scale")
slim.compile(keras.optimizers.SGD(0.0), entropy)
settings = {"batch_size": 32, "verbose": 0, "shuffle": False}
schedule = kfp.callbacks.PenaltySchedule(0.5, step=0.25)
history = slim.fit(data, labels, epochs=3, callbacks=[schedule], **settings).history
assert history["strength"] == [0.25, 0.5, 0.75]
# 8 scales of 1.
assert np.allclose(np.diff(history["loss"]), 2, atol=1e-3), history["loss"]
"""


@on_every_backend
def test_every_backend_steers(backend):
    run_on(backend, ELSEWHERE)
