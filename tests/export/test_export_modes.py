"""export_tflite's modes: each computes what Keras computes, in the numbers asked for, and says what is slow."""

import json
import os
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
from builders import images
from zoo import ZOO, random_inputs

import tflite_bench
from keras_filterprune.errors import ExportError, FileError, InvalidValueError, UnknownNameError
from keras_filterprune.export import export_tflite
from keras_filterprune.export.file_operators import read_operators, refuse_operators
from keras_filterprune.export.metadata import Metadata
from keras_filterprune.export.runtime import predict_tflite
from keras_filterprune.export.tflite_file import TFLiteFile
from keras_filterprune.files import replacing

layers = keras.layers


def slow_net():
    """One layer of every kind that costs too much in some mode, with names that TensorFlow's numbering could mix up."""
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, 3), name="image")
    y = layers.Conv2D(8, 3, name="conv")(x)
    y = layers.Activation("hard_swish", name="conv_1")(y)
    y = layers.BatchNormalization(name="early_bn", beta_initializer="random_normal")(y)
    y = layers.Conv2D(8, 3, name="conv_1_1")(layers.ZeroPadding2D(((0, 2), (0, 2)), name="folded")(y))
    inner = keras.Sequential([keras.Input((14, 14, 8)), layers.LayerNormalization(name="conv")], name="inner")
    y = layers.PReLU(alpha_initializer="random_uniform", name="prelu")(inner(y))
    y = layers.MaxPooling2D(2, name="pool")(layers.ZeroPadding2D(1, name="pad")(y))
    y = layers.DepthwiseConv2D(5, name="wide")(layers.UpSampling2D(name="up")(y))
    y = layers.Dense(5, activation="softmax", name="classes")(layers.GlobalAveragePooling2D(name="gap")(y))
    return keras.Model(x, y, name="slow")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """The model, and `export(mode, **options)` -> result, each exported once."""
    model, folder, done = slow_net(), tmp_path_factory.mktemp("slow"), {}

    def export(mode, **options):
        key = (mode, str(options))
        if key not in done:
            path = folder / f"{len(done)}.tflite"
            done[key] = export_tflite(model, path, quantize=mode, data=images(12, (16, 16, 3)), **options)
        return done[key]

    return model, export


def input_and_output(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path))
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


def places(result, *operators):
    """The layers of the one warning that names these operators."""
    (found,) = [warning for warning in result.warnings if set(operators) <= set(warning.operators)]
    return list(found.layers)


# For the first three the TensorFlow converter's own int8 or int16x8 is wrong, without an error.
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("ops_layout", "int8"),
        ("broadcast_merges", "int8"),
        ("dense_mlp", "int16x8"),
        ("se_keepdims", "int8"),
        ("numpy_constants", "int8"),
        ("gated_tokens", "int8"),
        ("yolo_head", "int8"),
        ("dict_input_output", "int16x8"),
        ("multi_head_attention", "int16x8"),
        ("unet", "dynamic"),
        ("bare_chain", "float16"),
    ],
)
def test_zoo_in_every_mode(tmp_path, name, mode):
    model = ZOO[name]()
    result = export_tflite(model, tmp_path / "m.tflite", quantize=mode, data=random_inputs(model, 16))
    assert result.quantize == mode
    # Half of what is accepted at most: a wrong file differs by more than 0.2.
    assert 0 <= result.relative_difference < {"int8": 0.1, "int16x8": 0.03, "dynamic": 0.03, "float16": 2e-3}[mode]


def test_modes_store_what_they_say(slow):
    _, export = slow
    size = {mode: export(mode).bytes for mode in ("float32", "float16", "dynamic", "int8", "int16x8")}
    assert size["float16"] < size["float32"]
    assert export("float32").relative_difference < 1e-5 < export("int8").relative_difference
    for mode in ("float32", "dynamic", "int8", "int16x8"):
        given, returned = input_and_output(export(mode).path)
        assert given["dtype"] == returned["dtype"] == np.float32
        assert list(given["shape_signature"]) == [1, 16, 16, 3]


@pytest.mark.parametrize("mode", ["int8", "int16x8"])
def test_every_filter_has_a_scale_of_its_own(slow, mode):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(slow[1](mode).path))
    kernels = [tensor for tensor in interpreter.get_tensor_details() if list(tensor["shape"]) == [8, 3, 3, 8]]
    assert [len(tensor["quantization_parameters"]["scales"]) for tensor in kernels] == [8]


def test_big_integer_files_hold_their_weights_and_take_metadata(tmp_path):
    x = keras.Input((600,), name="features")
    model = keras.Model(x, layers.Dense(3)(layers.Dense(600, activation="relu")(x)))
    metadata = Metadata(labels=["a", "b", "c"])
    result = export_tflite(model, tmp_path / "m.tflite", quantize="int8", data=images(16, (600,)), metadata=metadata)
    assert result.bytes > 600 * 600
    assert result.relative_difference < 0.05


@pytest.mark.parametrize(("mode", "dtype"), [("int8", np.int8), ("int16x8", np.int16)])
def test_integer_inputs_and_outputs(slow, mode, dtype):
    model, export = slow
    result = export(mode, integer_io=True)
    given, returned = input_and_output(result.path)
    assert given["dtype"] == returned["dtype"] == dtype
    x = images(12, (16, 16, 3))
    predicted = predict_tflite(result.path, x)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, model.predict(x, verbose=0), atol=0.05)
    assert result.relative_difference < 0.1


def test_cameras_hand_over_bytes(slow, tmp_path):
    """The normalization says which numbers pixels are; without one, calibration does."""
    model, pixels = slow[0], np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype("uint8")
    x = (pixels.astype("float32") - 127) / 64
    about = Metadata(normalization=(127, 64))
    settings = {"quantize": "int8", "data": x, "integer_io": "uint8"}
    result = export_tflite(model, tmp_path / "bytes.tflite", metadata=about, **settings)
    given, returned = input_and_output(result.path)
    assert given["dtype"] == returned["dtype"] == np.uint8
    assert given["name"] == input_and_output(slow[1]("int8").path)[0]["name"]
    scale, zero_point = given["quantization"]
    assert (round(1 / scale, 4), zero_point) == (64, 127)
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=os.fspath(result.path)).get_signature_runner()
    ((name, _),) = run.get_input_details().items()
    ((_, details),) = run.get_output_details().items()
    scale, zero_point = details["quantization"]
    found = [(next(iter(run(**{name: p[None]}).values())).astype(float) - zero_point) * scale for p in pixels]
    np.testing.assert_allclose(np.concatenate(found), predict_tflite(result.path, x), atol=1e-6)
    np.testing.assert_allclose(predict_tflite(result.path, x), model.predict(x, verbose=0), atol=0.1)
    plain = export_tflite(model, tmp_path / "plain.tflite", **settings)
    assert input_and_output(plain.path)[0]["quantization"][0] == pytest.approx((x.max() - x.min()) / 255, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"quantize": "int16x8"}, "integer_io='uint8' belongs to int8"),
        ({"quantize": None}, "integer_io='uint8' belongs to int8"),
        ({"integer_io": "uint16"}, "integer_io is True, False or 'uint8'. Received: integer_io='uint16'"),
        ({"metadata": Metadata(normalization=([1, 2, 3], 1))}, "the same for all channels"),
    ],
)
def test_bytes_that_cannot_be(slow, tmp_path, settings, sentence):
    given = {"quantize": "int8", "integer_io": "uint8", "data": images(8, (16, 16, 3))} | settings
    with pytest.raises(InvalidValueError) as caught:
        export_tflite(slow[0], tmp_path / "no.tflite", **given)
    assert sentence in str(caught.value)


def test_what_is_seen_of_agreement_and_of_signed_pixels(tmp_path):
    x = images(32, (6, 6, 3))
    layers_ = [layers.Flatten(), layers.Dense(64, kernel_initializer="random_normal"), layers.Dense(200)]
    model = keras.Sequential([keras.Input((6, 6, 3)), *layers_])
    # Classes that differ by less than a step of the outputs.
    model.layers[-1].set_weights([1e-3 * w for w in model.layers[-1].get_weights()])
    model.layers[-1].bias.assign(np.arange(200) % 2 * 5.0)
    about = Metadata(normalization=(0, 255))
    result = export_tflite(model, tmp_path / "a.tflite", quantize="int8", data=x, integer_io=True, metadata=about)
    assert result.top1_agreement < 0.9
    text = result.summary()
    assert "warning: (the outputs): another highest class than Keras' for" in text
    assert "of the compared samples; at most 10% is expected" in text
    assert "warning: (the inputs): int8, which MediaPipe" in text


@pytest.mark.parametrize(
    ("packed", "names", "mode"),
    [
        (lambda a, b: {"scores": a, "boxes": b}, ["scores", "boxes"], "int8"),
        (lambda a, b: [a, b], ["output_0", "output_1"], "float32"),
        (lambda a, b: {"scores": a}, None, "int8"),
    ],
)
def test_several_outputs_come_by_their_names(packed, names, mode, tmp_path):
    image = keras.Input((6, 6, 3))
    y = layers.Conv2D(5, 3, activation="relu")(image)
    made = [layers.Dense(3)(layers.Flatten()(y)), layers.Conv2D(4, 1)(y)]
    model, x = keras.Model(image, packed(*made)), images(9, (6, 6, 3))
    path = export_tflite(model, tmp_path / "m.tflite", quantize=mode, data=x).path
    expected, found = [y.numpy() for y in keras.Model(image, made)(x)], predict_tflite(path, x)
    assert isinstance(found, dict) == (names is not None)
    for array, name in zip(expected, names or [None], strict=names is not None):
        np.testing.assert_allclose(found if name is None else found[name], array, atol=0.2 if mode == "int8" else 1e-5)


def test_open_batch_takes_any_number_of_samples(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    x = keras.Input((6, 6, 3), name="image")
    model = keras.Model(x, layers.Dense(4)(layers.Flatten()(layers.Conv2D(5, 3, activation="relu")(x))))
    samples = images(20, (6, 6, 3))
    for mode in (None, "int8"):
        result = export_tflite(model, tmp_path / f"{mode}.tflite", quantize=mode, data=samples, dynamic_batch=True)
        assert list(input_and_output(result.path)[0]["shape_signature"]) == [-1, 6, 6, 3]
        run = Interpreter(model_path=os.fspath(result.path)).get_signature_runner()
        for count in (1, 7):
            (output,) = run(image=samples[:count]).values()
            np.testing.assert_allclose(output, model.predict(samples[:count], verbose=0), atol=0.2 if mode else 1e-5)


def test_half_precision_models_are_exported_in_float32(tmp_path):
    model = ZOO["mixed_precision"]()
    result = export_tflite(model, tmp_path / "m.tflite")
    half = [layer.name for layer in model.layers if layer.compute_dtype == "float16"]
    assert list(result.warnings[0].layers) == [f"layer {name!r}" for name in half]
    x = random_inputs(model, 4)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(predict_tflite(result.path, x), expected, rtol=0.05, atol=0.02)
    # The file computes in float32; what it is compared with, the model that was given, does not.
    assert 1e-6 < result.relative_difference < 2e-3
    assert [layer.name for layer in model.layers if layer.compute_dtype == "float16"] == half


# ------------------------------------------------------------------------------------------------------- warnings


def test_layers_are_found_by_name_although_tensorflow_numbers_them(slow):
    model, export = slow
    operators = read_operators(TFLiteFile(export("float32").path.read_bytes()), model)
    found = {op.kind: op for op in operators}
    assert found["HARD_SWISH"].layer == "conv_1"
    assert found["PRELU"].layer == "prelu"
    assert found["RSQRT"].layer == "inner/conv"
    assert found["RSQRT"].layer_class == "LayerNormalization"
    assert found["SOFTMAX"].layer == "classes"
    assert [op.layer for op in operators if op.kind == "CONV_2D"] == ["conv", "conv_1_1"]


def test_warnings_name_operators_layers_and_remedies(slow):
    _, export = slow
    result = export("int8")
    assert places(result, "HARD_SWISH") == ["layer 'conv_1'"]
    assert places(result, "ADD", "MUL") == ["layer 'early_bn'"]
    assert places(result, "PAD") == ["layer 'pad'"]
    assert places(result, "RSQRT") == ["layer 'inner/conv'"]
    assert places(result, "TILE") == ["layer 'up'"]
    assert places(result, "SOFTMAX") == ["layer 'classes'"]
    assert places(result, "PRELU") == ["layer 'prelu'"]
    text = result.summary()
    assert "warning: HARD_SWISH (layer 'conv_1'): XNNPACK does not take it in int8" in text
    assert "keep_float=('HARD_SWISH',)" in text
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_warnings_depend_on_the_mode(slow):
    _, export = slow
    kinds = {mode: {op for w in export(mode).warnings for op in w.operators} for mode in ("float32", "dynamic")}
    assert kinds["float32"] == {"ADD", "MUL", "PAD", "TILE"}
    (whole,) = export("int16x8").warnings
    assert {"CONV_2D", "DEPTHWISE_CONV_2D"} <= set(whole.operators)
    assert "takes no int16 activations" in whole.problem


def test_a_file_that_the_delegate_takes_whole_has_no_warnings(tmp_path):
    result = export_tflite(ZOO["conv_bn_relu_chain"](), tmp_path / "m.tflite")
    assert result.warnings == ()


def test_delegated_operators_are_read_off_the_runtime(slow):
    model, export = slow
    int8 = read_operators(TFLiteFile(export("int8").path.read_bytes()), model)
    assert {op.delegated for op in int8 if op.kind == "CONV_2D"} == {True}
    assert {op.delegated for op in int8 if op.kind == "HARD_SWISH"} == {False}
    wide = read_operators(TFLiteFile(export("int16x8").path.read_bytes()), model)
    assert {op.delegated for op in wide if op.kind == "CONV_2D"} == {False}


READERS = {
    "conv": layers.Conv2D(64, 3),
    "same_with_strides": layers.Conv2D(64, 3, strides=2, padding="same"),
    "depthwise": layers.DepthwiseConv2D(3),
    "same": layers.DepthwiseConv2D(3, padding="same"),
    "pooling": layers.MaxPooling2D(3),
}


@pytest.mark.parametrize("mode", ["float32", "float16", "dynamic", "int8", "int16x8"])
def test_padding_is_called_folded_where_the_runtime_does_not_run_it(mode, tmp_path):
    # An input each: padding that several read is run.
    inputs = [keras.Input((16, 16, 64)) for _ in READERS]
    padded = [layers.ZeroPadding2D(2, name=name)(x) for name, x in zip(READERS, inputs, strict=True)]
    model = keras.Model(inputs, [reader(x) for reader, x in zip(READERS.values(), padded, strict=True)])
    calibration = [images(12, (16, 16, 64)) for _ in READERS] if "int" in mode else None
    quantize = None if mode == "float32" else mode
    path = export_tflite(model, tmp_path / "m.tflite", quantize=quantize, data=calibration, verify=False).path
    padding = [op for op in read_operators(TFLiteFile(path.read_bytes()), model) if op.kind == "PAD"]
    assert {op.layer for op in padding} == set(READERS)
    # XNNPACK takes no operator in int16x8, and other convolutions where weights alone are int8.
    folded = {"int16x8": set(), "dynamic": {"depthwise", "same"}}.get(mode, {"conv", "depthwise", "same"})
    assert {op.layer for op in padding if op.folded} == folded
    run = [row.operator.upper() for row in tflite_bench.profile(path, runs=5).operators]
    assert sum("PAD" in name for name in run) == len(READERS) - len(folded)


# ------------------------------------------------------------------------------------------------------ keep_float


def test_kept_operators_and_layers_stay_float32(slow):
    model, export = slow
    result = export("int8", keep_float=("HARD_SWISH", "inner/conv", "classes"))
    operators = read_operators(TFLiteFile(result.path.read_bytes()), model)
    kept = [op for op in operators if op.layer in ("conv_1", "inner/conv", "classes")]
    assert {op.is_float for op in kept if op.kind not in ("QUANTIZE", "DEQUANTIZE")} == {True}
    assert not any(op.is_float for op in operators if op.kind == "CONV_2D")
    named = {operator for warning in result.warnings for operator in warning.operators}
    assert not named & {"HARD_SWISH", "RSQRT", "SOFTMAX"}
    assert named >= {"TILE", "PAD"}


def test_keep_float_of_nothing_lists_what_there_is(slow):
    model, _ = slow
    with pytest.raises(
        UnknownNameError, match=r"Received: 'swish'. The operators are .*HARD_SWISH.*; the layers are conv, "
    ):
        export_tflite(model, "x.tflite", quantize="int8", data=images(12, (16, 16, 3)), keep_float=("swish",))
    assert not os.path.exists("x.tflite")


# -------------------------------------------------------------------------------------------------------- refusals


class Counter(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs + self.count


class ScaledWhenTraced(layers.Layer):
    def call(self, inputs):
        import tensorflow as tf

        return inputs if tf.executing_eagerly() else 1.5 * inputs


def test_variables_are_refused_with_their_layer(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, Counter(name="counter")(x), name="stateful")
    with pytest.raises(ExportError, match=r"model 'stateful' .*counter.*"):
        export_tflite(model, tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "custom", "sentence"),
    [
        ("CUSTOM", b"FlexErf", r"needs the operator CUSTOM:FlexErf for layer 'conv'"),
        ("READ_VARIABLE", None, r"holds a variable \(READ_VARIABLE for layer 'conv'\)"),
    ],
)
def test_files_with_foreign_operators_are_refused(slow, kind, custom, sentence):
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model, export = slow
    parsed = schema.ModelT.InitFromPackedBuf(export("float32").path.read_bytes(), 0)
    first = parsed.operatorCodes[parsed.subgraphs[0].operators[0].opcodeIndex]
    first.builtinCode = getattr(schema.BuiltinOperator, kind)
    first.deprecatedBuiltinCode = min(first.builtinCode, 127)
    first.customCode = custom
    builder = Builder(1024)
    builder.Finish(parsed.Pack(builder), file_identifier=b"TFL3")
    content = bytes(builder.Output())
    assert any(name.startswith(kind) for name in TFLiteFile(content).count_operators())
    with pytest.raises(ExportError, match=sentence):
        refuse_operators(TFLiteFile(content), model)


@pytest.mark.parametrize("mode", ["dynamic", "int8"])
def test_quantized_files_that_compute_something_else_are_refused(tmp_path, mode):
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(4)(ScaledWhenTraced()(x)), name="moody")
    options = {"quantize": mode, "data": images(16, (6,))}
    with pytest.raises(ExportError, match=r"differs from model 'moody' by 0\.5.* at most 0\.\d+ is expected"):
        export_tflite(model, tmp_path / "m.tflite", **options)
    assert os.listdir(tmp_path) == []
    assert export_tflite(model, tmp_path / "m.tflite", tolerance=0.6, **options).relative_difference > 0.4


# -------------------------------------------------------------------------------------------------- whole or not


def test_full_disk_leaves_the_old_file(tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(512, name="wide")])
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises((ExportError, FileError), match=r"cannot (write|convert) "):
            export_tflite(model, path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_full_disk_at_the_last_step_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(FileError, match=r"cannot write .*File too large.* free space"), replacing(path) as draft:
            draft.write_bytes(bytes(5_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")
    code = (
        "import sys, time\nfrom keras_filterprune.files import replacing\n"
        "with replacing(sys.argv[1]) as draft:\n"
        "    draft.write_bytes(b'half'); sys.stdout.write('written'); sys.stdout.flush(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.read(7) == "written"
        child.kill()
    assert path.read_bytes() == b"old"
