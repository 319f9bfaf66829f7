"""The bridge to tf_keras: equal twins or a refusal by name, in a process of its own, and the way back."""

import importlib.util
import os
import shutil
import sys
import textwrap
from dataclasses import replace

import keras
import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.export.runtime import predict_tflite
from keras_filterprune.tfmot import child, process, twin
from keras_filterprune.tfmot.description import describe

layers = keras.layers
installed = all(map(importlib.util.find_spec, ("tf_keras", "tensorflow_model_optimization")))
needs_tfmot = pytest.mark.skipif(not installed, reason="needs tf_keras and tfmot")

RECIPES = """
    def sparse(twin, x, y):
        import tensorflow as tf
        import tensorflow_model_optimization as tfmot
        import tf_keras

        assert tf.keras.layers.Dense is tf_keras.layers.Dense
        sparsity = tfmot.sparsity.keras
        wrapped = sparsity.prune_low_magnitude(
            twin, sparsity.ConstantSparsity(0.5, 0, frequency=1), sparsity_m_by_n=(2, 4)
        )
        wrapped.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        wrapped.fit(x, y, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
        return sparsity.strip_pruning(wrapped)


    def quantized(twin, x, y):
        import tensorflow_model_optimization as tfmot
        import tf_keras

        qat = tfmot.quantization.keras.quantize_model(twin)
        qat.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        qat.fit(x, y, epochs=2, verbose=0)
        return qat


    def renamed(twin):
        import tf_keras

        return tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2)])


    def same(twin):
        return twin


    def raises(twin):
        raise ValueError("no such data")
"""


def randomized(model):
    """The model with every weight drawn, so that no statistic is at its neutral value; kernels of both signs."""
    generator = np.random.default_rng(0)
    drawn = []
    for w in model.get_weights():
        value = generator.uniform(0.2, 1.0, w.shape)
        if w.ndim > 1:
            value *= generator.choice([-1, 1], w.shape) / np.sqrt(w[..., 0].size)
        drawn.append(value)
    model.set_weights(drawn)
    return model


def functional(inputs, outputs):
    return randomized(keras.Model(inputs, outputs, name="net"))


def residual_net():
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, kernel_regularizer="l2", name="conv1")(x)
    x = y = layers.ReLU(name="relu1")(layers.BatchNormalization(name="bn1")(x))
    x = layers.Conv2D(8, 3, padding="same", name="conv2")(x)
    x = layers.ReLU(name="relu2")(layers.Add(name="add")([x, y]))
    return functional(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D(name="pool")(x)))


def many_layers():
    x = inputs = keras.Input((12, 12, 4))
    x = layers.Rescaling(1 / 3, 0.2)(x)
    x = layers.DepthwiseConv2D(3, activation="silu", depthwise_constraint="max_norm")(x)
    x = layers.LeakyReLU(negative_slope=0.3)(layers.SeparableConv2D(6, 3, strides=2, padding="same")(x))
    x = layers.LayerNormalization()(layers.ZeroPadding2D(1)(x))
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.PReLU(shared_axes=(1, 2))(x))
    a, b = layers.MaxPooling2D(2)(x), layers.AveragePooling2D(2)(layers.ELU(0.5)(x))
    x = layers.Concatenate()([a, layers.Dropout(0.5)(b), layers.Multiply()([a, b])])
    x = layers.GroupNormalization(groups=2)(layers.Conv2DTranspose(4, 3, activation="gelu")(x))
    x = layers.GRU(5)(layers.Reshape((-1, 4))(x))
    return functional(inputs, [layers.Dense(3, activation="softmax")(x), layers.Dense(1, activation="sigmoid")(x)])


def composed_activations():
    x = inputs = keras.Input((6,))
    for function in ("hard_sigmoid", "hard_swish", "relu6", "leaky_relu"):
        x = layers.Dense(6, activation=function)(x)
        x = layers.Activation(function)(layers.Dense(6)(x))
    return functional(inputs, x)


def nested_and_shared():
    a, b = keras.Input((6, 6, 2), name="a"), keras.Input((6, 6, 2), name="b")
    inner = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(3, 3, name="conv")], name="inner")
    shared = layers.Conv2D(2, 1, padding="same", name="shared", trainable=False)
    joined = layers.Concatenate()([inner(shared(a)), inner(shared(b))])
    return functional({"b": b, "a": a}, {"out": layers.Flatten()(joined)})


def sequential():
    return randomized(keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(2)]))


MODELS = {f.__name__: f for f in (residual_net, many_layers, composed_activations, nested_and_shared, sequential)}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A module that only another process imports."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "tfmot_recipes.py").write_text(textwrap.dedent(RECIPES))
    sys.path.insert(0, os.fspath(folder))
    yield "tfmot_recipes"
    sys.path.remove(os.fspath(folder))


@pytest.fixture
def same_process(monkeypatch):
    """The other process' work done in this one, which spares its start: no recipe here imports tfmot."""

    def run(function, packed, **options):
        assert function == f"{child.__name__}:do"
        return child.do(packed)

    monkeypatch.setattr(process, "run_elsewhere", run)


@pytest.fixture(scope="module")
def labelled():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(96, 8, 8, 3)).astype("float32")
    return x, np.arange(96) % 4


# ------------------------------------------------------------------------------------------------- equal, or refused


@needs_tfmot
@pytest.mark.parametrize("name", MODELS)
def test_the_twin_computes_the_same_and_has_the_same_layers(name):
    model = MODELS[name]()
    made = twin.build_twin(describe(model), model.name)
    x = [np.random.default_rng(1).normal(size=(3, *t.shape[1:])).astype("float32") for t in model.inputs]
    found = keras.tree.flatten(made(x if len(x) > 1 else x[0]))
    expected = model(dict(zip([t.name for t in model.inputs], x, strict=True)) if len(x) > 1 else x[0])
    for a, b in zip(keras.tree.flatten(expected), found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())
    trainable = {layer.name: layer.trainable for layer in made.layers}
    for layer in model.layers:
        if layer.weights and layer.name != "inner":
            assert trainable[layer.name] == layer.trainable
    if name == "nested_and_shared":
        assert "inner/conv" in trainable
    if name == "residual_net":
        assert float(made.losses[0]) == pytest.approx(float(model.losses[0]), rel=1e-6)
        assert type(made.layers[0]).__module__.startswith("tf_keras.")


@needs_tfmot
def test_tf_keras_alone_leaves_the_keras_of_this_process_as_it_was():
    import tensorflow as tf
    import tf_keras

    assert tf_keras.__version__.startswith("2.")
    assert vars(tf)["keras"].__version__ == keras.__version__
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert "tensorflow_model_optimization" not in sys.modules


def image_net(*middle):
    x = inputs = keras.Input((8, 8, 2))
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, x, name="net")


REFUSED = {
    "operation": (
        lambda: image_net(lambda x: x + 1.0),
        r"is a bare operation \(Add\).* write it as one, such as keras",
    ),
    "class": (
        lambda: kfp.apply_bridgeout(image_net(layers.Conv2D(4, 3, name="c"))),
        r"layer 'c_bridgeout' is a keras_filterprune\..*BatchBridgeout, which tf_keras does not have.*strip_wrappers",
    ),
    "dtype": (
        lambda: image_net(layers.Conv2D(4, 3, dtype="mixed_float16", name="c")),
        r"layer 'c' has dtype_policy='mixed_float16', expected 'float32'",
    ),
    "penalty": (
        lambda: image_net(layers.Conv2D(4, 3, kernel_regularizer=kfp.regularizers.BridgePenalty(), name="c")),
        "layer 'c' has kernel_regularizer=BridgePenalty, which cannot be carried",
    ),
    "nested layer": (
        lambda: image_net(layers.TimeDistributed(layers.Dense(3), name="each")),
        "layer 'each' has layer=Dense, which cannot be carried",
    ),
    "missing layer": (
        lambda: image_net(layers.RMSNormalization(name="rms")),
        "'rms' is a RMSNormalization, which tf_k",
    ),
    "option": (
        lambda: image_net(layers.Resizing(4, 4, antialias=True, name="r")),
        r"layer 'r' \(Resizing\) has antialias=True, an option that tf_keras does not know",
    ),
    "function": (
        lambda: image_net(layers.Conv2D(4, 3, activation="squareplus", name="c")),
        r"layer 'c' \(Conv2D\) has activation='squareplus', for which tf_keras has no equal function",
    ),
    "recurrent function": (
        lambda: image_net(layers.Reshape((8, 16)), layers.LSTM(3, recurrent_activation="hard_sigmoid", name="l")),
        r"layer 'l' \(LSTM\) has recurrent_activation='hard_sigmoid', for which tf_keras has no equal",
    ),
}


@needs_tfmot
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(case):
    build, sentence = REFUSED[case]
    with pytest.raises(errors.UnsupportedModelError, match=sentence):
        twin.build_twin(describe(build()), "net")


@needs_tfmot
def test_the_first_layer_that_differs_is_named(monkeypatch):
    # The function that tf_keras has under this name.
    monkeypatch.delitem(twin._COMPOSED, "hard_sigmoid")
    model = image_net(
        layers.Conv2D(4, 3, name="before"), layers.Activation("hard_sigmoid", name="gate"), layers.Conv2D(2, 1)
    )
    with pytest.raises(
        errors.UnsupportedModelError, match=r"layer 'gate' \(Activation\) is the first that computes some"
    ):
        twin.build_twin(describe(model), "net")


@needs_tfmot
def test_wrong_weights_and_wrong_outputs_are_found():
    whole = describe(residual_net())
    swapped = replace(whole, outputs=[whole.outputs[0] * 1.0001])
    with pytest.raises(
        errors.UnsupportedModelError, match=r"output 0 of model 'net' differs in tf_keras by 0\.0001 of"
    ):
        twin.build_twin(swapped, "net")
    spec = next(call.op for call in whole.view.calls if call.path == "conv2")
    spec.weights.pop()
    with pytest.raises(errors.UnsupportedModelError, match=r"layer 'conv2' \(Conv2D\) has weights of shapes"):
        twin.build_twin(whole, "net")


# ------------------------------------------------------------------------------------------------ there and back again


@needs_tfmot
def test_a_file_for_scripts_of_ones_own(tmp_path, same_process):
    model = residual_net()
    path = kfp.tfmot.to_tf_keras(model, tmp_path / "twin.h5")
    assert os.listdir(tmp_path) == ["twin.h5"]
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    loaded = keras.saving.load_model(path, compile=False)
    expected = model(x)
    np.testing.assert_allclose(loaded([x]), expected, atol=1e-5 * np.abs(expected).max())
    before = path.read_bytes()
    with pytest.raises(errors.FileError, match=r"already exists and is kept"):
        kfp.tfmot.to_tf_keras(model, path)
    assert path.read_bytes() == before


@needs_tfmot
def test_sparse_weights_come_back(recipes, labelled):
    model = kfp.prune_model(residual_net(), "l2", 0.7, channel_multiple=4, progress=False)
    model.compile("sgd", "mse")
    before = [w.copy() for w in model.get_weights()]
    environment = dict(os.environ)
    sparse = kfp.tfmot.train_in_tf_keras(model, f"{recipes}:sparse", *labelled)
    for name in ("conv2", "head"):
        kernel = np.moveaxis(sparse.get_layer(name).kernel.numpy(), -2, 0).reshape(
            -1, sparse.get_layer(name).kernel.shape[-1]
        )
        assert (kernel == 0).mean() == 0.5
    for old, kept, new in zip(before, model.get_weights(), sparse.get_weights(), strict=True):
        np.testing.assert_array_equal(old, kept)
        assert (old != new).any()
    assert [layer.name for layer in sparse.layers] == [layer.name for layer in model.layers]
    assert sparse.compiled
    assert dict(os.environ) == environment
    assert "tensorflow_model_optimization" not in sys.modules


@needs_tfmot
def test_quantization_aware_training_ends_in_an_int8_file(recipes, labelled, tmp_path):
    x, y = labelled
    path = tmp_path / "qat.tflite"
    model = residual_net()
    result = kfp.tfmot.export_qat(model, path, f"{recipes}:quantized", x, y, data=x)
    assert os.listdir(tmp_path) == ["qat.tflite"]
    assert (result.quantize, result.bytes) == ("int8", path.stat().st_size)
    # Everything between the two converters of the ends is integer.
    assert result.ops == {"ADD": 1, "CONV_2D": 2, "DEQUANTIZE": 1, "FULLY_CONNECTED": 1, "MEAN": 1, "QUANTIZE": 1}
    outputs, expected = predict_tflite(path, x[:16]), np.asarray(model(x[:16]))
    assert outputs.dtype == np.float32
    assert result.max_abs_difference < 0.05 * np.abs(outputs).max()
    # A few steps of training leave it near the model it came from.
    assert 0 < np.abs(outputs - expected).max() < 0.25 * np.abs(expected).max()


@needs_tfmot
@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("renamed", r"layer 'conv1' has weights of shapes \[\(3, 3, 3, 8\)\], and none in the model that renamed\(\)"),
        ("raises", r"raises\(\) failed in the process of tf_keras:\nTraceback(.|\n)*ValueError: no such data"),
    ],
)
def test_a_function_that_does_something_else(recipes, same_process, function, sentence):
    with pytest.raises(errors.ExportError, match=sentence):
        kfp.tfmot.train_in_tf_keras(residual_net(), f"{recipes}:{function}")


@needs_tfmot
def test_a_file_needs_a_quantization_aware_model(recipes, same_process, tmp_path):
    (tmp_path / "old.tflite").write_text("old")
    with pytest.raises(errors.ExportError, match=r"same\(\) returned a model without quantization-aware layers"):
        kfp.tfmot.export_qat(residual_net(), tmp_path / "old.tflite", f"{recipes}:same", overwrite=True)
    assert (tmp_path / "old.tflite").read_text() == "old"
    assert os.listdir(tmp_path) == ["old.tflite"]


# ---------------------------------------------------------------------------------- refused before a process starts


def test_functions_that_another_process_cannot_import(monkeypatch):
    monkeypatch.setattr(process, "check_installed", lambda: None)
    for train, sentence in (
        (lambda twin: twin, r"another process cannot import train=<function .* Give a function at the top level"),
        ("recipes", r"train is a function or 'module:function'\. Received: train='recipes'"),
        (3, "another process cannot import train=3"),
    ):
        with pytest.raises(errors.InvalidValueError, match=sentence):
            process.find_function(train)
    assert process.find_function(residual_net) == process.FunctionRef(__name__, "residual_net", False)


def test_a_function_of_the_script_is_found_by_its_file(monkeypatch):
    monkeypatch.setattr(sequential, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "folder/script.py", raising=False)
    found = process.find_function(sequential)
    assert found == process.FunctionRef(os.path.abspath("folder/script.py"), "sequential", True)
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    with pytest.raises(errors.InvalidValueError, match="cannot import 'sequential' from a notebook or a prompt"):
        process.find_function(sequential)


def test_without_tf_keras_the_message_says_what_to_install(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf_keras" else find(name))
    for call in (
        lambda: kfp.tfmot.to_tf_keras(sequential(), tmp_path / "twin.h5"),
        lambda: kfp.tfmot.train_in_tf_keras(sequential(), "a:b"),
        lambda: kfp.tfmot.export_qat(sequential(), tmp_path / "a.tflite", "a:b"),
    ):
        with pytest.raises(
            errors.MissingPackageError,
            match=r"needs tf_keras, which is not installed: pip install .*tf-keras",
        ):
            call()


def test_a_process_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(errors.ExportError, match="works on model 'net' in tf_keras ended with exit code 1"):
        process.carry_out(process.Job("save", "net", describe(sequential())))


def test_arguments_have_to_be_picklable():
    job = process.Job("train", "net", describe(sequential()), process.FunctionRef("a", "b", False), (lambda: 3,))
    with pytest.raises(errors.InvalidValueError, match="have to be picklable"):
        process.carry_out(job)
    with pytest.raises(
        errors.InvalidValueError, match=r"path is a name that ends in \.h5\. Received: path='twin\.keras'"
    ):
        kfp.tfmot.to_tf_keras(sequential(), "twin.keras")
