"""Merging: the readers of a filter that goes are added to those of the one that resembles it most."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from builders import array, assert_same, images
from keras import layers
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import criteria
from keras_filterprune.probe.regression import mixed_by_nearest


def output(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """All outputs as one array (samples, values)."""
    flat = keras.tree.flatten(model(x, training=False))
    return np.concatenate([keras.ops.convert_to_numpy(y).reshape(len(x), -1).astype(float) for y in flat], axis=1)


def normalized(y, number: int):
    return layers.ReLU()(layers.BatchNormalization(epsilon=1e-7, name=f"bn{number}")(y))


def first_block(inputs):
    return normalized(layers.Conv2D(8, 3, padding="same", name="conv1")(inputs), 1)


def chain(inputs):
    return layers.Conv2D(4, 3, name="next")(first_block(inputs))


def residual(inputs):
    y = first_block(inputs)
    z = layers.BatchNormalization(name="bn2")(layers.Conv2D(8, 3, padding="same", name="conv2")(y))
    return layers.Conv2D(4, 3, name="next")(layers.ReLU()(layers.Add()([y, z])))


def flattened(inputs):
    return layers.Dense(4, name="next")(layers.Flatten()(layers.MaxPooling2D(2)(first_block(inputs))))


def depthwise(inputs):
    y = layers.DepthwiseConv2D(3, name="conv2")(first_block(inputs))
    return layers.Conv2D(4, 1, name="next")(normalized(y, 2))


def dense(inputs):
    y = layers.Dense(8, activation="relu", name="conv1")(layers.GlobalAveragePooling2D()(inputs))
    return layers.Dense(4, name="next")(y)


def several(inputs):
    y = first_block(inputs)
    after = layers.BatchNormalization(name="after")(layers.Conv2D(5, 3, strides=2, use_bias=False, name="next")(y))
    return [after, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)), layers.Conv2DTranspose(2, 3, strides=2)(y)]


BUILDERS = [chain, residual, flattened, depthwise, dense, several]


def build(make) -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    return randomise(keras.Model(inputs, make(inputs)), seed=3)


def copy_units(model: keras.Model, pairs, factors: dict[str, float] | None = None) -> None:
    """Make unit b of the layers conv1, conv2, bn1, bn2 that there are unit a, weight by weight times a factor."""
    for layer in model.layers:
        if layer.name in ("conv1", "conv2", "bn1", "bn2"):
            for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"):
                if getattr(layer, name, None) is not None:
                    values = array(getattr(layer, name))
                    axis = -2 if name == "kernel" and isinstance(layer, layers.DepthwiseConv2D) else -1
                    units = np.moveaxis(values, axis, 0)
                    for a, b in pairs:
                        units[b] = (factors or {}).get(name, 1) * units[a]
                    getattr(layer, name).assign(values)


def without(model: keras.Model, method="similarity", keep: float = 6 / 8, compensate="auto") -> tuple:
    """(smaller model, kept units of conv1)."""
    budget = kfp.FiltersBudget({"conv1": keep})
    small, report = kfp.prune_model(
        model, method, budget, compensate=compensate, return_report=True, progress=False, verify=False
    )
    return small, next(g["kept"] for g in report.plan.groups if g["name"] == "conv1")


@pytest.mark.parametrize("method", ["similarity", "nystrom"])
@pytest.mark.parametrize("make", BUILDERS, ids=lambda f: f.__name__)
def test_duplicates_are_merged_exactly(make, method):
    model = build(make)
    copy_units(model, [(1, 5), (2, 7)])
    small, kept = without(model, method)
    assert kept == [0, 1, 2, 3, 4, 6]
    assert_same(model, small, images(), 1e-4)
    plain, _ = without(model, method, compensate="none")
    assert np.abs(output(plain, images()) - output(model, images())).max() > 1e-2


SCALED = {
    "filters and mean": ("kernel", "bias", "moving_mean", "beta"),
    "scale alone": ("gamma", "beta"),
    "everything": ("kernel", "bias", "moving_mean", "gamma", "beta"),
}


@pytest.mark.parametrize("make", [chain, flattened, several], ids=lambda f: f.__name__)
@pytest.mark.parametrize("factor", [0.25, 3.0])
@pytest.mark.parametrize("scaled", SCALED)
def test_multiples_in_front_of_a_relu_are_merged_exactly(scaled, factor, make):
    model = build(make)
    factors = dict.fromkeys(SCALED[scaled], factor)
    if scaled == "everything":
        # The variance goes along, and the scale makes up for it.
        factors["moving_variance"] = factor**2
    copy_units(model, [(1, 5), (2, 7)], factors)
    small, kept = without(model)
    assert len({1, 5} & set(kept)) == len({2, 7} & set(kept)) == 1
    assert_same(model, small, images(), 1e-4)


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_multiples_without_normalization_are_merged_exactly(factor):
    model = build(dense)
    copy_units(model, [(1, 5), (2, 7)], {"kernel": factor, "bias": factor})
    small, kept = without(model)
    assert kept == ([0, 1, 2, 3, 4, 6] if factor < 1 else [0, 3, 4, 5, 6, 7])
    assert_same(model, small, images(), 1e-4)
    kernel, merged = (array(m.get_layer("next").kernel) for m in (model, small))
    for a, b in ((1, 5), (2, 7)):
        stays, share = (a, factor) if factor < 1 else (b, 1 / factor)
        expected = kernel[stays] + share * kernel[a + b - stays]
        np.testing.assert_allclose(merged[kept.index(stays)], expected, rtol=1e-4, atol=1e-5)


def test_merging_brings_near_duplicates_nearer_than_removing_them():
    """Eight filters lie close together in the middle of the others, where FPGM looks first."""
    model = build(
        lambda inputs: layers.Conv2D(4, 3, name="next")(normalized(layers.Conv2D(16, 3, name="conv1")(inputs), 1))
    )
    rng = np.random.default_rng(30)
    spread = rng.normal(size=(3, 3, 3, 4))
    middle = rng.normal(size=(3, 3, 3, 1))
    kernel = np.concatenate([middle + 3 * spread, middle - 3 * spread, middle + 0.1 * rng.normal(size=(3, 3, 3, 8))], 3)
    model.get_layer("conv1").kernel.assign(kernel)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        variable = getattr(model.get_layer("bn1"), name)
        variable.assign(np.concatenate([array(variable)[:8], np.full(8, array(variable)[8])]))
    model.get_layer("conv1").bias.assign(np.zeros(16))
    wanted = output(model, images())
    merged, plain = (without(model, "fpgm", 10 / 16, how) for how in ("merge", "none"))
    assert set(range(8)) < set(merged[1]) and merged[1] == plain[1]
    errors = [np.square(output(m, images()) - wanted).mean() for m, _ in (merged, plain)]
    assert errors[0] < 0.1 * errors[1]


def test_similarity_merges_unless_there_is_data():
    for name, criterion in (
        ("similarity", criteria.Similarity("first_channel")),
        ("nystrom", criteria.Nystrom(m=3)),
    ):
        for method in (name, criterion):
            model = build(dense)
            _, report = kfp.prune_model(model, method, 0.7, return_report=True, progress=False)
            assert "without data" in report.compensation
            _, report = kfp.prune_model(model, method, 0.7, data=images(), return_report=True, progress=False)
            assert "without data" not in report.compensation


def test_a_lost_column_is_a_multiple_of_the_kept_one_it_correlates_with_most():
    rng = np.random.default_rng(31)
    factor = rng.normal(size=(9, 9)) * rng.uniform(0.1, 5, size=(9, 1))
    covariance = factor @ factor.T
    # Columns that go: 1, 4 and 8; to the last no kept one is positively correlated.
    kept = np.ones(9, bool)
    kept[[1, 4, 8]] = False
    covariance[8, kept] = covariance[kept, 8] = -np.abs(covariance[8, kept])
    found = mixed_by_nearest(covariance, kept)
    expected = np.zeros((6, 9))
    places = np.flatnonzero(kept)
    for row, place in enumerate(places):
        expected[row, place] = 1
    for lost in (1, 4):
        correlations = [covariance[p, lost] / np.sqrt(covariance[p, p] * covariance[lost, lost]) for p in places]
        row = int(np.argmax(correlations))
        assert correlations[row] > 0
        expected[row, lost] = covariance[places[row], lost] / covariance[places[row], places[row]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not found[:, 8].any()


def test_columns_that_are_constant_are_no_multiples_of_each_other():
    covariance = np.diag([0.0, 2.0, 0.0, 1.0])
    covariance[1, 3] = covariance[3, 1] = 0.5
    found = mixed_by_nearest(covariance, np.array([True, True, False, False]))
    assert found.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0.25]]
