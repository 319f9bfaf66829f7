"""export_tflite: the file computes what the model computes, or there is no file and the error says why."""

import dataclasses
import itertools
import json
import os
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from builders import assert_all_equal, images

from keras_filterprune.errors import (
    CalibrationDataError,
    ExportError,
    FileError,
    InvalidValueError,
    MissingPackageError,
    UnknownNameError,
    UnsupportedModelError,
)
from keras_filterprune.export import export_tflite
from keras_filterprune.export.calibration import calibration_samples
from keras_filterprune.export.parity import measure_parity
from keras_filterprune.export.signature import input_ports


def classifier(width=16):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            keras.layers.Conv2D(width, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(2 * width, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ],
        name="classifier",
    )


def two_inputs():
    """Dict input whose keys are not in alphabetical order, nested output with three equal shapes."""
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    extra = keras.Input((4,), name="extra")
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 3, activation="relu")(image))
    merged = keras.layers.Concatenate()([features, extra])
    heads = [keras.layers.Dense(5)(merged) for _ in range(3)]
    return keras.Model({"image": image, "extra": extra}, {"z": heads[0], "a": [heads[1], heads[2]]}, name="two_inputs")


class Betainc(keras.layers.Layer):
    def call(self, inputs):
        import tensorflow as tf

        return tf.math.betainc(inputs, inputs, inputs)


class ActsDifferentlyWhenTraced(keras.layers.Layer):
    def call(self, inputs):
        import tensorflow as tf

        return inputs if tf.executing_eagerly() else 1.1 * inputs


def run_file(path, **inputs):
    return Interpreter(model_path=os.fspath(path)).get_signature_runner()(**inputs)


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    model = classifier()
    return model, export_tflite(model, tmp_path_factory.mktemp("float") / "model.tflite")


def test_float32_file_computes_what_keras_computes(float_file):
    model, result = float_file
    sample = images(1, (12, 12, 3), seed=5)
    (output,) = run_file(result.path, image=sample).values()
    np.testing.assert_allclose(output, model.predict(sample, verbose=0), atol=1e-5)
    assert result.max_abs_difference < 1e-5
    assert result.top1_agreement == 1.0
    assert result.bytes == result.path.stat().st_size
    assert result.ops == {"CONV_2D": 2, "FULLY_CONNECTED": 1, "MEAN": 1}


def test_result_is_frozen_and_json_ready(float_file):
    _, result = float_file
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert result.to_dict()["path"] == os.fspath(result.path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.bytes = 0


def test_nothing_but_the_file_is_left_and_the_model_is_unchanged(tmp_path):
    model = classifier()
    model.compile("sgd", "mse")
    config, weights = model.get_config(), model.get_weights()
    export_tflite(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert model.get_config() == config
    assert model.compiled
    assert_all_equal(weights, model.get_weights())


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_values_per_channel_of_an_image_are_stored_by_column(quantize, tmp_path):
    x = keras.Input((12, 10, 3))
    y = keras.layers.Rescaling([0.5, 2.0, 1.0], offset=[1.0, 0.0, -1.0], name="rescaling")(x)
    y = keras.layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0], name="normalization")(y)
    model = keras.Model(x, keras.layers.Rescaling(0.1, name="last")(keras.layers.Conv2D(16, 3)(y)))
    rescaling, normalization = model.get_layer("rescaling"), model.get_layer("normalization")
    before = [np.array(v) for v in (rescaling.scale, rescaling.offset, normalization.mean, normalization.variance)]
    samples = np.random.default_rng(0).standard_normal((24, 12, 10, 3)).astype("float32")
    result = export_tflite(model, tmp_path / "m.tflite", quantize=quantize, data=samples)
    assert result.relative_difference < (1e-6 if quantize is None else 0.04)
    interpreter = Interpreter(os.fspath(result.path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    shapes = [tuple(detail["shape"]) for detail in interpreter.get_tensor_details()]
    assert sum((shape[-2:] == (10, 3) and len(shape) < 4) or shape == (1, 1, 10, 3) for shape in shapes) == 4
    assert not any(shape in ((3,), (1, 1, 1, 3)) for shape in shapes)
    after = rescaling.scale, rescaling.offset, normalization.mean, normalization.variance
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_other_values_of_an_image_stay_as_they_are(tmp_path):
    scales = [2.0, [[[0.5]], [[2.0]], [[1.0]]], np.arange(36.0).reshape(3, 4, 3)]
    inputs = [keras.Input((3, 4, 3)) for _ in scales]
    model = keras.Model(inputs, [keras.layers.Rescaling(scale)(x) for scale, x in zip(scales, inputs, strict=True)])
    assert export_tflite(model, tmp_path / "m.tflite").relative_difference < 1e-6


def test_a_layer_on_images_of_two_sizes_keeps_its_values(tmp_path):
    rescaling = keras.layers.Rescaling([0.5, 2.0, 1.0])
    inputs = [keras.Input((8, width, 3)) for width in (6, 7)]
    model = keras.Model(inputs, [rescaling(x) for x in inputs])
    result = export_tflite(model, tmp_path / "m.tflite")
    assert result.relative_difference < 1e-6


def test_dict_inputs_and_nested_outputs_keep_their_names(tmp_path):
    model = two_inputs()
    result = export_tflite(model, tmp_path / "model.tflite")
    generator = np.random.default_rng(3)
    inputs = {
        "image": generator.standard_normal((1, 8, 8, 3)).astype("float32"),
        "extra": generator.standard_normal((1, 4)).astype("float32"),
    }
    expected = model(inputs)
    actual = run_file(result.path, **inputs)
    assert sorted(actual) == ["a_0", "a_1", "z"]
    np.testing.assert_allclose(actual["z"], expected["z"], atol=1e-5)
    np.testing.assert_allclose(actual["a_0"], expected["a"][0], atol=1e-5)
    np.testing.assert_allclose(actual["a_1"], expected["a"][1], atol=1e-5)
    assert result.top1_agreement is None


def test_names_that_are_no_identifiers_and_integer_inputs(tmp_path):
    tokens = keras.Input((6,), dtype="int32", name="my tokens")
    other = keras.Input((6,), dtype="int32", name="my-tokens")
    embed = keras.layers.Embedding(2, 4)
    model = keras.Model([tokens, other], [embed(tokens), keras.layers.Flatten()(embed(other))])
    result = export_tflite(model, tmp_path / "model.tflite")
    assert result.max_abs_difference < 1e-6
    ids = np.array([[0, 1, 1, 0, 1, 0]], "int32")
    assert sorted(run_file(result.path, my_tokens=ids, my_tokens_=ids)) == ["output_0", "output_1"]


def test_unnamed_input_gets_a_name_that_does_not_depend_on_the_process(tmp_path):
    x = keras.Input((4,))
    result = export_tflite(keras.Model(x, keras.layers.Dense(2)(x)), tmp_path / "model.tflite", verify=False)
    assert list(run_file(result.path, input_0=np.zeros((1, 4), "float32"))) == ["output_0"]
    assert result.max_abs_difference is None
    assert result.top1_agreement is None


def test_int8_is_small_and_close(tmp_path, float_file):
    model = classifier(width=64)
    big = export_tflite(model, tmp_path / "float.tflite")
    small = export_tflite(model, tmp_path / "int8.tflite", quantize="int8", data=images(24, (12, 12, 3)))
    assert small.bytes < 0.5 * big.bytes
    assert small.quantize == "int8"
    assert small.ops["QUANTIZE"] == small.ops["DEQUANTIZE"] == 1
    largest = float(np.abs(model.predict(images(24, (12, 12, 3)), verbose=0)).max())
    assert 0 < small.max_abs_difference < 0.05 * largest
    assert small.top1_agreement > 0.8
    (output,) = run_file(small.path, image=images(1, (12, 12, 3))).values()
    assert output.dtype == np.float32


def test_float16_halves_the_weights_and_is_closer_than_int8(tmp_path, float_file):
    model = classifier(width=64)
    big, half, small = (
        export_tflite(model, tmp_path / f"{mode}.tflite", quantize=mode, data=images(24, (12, 12, 3)))
        for mode in ("float32", "float16", "int8")
    )
    assert small.bytes < half.bytes < 0.6 * big.bytes
    assert big.max_abs_difference < half.max_abs_difference < 0.1 * small.max_abs_difference
    (output,) = run_file(half.path, image=images(1, (12, 12, 3))).values()
    assert output.dtype == np.float32


def test_int8_takes_calibration_by_name_or_by_position(tmp_path):
    model = two_inputs()
    generator = np.random.default_rng(0)
    image = generator.standard_normal((10, 8, 8, 3))
    extra = generator.standard_normal((10, 4))
    named = export_tflite(model, tmp_path / "a.tflite", quantize="int8", data={"image": image, "extra": extra})
    # Keras flattens dicts by sorted key.
    listed = export_tflite(model, tmp_path / "b.tflite", quantize="int8", data=[extra, image])
    assert named.path.read_bytes() == listed.path.read_bytes()


def test_calibration_by_a_function_that_yields_batches():
    """TensorFlow's `representative_dataset`, of one sample each or of several, endless ones too."""
    ports = input_ports(two_inputs())
    extra, image = np.arange(40.0).reshape(10, 4), np.zeros((10, 8, 8, 3))
    wanted = calibration_samples(ports, [extra, image])

    def same(function, times=1):
        found = calibration_samples(ports, function)
        return all(np.array_equal(np.concatenate([wanted[key]] * times)[:2048], found[key]) for key in wanted)

    assert same(lambda: ([extra[i : i + 1], image[i : i + 1]] for i in range(10)))
    assert same(lambda: ({"extra": extra[i : i + 5], "image": image[i : i + 5]} for i in (0, 5)))
    assert same(lambda: itertools.repeat((extra, image)), 205)
    with pytest.raises(CalibrationDataError, match="holds no samples"):
        calibration_samples(ports, lambda: iter(()))
    with pytest.raises(
        CalibrationDataError, match=r"one array per model input \['extra', 'image'\]. Received: 1 arrays"
    ):
        calibration_samples(ports, lambda: iter([[extra, image], [extra]]))


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (None, r"quantize='int8' needs data=.*'image' \(12, 12, 3\)"),
        (
            np.zeros((5, 12, 12, 1)),
            r"data for input 'image' is numeric and finite, with shape \('samples', 12, 12, 3\)\. Received: shape=",
        ),
        (np.zeros((12, 12, 3)), r"Received: shape=\(12, 12, 3\)\."),
        (np.zeros((0, 12, 12, 3)), r"Received: shape=\(0, 12, 12, 3\), no samples\."),
        (np.full((2, 12, 12, 3), np.nan), r"Received: 864 NaN or infinite values of 864\."),
        (np.full((2, 12, 12, 3), "x"), r"Received: ndarray with dtype=<U1\."),
        ([[[1.0], [1.0, 2.0]]], r"Received: a ragged list"),
        ([np.zeros((12, 12, 3))] * 3, r"one array per input \['image'\]\. Received: 3 arrays\. Stack a list"),
        ({"picture": np.zeros((5, 12, 12, 3))}, r"one array per input \['image'\]\. Received: keys=\['picture'\]\."),
    ],
)
def test_bad_calibration_says_what_was_expected(tmp_path, float_file, calibration, sentence):
    with pytest.raises(CalibrationDataError, match=sentence):
        export_tflite(float_file[0], tmp_path / "model.tflite", quantize="int8", data=calibration)
    assert os.listdir(tmp_path) == []


def test_bad_calibration_of_several_inputs(tmp_path):
    model = two_inputs()
    with pytest.raises(CalibrationDataError, match=r"2 inputs \['extra', 'image'\].*\. Received: one ndarray\."):
        export_tflite(model, tmp_path / "m.tflite", quantize="int8", data=np.zeros((5, 4)))
    uneven = {"image": np.zeros((5, 8, 8, 3)), "extra": np.zeros((4, 4))}
    with pytest.raises(CalibrationDataError, match=r"same number of samples for every input\. Received: .*'extra': 4"):
        export_tflite(model, tmp_path / "m.tflite", data=uneven)


def test_operator_without_tflite_counterpart_is_named_and_the_old_file_survives(tmp_path, capfd):
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, Betainc(name="beta")(keras.layers.Conv2D(2, 3, activation="sigmoid")(x)))
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=r"TFLite has no operator for Betainc \(layer 'beta'\)"):
        export_tflite(model, path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert capfd.readouterr() == ("", "")


def test_int8_of_a_loop_is_refused_instead_of_crashing_the_converter(tmp_path):
    def recurrent(unroll):
        x = keras.Input((3, 2))
        return keras.Model(x, keras.layers.GRU(4, unroll=unroll)(x), name="loop")

    settings = {"quantize": "int8", "data": np.random.default_rng(0).standard_normal((8, 3, 2))}
    with pytest.raises(ExportError, match=r"'loop' contains WHILE \(.*\)\. Build recurrent layers with unroll=True"):
        export_tflite(recurrent(unroll=False), tmp_path / "model.tflite", **settings)
    assert os.listdir(tmp_path) == []
    assert export_tflite(recurrent(unroll=False), tmp_path / "float.tflite").max_abs_difference < 1e-5
    assert export_tflite(recurrent(unroll=True), tmp_path / "int8.tflite", **settings).max_abs_difference < 0.05


def test_file_that_computes_something_else_is_refused(tmp_path):
    x = keras.Input((6,))
    model = keras.Model(x, ActsDifferentlyWhenTraced()(keras.layers.Dense(4)(x)), name="moody")
    with pytest.raises(ExportError, match=r"differs from model 'moody' by 0\.1 .*at most 0\.001 is expected"):
        export_tflite(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []
    assert export_tflite(model, tmp_path / "model.tflite", verify=False).bytes > 0


def test_one_damaged_weight_is_noticed(float_file):
    model, result = float_file
    content = bytearray(result.path.read_bytes())
    kernel = model.layers[-1].kernel.numpy().T.tobytes()
    start = content.find(kernel)
    assert start > 0
    content[start : start + 4] = np.float32(3.0).tobytes()
    ports = input_ports(model)
    parity = measure_parity(model, bytes(content), ports, {"image": images(4, (12, 12, 3))})
    assert parity.relative_difference > 1e-3
    with pytest.raises(ExportError, match="LiteRT cannot run the converted file"):
        measure_parity(model, bytes(content[:-200]), ports, {"image": images(4, (12, 12, 3))})


def test_outputs_of_another_model_are_noticed(float_file):
    _, result = float_file
    x = keras.Input((12, 12, 3), name="image")
    other = keras.Model(x, keras.layers.GlobalAveragePooling2D()(x))
    with pytest.raises(ExportError, match=r"'output_0' .* shape \(2, 3\) for 2 samples, but .* file has .*10"):
        measure_parity(other, result.path.read_bytes(), input_ports(other), {"image": images(2, (12, 12, 3))})


def test_nan_weights_are_refused(tmp_path):
    model = classifier()
    model.layers[0].bias.assign(np.full(16, np.nan))
    with pytest.raises(ExportError, match="the Keras model computes NaN or infinite values in output 'output_0'"):
        export_tflite(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []


def test_existing_file_is_kept_unless_overwritten(tmp_path, float_file):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    with pytest.raises(FileError, match=r"already exists and is kept. Choose another name, or pass overwrite"):
        export_tflite(float_file[0], path)
    assert path.read_bytes() == b"old"
    export_tflite(float_file[0], path, overwrite=True)
    assert path.read_bytes() == float_file[1].path.read_bytes()


def test_bad_destinations(tmp_path, float_file):
    model = float_file[0]
    with pytest.raises(FileError, match=r"it is a folder; expected a file name"):
        export_tflite(model, tmp_path, overwrite=True)
    with pytest.raises(FileError, match=r"missing does not exist. Create it first"):
        export_tflite(model, tmp_path / "missing" / "model.tflite")
    # Permissions do not stop root, a name that the file system refuses does.
    with pytest.raises(FileError, match=r"cannot write .* File name too long"):
        export_tflite(model, tmp_path / ("x" * 256))
    assert os.listdir(tmp_path) == []


def test_models_that_cannot_be_exported_say_what_to_do(tmp_path):
    path = tmp_path / "model.tflite"
    x = keras.Input((None, None, 3), name="photo")
    with pytest.raises(ExportError, match=r"input 'photo' .* shape=\(None, None, None, 3\). Fix the size"):
        export_tflite(keras.Model(x, keras.layers.Conv2D(2, 3)(x)), path)
    x = keras.Input((8, 8, 3))
    conv = keras.Model(x, keras.layers.Conv2D(2, 3)(x))
    words = keras.Input((3,), dtype="string", name="words")
    with pytest.raises(
        ExportError, match=r"dtype that NumPy and TFLite share.*Received: dtype='string' of input 'words'"
    ):
        export_tflite(keras.Model(words, keras.layers.Hashing(3)(words)), path)
    with pytest.raises(
        UnsupportedModelError, match=r"built functional or Sequential .* Received: Sequential 'empty'\."
    ):
        export_tflite(keras.Sequential([keras.layers.Dense(2)], name="empty"), path)
    with pytest.raises(UnsupportedModelError, match=r"Received: str 'model\.keras'\."):
        export_tflite("model.keras", path)
    with pytest.raises(
        UnknownNameError,
        match=r"quantize is one of float32, .*int16x8, or None\. Received: quantize='int4'\. Did you mean 'int8'\?",
    ):
        export_tflite(conv, path, quantize="int4")
    with pytest.raises(
        InvalidValueError, match=r"belong to int8 and int16x8\. Received: quantize='float16'.*integer_io=True"
    ):
        export_tflite(conv, path, quantize="float16", integer_io=True)
    with pytest.raises(
        InvalidValueError, match=r"keep_float is a sequence of names\. Received: keep_float='CONV_2D'\."
    ):
        export_tflite(conv, path, quantize="int8", keep_float="CONV_2D")
    with pytest.raises(InvalidValueError, match=r"tolerance is a number, above 0, or None\. Received: tolerance=-1\."):
        export_tflite(conv, path, tolerance=-1)
    assert os.listdir(tmp_path) == []


def test_missing_runtime_names_the_packages(tmp_path, float_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingPackageError, match=r"ai_edge_litert, which cannot .* pip install .*ai-edge-litert"):
        export_tflite(float_file[0], tmp_path / "model.tflite")
