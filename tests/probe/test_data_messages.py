"""Data that does not fit gets one clear sentence, and nothing changes: no weight, no file."""

import re

import keras
import numpy as np
import pytest
from builders import images
from refusals import fails
from zoo import ZOO, randomise

import keras_filterprune as kfp
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.compensators import BNRecalibration


def with_nan(value):
    array = images(4, (12, 12, 3))
    array[2, 1, 1, 1] = value
    return array


BAD_DATA = {
    "no samples": (images(0, (12, 12, 3)), "calibration data holds no samples"),
    "no batches": (iter(()), "calibration data holds no samples"),
    "no arrays": ([], r"expected one array per model input \['image'\]\. Received: 0 arrays\."),
    "rank": (images(12, (12, 3)), r"input 'image' has shape \(12, 12, 3\); expected \(samples, 12, 12, 3\)\."),
    "channels": (images(4, (12, 12, 1)), r"has shape \(4, 12, 12, 1\); expected \(samples, 12, 12, 3\)\."),
    "side": (images(4, (12, 10, 3)), r"has shape \(4, 12, 10, 3\); expected"),
    "a later batch": (iter([images(4, (12, 12, 3)), images(4, (9, 9, 3))]), r"has shape \(4, 9, 9, 3\)"),
    "nan": (with_nan(np.nan), "calibration data for input 'image' holds NaN or infinite values"),
    "inf": (with_nan(-np.inf), "calibration data for input 'image' holds NaN or infinite values"),
    "four arrays": (
        [images(4, (12, 12, 3)), *[np.zeros(4)] * 3],
        r"expected one array .* \['image'\]\. Received: 4 arrays",
    ),
    "keys": ({"picture": images(4, (12, 12, 3))}, r"model input \['image'\]\. Received: keys=\['picture'\]\."),
    "number": (5, r"calibration data is an array, .*, or batches of them\. Received: int\."),
    "function": (print, r"Received: NoneType\."),
    "text": ("abc", r"calibration data is an array, .*, or batches of them\. Received: str\."),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_calibration_data_that_does_not_fit(chain, case):
    data, sentence = BAD_DATA[case]
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, data=data, progress=False)


def test_calibration_data_that_a_plan_does_not_fit(chain):
    plan, (data, sentence) = kfp.plan_pruning(chain, "l2", kfp.FiltersBudget(0.5)), BAD_DATA["side"]
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.apply_plan, chain, plan, data=data, progress=False)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((), r"expected one array per model input \['image'\]\. Received: 0 arrays\."),
        ([[[1.0, 2.0], [3.0]]], "calibration data is ragged: .* Expected arrays of one shape"),
        (np.full((4, 12, 12, 3), "a"), r"calibration data is numeric\. Received: ndarray of <U1\."),
        ({1: images(4, (12, 12, 3)), "b": images(1, (1,))}, r"model input \['image'\]\. Received: keys=\['1', 'b'\]\."),
    ],
    ids=["empty tuple", "ragged", "strings", "mixed keys"],
)
def test_calibration_data_of_no_numbers(chain, data, sentence):
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, data=data)


def test_samples_of_two_inputs_must_match(bad):
    model = bad.use(ZOO["siamese"]())
    data = [images(4, (6, 8, 3)), images(3, (6, 8, 3))]
    sentence = r"every input needs the same number of samples\. Received: \[4, 3\]\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, model, data=data, progress=False)
    sentence = r"expected one array per model input \['left', 'right'\]\. Received: 1 arrays\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, model, data=data[0], progress=False)


def test_wrong_channels_on_a_model_with_open_sides():
    x = keras.Input((None, None, 3), name="image")
    y = keras.layers.Conv2D(6, 3, name="conv")(x)
    y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(y)))
    fails(
        errors.CalibrationDataError,
        ValueError,
        r"has shape \(4, 9, 9, 5\)",
        kfp.prune_model,
        keras.Model(x, y),
        data=images(4, (9, 9, 5)),
        progress=False,
    )


def test_a_compensator_without_its_data_stops_before_any_work(chain, monkeypatch):
    monkeypatch.setattr("keras_filterprune.outcome.rebuild", lambda *_: pytest.fail("work was done"))
    sentence = r"BNRecalibration\(\) needs calibration inputs: pass data=\. A few hundred are enough\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, compensate=BNRecalibration())


NEEDS_DATA = ["least_squares", "bn", "mean_shift"]


@pytest.mark.parametrize("compensate", NEEDS_DATA)
def test_a_compensator_by_name_without_its_data(chain, compensate):
    sentence = r"\) needs calibration inputs: pass data=\. A few hundred are enough\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, compensate=compensate)


@pytest.mark.parametrize(
    ("method", "measure"),
    [
        ("search", "auto"),
        (kfp.Method(criteria.L2(), allocators.Search(measure="error")), "error"),
        (kfp.Method(criteria.L2(), allocators.Tolerance(measure="accuracy")), "accuracy"),
    ],
    ids=["by name", "search", "tolerance"],
)
def test_a_measure_without_data(chain, method, measure):
    sentence = rf"(measure='{measure}' needs samples to measure on|needs calibration inputs): pass data="
    for call in (kfp.prune_model, kfp.plan_pruning):
        fails(errors.CalibrationDataError, ValueError, sentence, call, chain, method)


@pytest.mark.parametrize(
    "allocator", [allocators.Search(), allocators.Tolerance(), allocators.Tolerance(drop=0.1)], ids=repr
)
def test_accuracy_without_labels(chain, allocator):
    sentence = (
        r"'auto' needs labelled samples: pass data=\(x, y\) or batches of them, not from the test split\. What "
        r"measures an 'error' needs no labels\."
    )
    method = kfp.Method(criteria.L2(), allocator)
    for data in (images(8, (12, 12, 3)), (images(8, (12, 12, 3)),), {"image": images(8, (12, 12, 3))}):
        fails(
            errors.CalibrationDataError,
            ValueError,
            sentence,
            kfp.prune_model,
            chain,
            method,
            data=data,
            progress=False,
        )
    fails(
        errors.CalibrationDataError,
        ValueError,
        sentence,
        kfp.prune_model,
        chain,
        "search",
        data=images(8, (12, 12, 3)),
        progress=False,
    )


BAD_LABELS = {
    "too few": np.zeros(5, int),
    "per position": np.zeros((8, 12, 12), int),
    "fractions": np.full(8, 0.5),
    "nan": np.where(np.arange(8) == 3, np.nan, 1.0),
    "strings": np.array(list("abababab")),
    "none": None,
    "by output": {"scores": np.zeros(8, int)},
    "of two outputs": [np.zeros(8, int), np.zeros((8, 3))],
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_are_no_class_numbers(chain, case):
    data = images(8, (12, 12, 3)), BAD_LABELS[case]
    method = kfp.Method(criteria.L2(), allocators.Search())
    sentence = r"'(accuracy|auto)' (expects (one class number per sample|.*labels)|needs labelled samples)"
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, method, data=data, progress=False)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_nobody_looks_at_do_not_matter(chain, case):
    data = images(8, (12, 12, 3)), BAD_LABELS[case]
    small = kfp.prune_model(chain, "energy", 0.5, data=data, compensate="mean_shift", progress=False)
    assert small.count_params() < chain.count_params()


@pytest.mark.parametrize("name", ["multi_input_output", "unet"])
def test_accuracy_of_a_model_that_gives_no_single_class(bad, name):
    """Two outputs side by side, or a class per position, are no scores of one class per sample."""
    model = bad.use(ZOO[name]())
    x = [images(8, tensor.shape[1:]) for tensor in model.inputs]
    with pytest.raises(kfp.FilterPruneError):
        kfp.plan_pruning(
            model,
            kfp.Method(criteria.L2(), allocators.Search()),
            0.5,
            data=(x, np.zeros(8, int)),
            progress=False,
        )


@pytest.mark.parametrize(
    "method",
    ["pursuit", "energy", "cap", kfp.Method(criteria.L2(), allocators.Search(measure="error"))],
    ids=["pursuit", "energy", "cap", "search"],
)
def test_one_image_for_a_method(chain, method):
    sentence = r"calibration needs at least 2 samples, better a few hundred\. Received: 1\."
    data = images(1, (12, 12, 3))
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, method, data=data, progress=False)


@pytest.mark.parametrize("compensate", ["least_squares", "mean_shift", "bn", "linear", "adapter"])
def test_one_image_for_a_compensator(chain, compensate):
    data = images(1, (12, 12, 3))
    if compensate in ("bn", "linear"):
        # Its positions are samples enough; or no data is looked at.
        assert all_finite(kfp.prune_model(chain, "l2", 0.5, data=data, compensate=compensate, progress=False))
        return
    arguments = {"data": data, "compensate": compensate, "progress": False}
    sentence = r"calibration needs at least 2 samples, better a few hundred\. Received: 1\."
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, **arguments)


@pytest.mark.parametrize("compensate", ["least_squares", "bn", "mean_shift"])
def test_a_later_batch_of_a_wrong_shape(chain, compensate):
    data = iter([images(4, (12, 12, 3)), images(4, (12, 12, 4))])
    sentence = r"input 'image' has shape \(4, 12, 12, 4\); expected \(samples, 12, 12, 3\)\."
    arguments = {"data": data, "compensate": compensate, "progress": False}
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, chain, **arguments)


def all_finite(model):
    return all(np.isfinite(weight).all() for weight in model.get_weights())


COMPENSATORS = ["least_squares", "bn", "mean_shift", "linear", "adapter"]


@pytest.mark.parametrize(
    ("method", "compensate"),
    [*(("l2", name) for name in COMPENSATORS), *((name, "none") for name in ("energy", "cap", "pursuit", "lrf"))],
)
def test_constant_channels_give_finite_weights(bad, method, compensate):
    """Filters of zeros, scales of zero, channels that a ReLU switches off, and images that are all the same."""
    model = ZOO["conv_bn_relu_chain"]()
    for layer, weight, where, value in (
        ("conv1", "kernel", [0, 1], 0.0),
        ("conv1_bn", "gamma", [2, 3], 0.0),
        ("conv1_bn", "beta", [3, 4], -50.0),
        ("conv2", "kernel", [5, 6, 7], 0.0),
        ("conv3", "kernel", [0, 1, 2, 3], 0.0),
        ("conv3_bn", "gamma", [3, 4, 5], 0.0),
    ):
        variable = getattr(model.get_layer(layer), weight)
        array = variable.numpy().copy()
        array[..., where] = value
        variable.assign(array)
    bad.use(model)
    budget = kfp.FiltersBudget(0.5) if compensate == "adapter" else 0.4
    for data in (images(16, (12, 12, 3)), np.ones((16, 12, 12, 3), "float32"), np.zeros((16, 12, 12, 3), "float32")):
        small = kfp.prune_model(model, method, budget, data=data, compensate=compensate, progress=False)
        assert all_finite(small)
        assert np.isfinite(small(data)).all()


def logarithms():
    """Finite inputs, but the logarithm of negative numbers in the middle."""
    x = keras.Input((8, 8, 3), name="image")
    y = keras.ops.log(keras.layers.Conv2D(6, 3, padding="same", name="conv1")(x))
    y = keras.layers.Conv2D(5, 3, padding="same", name="conv2")(y)
    y = keras.layers.BatchNormalization(name="bn")(y)
    y = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D()(y))
    return randomise(keras.Model(x, y, name="logarithms"))


@pytest.mark.parametrize("compensate", COMPENSATORS)
def test_activations_that_are_not_finite_for_a_compensator(bad, compensate):
    """Either a clear error that names a layer, or weights that are finite."""
    model, data = bad.use(logarithms()), images(16, (8, 8, 3))
    budget = kfp.FiltersBudget(0.5)
    try:
        small = kfp.prune_model(model, "l2", budget, data=data, compensate=compensate, verify=False, progress=False)
    except errors.CalibrationDataError as error:
        assert re.search("'(conv2|bn|head|log[_0-9]*)'", str(error))
        return
    assert all_finite(small)


@pytest.mark.parametrize(
    "method",
    [
        "energy",
        "cap",
        "pursuit",
        kfp.Method(criteria.L2(), allocators.Search(measure="error")),
        kfp.Method(criteria.L2(), allocators.Tolerance(measure="error")),
    ],
    ids=["energy", "cap", "pursuit", "search", "tolerance"],
)
def test_activations_that_are_not_finite_for_a_method(bad, method):
    model = bad.use(logarithms())
    sentence = "'(conv2|bn|head|log[_0-9]*)'"
    arguments = {"data": images(16, (8, 8, 3)), "compensate": "none", "progress": False}
    fails(errors.CalibrationDataError, ValueError, sentence, kfp.prune_model, model, method, 0.5, **arguments)


@pytest.mark.parametrize("compensate", ["none", *COMPENSATORS])
@pytest.mark.parametrize("keep", [1e-9, 0.01])
def test_one_filter_stays_whatever_the_fraction(chain, keep, compensate):
    budget = kfp.FiltersBudget(keep)
    small = kfp.prune_model(chain, "l2", budget, data=images(16, (12, 12, 3)), compensate=compensate, progress=False)
    inner = "conv3" if compensate == "adapter" else "conv1"
    assert small.get_layer(inner).filters == 1
    assert all_finite(small)
    assert np.isfinite(small(images(2, (12, 12, 3)))).all()
