"""Data-driven criteria and least-squares compensation on real Keras models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from zoo import ZOO, randomise

import keras_filterprune as kfp
from keras_filterprune import compensators, criteria, errors
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.handlers.registry import linear_of
from keras_filterprune.probe.consumers import Joint, draw_places, rows_at
from keras_filterprune.probe.regression import rectified_regression

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 12, 12, 3)).astype("float32")


def built(bias: bool = False, normalised: bool = True) -> keras.Model:
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(10, 3, padding="same", use_bias=bias, name="conv1")(inputs)
    x = layers.BatchNormalization(name="bn1")(x) if normalised else x
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=bias, name="conv2")(layers.ReLU()(x))
    x = layers.BatchNormalization(name="bn2")(x) if normalised else x
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    randomise(model)
    return model


def outputs(model: keras.Model, x: np.ndarray = IMAGES) -> np.ndarray:
    return model.predict(x, verbose=0)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(5, 3, strides=2, padding="same"),
        layers.Conv2D(5, (3, 2), padding="valid"),
        layers.Conv2D(5, 3, dilation_rate=2, padding="same"),
        layers.Conv1D(5, 3, padding="causal"),
        layers.Conv1D(5, 4, strides=3, padding="same"),
        layers.Conv3D(5, 2, padding="same"),
        layers.Dense(5),
        layers.SeparableConv2D(5, 3, strides=2, padding="same", depth_multiplier=2),
    ],
    ids=lambda layer: f"{type(layer).__name__}",
)
def test_rows_times_kernel_are_the_layers_output(layer):
    sides = {"Conv1D": (11,), "Conv3D": (5, 4, 6), "Dense": (7, 6)}.get(type(layer).__name__, (9, 8))
    inputs = keras.Input((*sides, 3))
    view = view_model(keras.Model(inputs, layer(inputs)))
    x = keras.ops.convert_to_tensor(RNG.normal(size=(4, *sides, 3)), "float32")
    places = draw_places(view.calls[-1].path, linear_of(layer), x, len(x))
    rows = rows_at(linear_of(layer), x, places)
    kernel = linear_of(layer).matrix
    expected = places.pick(keras.ops.convert_to_numpy(layer(x)))
    received = rows.reshape(len(rows), -1) @ kernel.reshape(-1, kernel.shape[-1])
    assert received == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_duplicated_channel_is_given_up_without_a_trace(bias, normalised):
    model = built(bias, normalised)
    for layer in model.layers[1:3]:
        for weight in layer.weights:
            value = np.asarray(weight.value).copy()
            value[..., 6] = value[..., 2]
            weight.assign(value)
    kept = {"conv1": [0, 1, 2, 3, 4, 5, 7, 8, 9]}
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(keep=1.0))
    plan.groups[0]["kept"] = kept["conv1"]
    exact = compensators.LeastSquares(variance=False, ridge=1e-9, rectified=False)
    small = kfp.apply_plan(model, plan, data=IMAGES, compensate=exact, progress=False)
    assert outputs(small) == pytest.approx(outputs(model), abs=2e-3)
    plain = kfp.apply_plan(model, plan, compensate="none", progress=False)
    assert np.abs(outputs(plain) - outputs(model)).max() > 0.02


@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_channel_is_folded_into_the_mean(bias):
    model = built(bias)
    for weight in model.get_layer("bn1").weights:
        if weight.name in ("gamma", "beta"):
            value = np.asarray(weight.value).copy()
            value[4] = 0.0 if weight.name == "gamma" else 3.0
            weight.assign(value)
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(keep=1.0))
    plan.groups[0]["kept"] = [k for k in range(10) if k != 4]
    small = kfp.apply_plan(
        model, plan, data=IMAGES, compensate=compensators.LeastSquares(variance=False, ridge=1e-9), progress=False
    )
    plain = kfp.apply_plan(model, plan, compensate="none", progress=False)
    # Borders see zeros in place of the constant, so that the fold is exact inside only.
    assert np.abs(outputs(small) - outputs(model)).mean() < 0.3 * np.abs(outputs(plain) - outputs(model)).mean()


def test_the_refit_is_the_least_squares_solution_with_intercept():
    model = built(bias=True, normalised=False)
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget({"conv1": 0.5}))
    small = kfp.apply_plan(
        model,
        plan,
        data=IMAGES,
        compensate=compensators.LeastSquares(variance=False, ridge=1e-12, rectified=False),
        progress=False,
    )
    before = keras.Model(model.input, model.get_layer("conv2").input)
    after = keras.Model(small.input, small.get_layer("conv2").input)
    linear = linear_of(model.get_layer("conv2"))
    places = draw_places("conv2", linear, before(IMAGES), len(IMAGES))
    left = rows_at(linear, before(IMAGES), places)
    right = rows_at(linear_of(small.get_layer("conv2")), after(IMAGES), places)
    y = left.reshape(len(left), -1) @ linear_of(model.get_layer("conv2")).matrix.reshape(90, 8)
    x = np.column_stack([right.reshape(len(right), -1), np.ones(len(y))])
    wanted = np.linalg.lstsq(x, y, rcond=None)[0]
    fitted = linear_of(small.get_layer("conv2")).matrix.reshape(-1, 8)
    assert fitted == pytest.approx(wanted[:-1], abs=2e-3)
    shift = np.asarray(small.get_layer("conv2").bias.value) - np.asarray(model.get_layer("conv2").bias.value)
    assert shift == pytest.approx(wanted[-1], abs=2e-3)


@pytest.mark.parametrize("normalised", [True, False])
def test_behind_a_relu_only_what_it_passes_is_fitted(normalised):
    model = built(bias=not normalised, normalised=normalised)
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget({"conv1": 0.5}))
    activation = next(layer.name for layer in model.layers[4:] if isinstance(layer, layers.ReLU))

    def error(rectified: bool) -> float:
        exact = compensators.LeastSquares(variance=False, rectified=rectified)
        small = kfp.apply_plan(model, plan, data=IMAGES, compensate=exact, progress=False)
        found = [keras.Model(m.input, m.get_layer(activation).output)(IMAGES) for m in (model, small)]
        return float(np.square(np.asarray(found[0]) - np.asarray(found[1])).mean())

    assert error(rectified=True) < 0.98 * error(rectified=False)


def test_the_fit_behind_a_relu_never_gets_worse_and_finds_what_is_there():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 6)).astype("float32")
    weights, threshold = rng.normal(size=(6, 3)), np.array([0.3, -0.2, 0.1], "float32")
    y = (x @ weights).astype("float32")
    # Below the threshold (above it, for the last output) anything may stand.
    rising = np.array([True, True, False])
    off = np.where(rising, y <= threshold, y >= threshold)
    spoiled = np.where(off, threshold + np.where(rising, -1, 1) * np.abs(rng.normal(size=y.shape)), y)
    rows = x, spoiled.astype("float32")
    fitted, constant = rectified_regression(*rows, Joint.of(*rows), threshold, rising, 1e-9)

    def passed(v: np.ndarray) -> np.ndarray:
        return np.where(rising, np.maximum(v, threshold), np.minimum(v, threshold))

    plain = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), spoiled, rcond=None)[0]
    before = np.square(passed(x @ plain[:-1] + plain[-1]) - passed(y)).mean()
    after = np.square(passed(x @ fitted + constant) - passed(y)).mean()
    assert after < 0.2 * before


def test_nothing_is_refitted_where_nothing_was_removed():
    model = built()
    small, report = kfp.prune_model(
        model, "l2", 1.0, data=IMAGES, compensate=compensators.LeastSquares(), return_report=True, progress=False
    )
    assert report.compensation.startswith("0 layers")
    assert (outputs(small) == outputs(model)).all()


@pytest.mark.parametrize("name", ["residual_projection", "preactivation_residual", "separable", "unet", "shared_conv"])
def test_compensation_brings_outputs_nearer_to_the_original(name):
    model = ZOO[name]()
    x = RNG.normal(size=(256, *model.inputs[0].shape[1:])).astype("float32")
    fresh = RNG.normal(size=(64, *model.inputs[0].shape[1:])).astype("float32")
    plan = kfp.plan_pruning(model, "l2", 0.6)
    plain = kfp.apply_plan(model, plan, compensate="none", progress=False)
    small = kfp.apply_plan(model, plan, data=x, compensate=compensators.LeastSquares(), progress=False)
    wanted = outputs(model, fresh)
    assert np.square(outputs(small, fresh) - wanted).mean() < 0.7 * np.square(outputs(plain, fresh) - wanted).mean()


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
@pytest.mark.parametrize(("count", "most"), [(12, 0.35), (44, 0.1), (54, 0.1)])
def test_few_images_are_not_learnt_by_heart(count, most, ridge):
    """A head that reads one vector of 48 columns per image; with as many images as columns, noise is learnt best."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(64, 3, strides=2, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(40, name="head")(layers.GlobalAveragePooling2D()(x)))
    randomise(model)
    rng = np.random.default_rng(8)
    images = (rng.normal(size=(160, 1, 1, 3)) + rng.normal(size=(160, 12, 12, 3))).astype("float32")
    fresh, images = images[:64], images[64 : 64 + count]
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget({"conv": 0.75}))
    wanted = outputs(model, fresh)

    def error(compensate):
        small = kfp.apply_plan(model, plan, data=images, compensate=compensate, progress=False)
        return np.square(outputs(small, fresh) - wanted).mean() / wanted.var(axis=0).mean()

    assert error(compensators.LeastSquares(ridge=ridge)) < most * error("mean_shift")


@pytest.mark.parametrize("criterion", [criteria.CaP(), criteria.Energy()], ids=repr)
def test_a_channel_that_nobody_reads_goes_first(criterion):
    model = built()
    kernel = np.asarray(model.get_layer("conv2").kernel.value).copy()
    kernel[:, :, 5] = 0
    model.get_layer("conv2").kernel.assign(kernel)
    plan = kfp.plan_pruning(model, criterion, kfp.FiltersBudget({"conv1": 0.9}), data=IMAGES, progress=False)
    assert plan.kept["conv1"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_cap_gives_up_a_redundant_channel_that_energy_keeps():
    model = built(normalised=False)
    kernel = np.asarray(model.get_layer("conv1").kernel.value).copy()
    kernel[..., 3] = kernel[..., 8] = 3 * kernel[..., 3]
    model.get_layer("conv1").kernel.assign(kernel)
    budget = kfp.FiltersBudget({"conv1": 0.9})
    cap = kfp.plan_pruning(model, "cap", budget, data=IMAGES, progress=False)
    energy = kfp.plan_pruning(model, "energy", budget, data=IMAGES, progress=False)
    assert len({3, 8} & set(cap.kept["conv1"])) == 1
    assert {3, 8} <= set(energy.kept["conv1"])


@pytest.mark.parametrize("name", ["cap", "energy"])
def test_missing_calibration_data_is_a_clear_error_before_any_work(name):
    with pytest.raises(errors.CalibrationDataError, match=r"needs calibration inputs: pass data="):
        kfp.prune_model(built(), name, 0.5)


def test_one_image_is_not_enough():
    with pytest.raises(errors.CalibrationDataError, match="at least 2 samples"):
        kfp.prune_model(built(), "cap", 0.5, data=IMAGES[:1], progress=False)


def test_a_plan_replays_with_the_compensator_of_its_method():
    model = built()
    direct = kfp.prune_model(model, "cap", 0.6, data=IMAGES, progress=False)
    plan = kfp.plan_pruning(model, "cap", 0.6, data=IMAGES, progress=False)
    replayed = kfp.apply_plan(model, plan, data=IMAGES, progress=False)
    for a, b in zip(direct.weights, replayed.weights, strict=True):
        assert (np.asarray(a.value) == np.asarray(b.value)).all()
