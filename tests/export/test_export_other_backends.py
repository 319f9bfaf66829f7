"""Models on JAX and PyTorch become the same files, by way of a TensorFlow process whose errors come through."""

import os
import sys

import keras
import pytest
from other_backends import on_other_backends, run_on

from keras_filterprune.errors import ExportError, MissingPackageError
from keras_filterprune.export import export_tflite
from keras_filterprune.export.other_backends import convert_elsewhere
from keras_filterprune.export.runtime import SignatureRunner

MODULE = """
import keras

@keras.saving.register_keras_serializable("scaling")
class Halve(keras.layers.Layer):
    def call(self, inputs):
        return 0.5 * inputs

class Forgotten(keras.layers.Layer):
    def call(self, inputs):
        return 0.5 * inputs
"""

ELSEWHERE = """
import json, os, sys
import numpy as np, keras_filterprune as kfp
sys.path.append(FOLDER)
import scaling
image, extra = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="extra")
features = keras.layers.GlobalAveragePooling2D()(scaling.Halve()(keras.layers.Conv2D(6, 3, activation="relu")(image)))
merged = keras.layers.Concatenate()([features, extra])
heads = [keras.layers.Dense(5)(merged) for _ in range(3)]
model = keras.Model({"image": image, "extra": extra}, {"z": heads[0], "a": heads[1:]}, name="two_inputs")
generator = np.random.default_rng(0)
data = {"image": generator.normal(size=(10, 8, 8, 3)), "extra": generator.normal(size=(10, 4))}
path = os.path.join(FOLDER, "model.tflite")
result = kfp.export_tflite(model, path, quantize="int8", data=data)
assert result.ops["QUANTIZE"] == 2, result.ops
assert 0 < result.max_abs_difference < 0.05, result
from ai_edge_litert.interpreter import Interpreter
one = {name: array[:1].astype('float32') for name, array in data.items()}
actual, expected = Interpreter(path).get_signature_runner()(**one), model(one)
for key, output in (("z", expected["z"]), ("a_0", expected["a"][0]), ("a_1", expected["a"][1])):
    assert abs(actual[key] - keras.ops.convert_to_numpy(output)).max() < 0.05, key
assert set(os.listdir(FOLDER)) - {"__pycache__"} == {"model.tflite", "scaling.py"}, os.listdir(FOLDER)
"""


@pytest.fixture
def scaling(tmp_path, monkeypatch):
    """The module of layers in a folder of its own, imported."""
    (tmp_path / "scaling.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("scaling")
    del sys.modules["scaling"]
    for name in [n for n in keras.saving.get_custom_objects() if n.startswith("scaling>")]:
        del keras.saving.get_custom_objects()[name]


def with_layer(layer):
    x = keras.Input((3,))
    return keras.Model(x, layer(x), name="mine")


@on_other_backends
def test_other_backends_export(backend, tmp_path):
    (tmp_path / "scaling.py").write_text(MODULE)
    run_on(backend, ELSEWHERE.replace("FOLDER", repr(str(tmp_path))))


def test_a_layer_that_the_other_process_cannot_find(tmp_path, scaling, capfd):
    model = with_layer(keras.Sequential([scaling.Halve(), scaling.Forgotten()]))
    capfd.readouterr()
    sentence = r"cannot load model 'mine' on TensorFlow: .*Could not locate class 'Forgotten'.* into a module that can"
    with pytest.raises(ExportError, match=sentence) as caught:
        convert_elsewhere(model, ["input_0"], tmp_path / "work", "float32")
    assert len(str(caught.value)) < 1000
    assert capfd.readouterr() == ("", "")


def test_what_has_no_name_is_called_the_same(tmp_path):
    model = with_layer(keras.layers.ReLU())
    (tmp_path / "model.tflite").write_bytes(convert_elsewhere(model, ["input_0"], tmp_path / "work", "float32"))
    assert SignatureRunner(model_path=str(tmp_path / "model.tflite")).inputs == ["input_0"]


class Power(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def test_a_model_that_cannot_be_saved(tmp_path):
    with pytest.raises(
        ExportError, match=r"'mine' cannot be saved as .keras.*NotImplementedError.*implement `get_config\(\)`\.$"
    ):
        convert_elsewhere(with_layer(Power(lambda x: x**2)), ["input_0"], tmp_path / "work", "float32")


def test_a_process_that_ends_without_an_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(
        ExportError, match="converts model 'mine' with TensorFlow ended with exit code 1: it wrote no message"
    ):
        convert_elsewhere(with_layer(keras.layers.ReLU()), ["input_0"], tmp_path / "work", "float32")


def test_missing_tensorflow_names_the_extra(tmp_path, monkeypatch):
    model = with_layer(keras.layers.ReLU())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingPackageError, match=r"needs tensorflow, which cannot .* pip install "):
        export_tflite(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []
