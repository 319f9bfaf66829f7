"""Inputs and outputs of a file are numbered as the model's are, by every mode, and named as before."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import keras_filterprune as kfp

L = keras.layers


def image():
    x = keras.Input((8, 8, 3), name="image")
    return x, L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(x))


def two_outputs():
    x, h = image()
    return keras.Model(x, [L.Dense(3, name="zz")(h), L.Dense(2, name="aa")(h)])


def fourteen_outputs():
    """Of two inputs; "dense_10" sorts before "dense_2"."""
    x, h = image()
    meta = keras.Input((4,), name="a_meta")
    y = L.Concatenate()([h, L.Dense(4)(meta)])
    return keras.Model(
        [x, meta], [L.Dense(3, name="zz")(h), L.Dense(2, name="aa")(y), *(L.Dense(n + 4)(y) for n in range(12))]
    )


def two_inputs():
    x, h = image()
    meta = keras.Input((4,), name="a_meta")
    return keras.Model([x, meta], L.Dense(2)(L.Concatenate()([h, L.Dense(4)(meta)])))


def dict_of_both():
    x = keras.Input((8, 8, 3), name="z")
    h = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(x))
    meta = keras.Input((4,), name="b")
    y = L.Concatenate()([h, L.Dense(4)(meta)])
    outputs = {"z": L.Dense(3)(y), "a": L.Dense(5)(y), "m": [L.Dense(6)(y), L.Dense(4)(y)]}
    return keras.Model({"z": x, "b": meta}, outputs)


def one_output_twice():
    x, h = image()
    y = L.Dense(3)(h)
    return keras.Model(x, [L.Dense(2)(h), y, y])


def outputs_that_are_read():
    """Features beside what is computed from them, and the input itself."""
    x = keras.Input((6,), name="i")
    h = L.Dense(8, name="h")(x)
    return keras.Model(x, [h, x, L.Dense(3, name="z")(h), L.ReLU()(h)])


CASES = [
    (build, mode)
    for build in (fourteen_outputs, dict_of_both, one_output_twice)
    for mode in ("float32", "dynamic", "int8")
]


READ = [(outputs_that_are_read, mode) for mode in ("float32", "float16", "int8", "int16x8")]


@pytest.mark.parametrize(("build", "mode"), [*CASES, (two_inputs, "int8"), *READ])
def test_files_number_inputs_and_outputs_as_the_model_does(build, mode, tmp_path):
    model = build()
    samples = [np.random.default_rng(0).normal(size=(8, *x.shape[1:])).astype("float32") for x in model.inputs]
    given = keras.tree.pack_sequence_as(model.input, samples)
    kfp.export_tflite(model, tmp_path / "m.tflite", quantize=mode, data=given)
    run = Interpreter(str(tmp_path / "m.tflite"))
    run.allocate_tensors()
    expected = [keras.ops.convert_to_numpy(y)[0] for y in keras.tree.flatten(model(given))]
    for entry, sample in zip(run.get_input_details(), samples, strict=True):
        run.set_tensor(entry["index"], sample[:1])
    run.invoke()
    found = [run.get_tensor(entry["index"])[0] for entry in run.get_output_details()]
    assert [y.shape for y in found] == [y.shape for y in expected]
    for y, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(y, wanted, atol=0.2 * np.abs(wanted).max() + 1e-3)


def test_a_file_in_order_is_left_as_it_is(tmp_path):
    from keras_filterprune.export.tflite_file import TFLiteFile

    kfp.export_tflite(two_outputs(), tmp_path / "m.tflite")
    file = TFLiteFile((tmp_path / "m.tflite").read_bytes())
    assert file.in_order(["image"], ["output_0", "output_1"]) is file
    other = file.in_order(["image"], ["output_1", "output_0"])
    assert [*other.graph.outputs] == [*file.graph.outputs][::-1]
    assert [*file.graph.outputs] != [*other.graph.outputs]
