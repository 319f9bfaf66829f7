"""A `.tflite` file in memory: parsed once, never changed, and read in time that grows with its operators."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import keras_filterprune as kfp
from keras_filterprune.export import delegation
from keras_filterprune.export.convert import convert
from keras_filterprune.export.file_operators import read_operators, refuse_operators
from keras_filterprune.export.integers import quantize_statically
from keras_filterprune.export.metadata import embed
from keras_filterprune.export.signature import input_ports
from keras_filterprune.export.tflite_file import TFLiteFile
from keras_filterprune.quiet import quiet

SHAPE = (8, 8, 4)


def chain(pairs):
    """Convolutions, each behind padding that becomes part of it, and tanh, which stays alone; a sum at the end."""
    x = y = keras.Input(SHAPE, name="image")
    for number in range(pairs):
        y = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"pad_{number}")(y)
        y = keras.layers.Conv2D(4, 2, activation="tanh", name=f"conv_{number}")(y)
    return keras.Model(x, keras.layers.Add(name="sum")([x, y]), name="chain")


def converted(model):
    return TFLiteFile(convert(model, ["image"], "float32"))


@pytest.fixture(scope="module")
def short():
    keras.utils.set_random_seed(0)
    model = chain(4)
    return model, converted(model)


def samples(count=4):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")


# ------------------------------------------------------------------------------------------------------- parsed once


METADATA = kfp.export.Metadata(normalization=(0.0, 1.0))


@pytest.mark.parametrize(
    ("options", "files"),
    [({}, 1), ({"quantize": "dynamic"}, 1), ({"quantize": "int8"}, 2), ({"quantize": "int8", "integer_io": True}, 2)],
    ids=str,
)
def test_every_file_is_parsed_once(options, files, short, tmp_path, monkeypatch):
    """int8 begins with a float32 file. Metadata are added to what is parsed already."""
    unpack, calls = schema.ModelT.InitFromPackedBuf, []

    def counted(*arguments):
        calls.append(sys._getframe(1).f_globals["__name__"])
        return unpack(*arguments)

    monkeypatch.setattr(schema.ModelT, "InitFromPackedBuf", counted)
    kfp.export_tflite(short[0], tmp_path / "m.tflite", data=samples(), metadata=METADATA, **options)
    # ai-edge-quantizer parses on its own account.
    assert [name for name in calls if name.startswith("keras_filterprune")] == [TFLiteFile.__module__] * files


def test_what_is_made_of_a_file_leaves_it_as_it_was(short):
    model, file = short
    before = TFLiteFile.holding(file.model).content
    with quiet():
        wide = quantize_statically(file, "int16x8", {"image": samples()})
    marked = embed(file, kfp.export.Metadata(normalization=(0.0, 1.0)), model.name, input_ports(model))
    assert TFLiteFile.holding(file.model).content == before
    for other in (wide, marked):
        assert other.content != file.content
        # What is known of it is what stands in it.
        assert TFLiteFile(other.content).kinds == other.kinds
        assert len(TFLiteFile(other.content).model.buffers) == len(other.model.buffers)


# ------------------------------------------------------------------------------------------------ read in linear time


def steps(function):
    """Lines of Python that are executed, every turn of a loop counted."""
    count, tracer = 0, sys.gettrace()

    def trace(frame, event, argument):
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(tracer)
    return count


@pytest.fixture(scope="module")
def growing():
    """A model and its file, and a model four times as long and its file."""
    models = [chain(pairs) for pairs in (10, 40)]
    return [(model, converted(model)) for model in models]


@pytest.mark.parametrize("read", [read_operators, refuse_operators], ids=["read", "refuse"])
def test_work_grows_with_the_number_of_operators(read, growing):
    found = []
    for model, file in growing:
        assert len(file.kinds[0]) > 2 / 3 * len(model.layers)
        found.append(steps(lambda file=file, model=model: read(file, model)))
    assert found[1] < 4.5 * found[0]


# ------------------------------------------------------------------------------------------------------- the delegate


def test_litert_still_tells_what_it_delegates(short):
    """Fails with a version of LiteRT whose private plan is another: then `export/delegation.py` needs a new way."""
    version = importlib.metadata.version("ai-edge-litert")
    interpreter = Interpreter(model_content=short[1].content, num_threads=1)
    interpreter.allocate_tensors()
    assert hasattr(interpreter, "_get_ops_details"), f"ai-edge-litert {version} has no _get_ops_details()"
    plan, own = interpreter._get_ops_details(), short[1].kinds[0]
    assert {"index", "op_name", "inputs", "outputs"} <= set(plan[0]), version
    assert tuple(node["op_name"] for node in plan[: len(own)]) == own, version
    assert {node["op_name"] for node in plan[len(own) :]} == {"DELEGATE"}, version
    assert short[1].delegated == frozenset(range(len(own))), version


def test_a_version_that_does_not_tell_gives_no_warnings(short, monkeypatch):
    monkeypatch.delattr(Interpreter, "_get_ops_details")
    assert delegation.delegated_operators(short[1].content, 13) == frozenset(range(13))


def test_one_file_alone_calls_it():
    sources = Path(kfp.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "_get_ops_details" in path.read_text()] == ["delegation.py"]
