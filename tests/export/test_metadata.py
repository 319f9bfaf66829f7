"""Metadata in `.tflite` files: read back, found by tools that know the official schema, checked against the model."""

import os
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import number_types
from flatbuffers.table import Table

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.export.metadata import check_metadata
from keras_filterprune.export.signature import input_ports

NAMES = ["cat", "dog", "Käfer"]


def classifier(size=8):
    keras.utils.set_random_seed(0)
    x = keras.Input((size, size, 3), name="image")
    y = keras.layers.Conv2D(24, 3, activation="relu", name="first")(x)
    y = keras.layers.Conv2D(24, 3, activation="relu", name="second")(y)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(y)), name="pets")


def two_heads():
    image, extra = keras.Input((8, 8, 3), name="my image"), keras.Input((4,), name="extra")
    x = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(image), extra])
    heads = {"kind": keras.layers.Dense(3)(x), "age": keras.layers.Dense(1)(x), "size": keras.layers.Dense(2)(x)}
    return keras.Model([image, extra], heads, name="two_heads")


class Node:
    """A table of the metadata, read by field numbers of the official schema."""

    def __init__(self, content, position):
        self._table = Table(bytearray(content), position)

    def _at(self, number):
        return self._table.Offset(4 + 2 * number)

    def text(self, number):
        return self._table.String(self._table.Pos + self._at(number)).decode()

    def byte(self, number):
        return self._table.Get(number_types.Uint8Flags, self._table.Pos + self._at(number))

    def floats(self, number):
        return self._table.GetVectorAsNumpy(number_types.Float32Flags, self._at(number)).tolist()

    def table(self, number):
        return Node(self._table.Bytes, self._table.Indirect(self._table.Pos + self._at(number)))

    def tables(self, number):
        start, count = self._table.Vector(self._at(number)), self._table.VectorLen(self._at(number))
        return [Node(self._table.Bytes, self._table.Indirect(start + 4 * index)) for index in range(count)]


def official(path):
    """The root table of a file's official metadata."""
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    (entry,) = [entry for entry in entries if entry.Name() == b"TFLITE_METADATA"]
    content = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    assert flatbuffers.util.BufferHasIdentifier(content, 0, b"M001")
    return Node(content, flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0))


@pytest.fixture(scope="module")
def pruned():
    return kfp.prune_model(classifier(), "l2", 0.5, return_report=True, progress=False)


@pytest.fixture(scope="module")
def files(pruned, tmp_path_factory):
    """An int8 file without and with metadata."""
    folder = tmp_path_factory.mktemp("files")
    metadata = kfp.export.Metadata(labels=NAMES, normalization=(127.5, [127.5, 128, 64]), plan=pruned[1].plan)
    data = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
    settings = {"quantize": "int8", "data": data}
    plain = kfp.export_tflite(pruned[0], folder / "plain.tflite", **settings)
    return plain, kfp.export_tflite(pruned[0], folder / "described.tflite", metadata=metadata, **settings)


def test_metadata_is_read_back(files, pruned):
    plan = pruned[1].plan
    assert kfp.export.read_metadata(files[1].path) == {
        "labels": NAMES,
        "normalization": [127.5, [127.5, 128.0, 64.0]],
        "plan": {"sha256": plan.sha256, "model": "pets", "method": "l2", "budget": plan.budget},
        "version": plan.versions["keras_filterprune"],
    }


def test_the_file_computes_the_same_and_grows_by_the_metadata_alone(files):
    plain, described = files
    image = np.random.default_rng(1).normal(size=(1, 8, 8, 3)).astype("float32")
    outputs = [Interpreter(os.fspath(f.path)).get_signature_runner()(image=image)["output_0"] for f in files]
    np.testing.assert_array_equal(*outputs)
    assert described.bytes == described.path.stat().st_size
    assert 300 < described.bytes - plain.bytes < 1500
    assert described.ops == plain.ops
    assert described.max_abs_difference == plain.max_abs_difference


def test_tools_find_it_by_the_official_schema(files):
    root = official(files[1].path)
    assert root.text(0) == "pets"
    assert [file.text(0) for file in root.tables(6)] == ["keras_filterprune.json"]
    (graph,) = root.tables(3)
    (image,), (output,) = graph.tables(2), graph.tables(3)
    assert (image.text(0), output.text(0)) == ("image", "output_0")
    (unit,) = image.tables(4)
    assert unit.byte(0) == 1
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([127.5] * 3, [127.5, 128, 64])
    (labels,) = output.tables(6)
    assert (labels.text(0), labels.byte(2)) == ("labels.txt", 2)
    with zipfile.ZipFile(files[1].path) as archive:
        assert archive.read("labels.txt").decode() == "cat\ndog\nKäfer\n"


def test_several_inputs_and_outputs_are_named(tmp_path):
    metadata = kfp.export.Metadata(
        labels={"kind": NAMES, "size": ["small", "large"]}, normalization={"my image": (0, 255)}
    )
    result = kfp.export_tflite(two_heads(), tmp_path / "model.tflite", metadata=metadata)
    content = kfp.export.read_metadata(result.path)
    assert content["labels"] == {"kind": NAMES, "size": ["small", "large"]}
    assert content["normalization"] == {"my image": [0, 255]}
    assert content["plan"] is None
    (graph,) = official(result.path).tables(3)
    outputs = {node.text(0): [file.text(0) for file in node.tables(6)] for node in graph.tables(3)}
    assert outputs == {"kind": ["labels_kind.txt"], "size": ["labels_size.txt"], "age": []}
    units = {node.text(0): [unit.table(1).floats(1) for unit in node.tables(4)] for node in graph.tables(2)}
    assert units == {"my_image": [[255.0]], "extra": []}
    # Tools go by position: the tables stand in the order of the file's own inputs and outputs.
    sizes = {"my_image": 3, "extra": 4, "kind": 3, "age": 1, "size": 2}
    file = Interpreter(os.fspath(result.path))
    for tables, details in ((graph.tables(2), file.get_input_details()), (graph.tables(3), file.get_output_details())):
        assert [sizes[node.text(0)] for node in tables] == [detail["shape"][-1] for detail in details]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labels": NAMES[:2]}, r"labels of output 'output_0' are 3 names, one per class\. Received: 2\."),
        ({"labels": "cat"}, r"are 3 names, one per class, in a list\. Received: 'cat'\."),
        ({"labels": ["cat", "dog", 3]}, r"each a text of one line\. Received: 3\."),
        ({"labels": ["cat", "dog", "a\nb"]}, r"each a text of one line\. Received: 'a\\nb'\."),
        ({"labels": {"logits": NAMES}}, r"labels is for the outputs \['output_0'\]\. Received: labels=\['logits'\]\."),
        ({"normalization": 255}, r"of input 'image' is \(mean, std\), .* one per channel \(3\).*\. Received: 255\."),
        ({"normalization": (0, 1, 2)}, r"Received: \(0, 1, 2\)\."),
        ({"normalization": (0, 0)}, r"std above 0\. Received: \(0, 0\)\."),
        ({"normalization": (0, [1, 2])}, r"Received: \(0, \[1, 2\]\)\."),
        ({"normalization": (float("nan"), 1)}, r"Received: \(nan, 1\)\."),
        (
            {"plan": {"model": "pets"}},
            r"plan is a PruningPlan, such as report\.plan\. Received: plan=\{'model': 'pets'\}\.",
        ),
    ],
)
def test_metadata_that_do_not_fit_are_refused(settings, sentence, tmp_path):
    with pytest.raises(errors.InvalidValueError, match=sentence):
        kfp.export_tflite(classifier(), tmp_path / "model.tflite", metadata=kfp.export.Metadata(**settings))
    assert os.listdir(tmp_path) == []


def test_metadata_of_several_inputs_and_outputs_need_names():
    model = two_heads()
    with pytest.raises(
        errors.InvalidValueError, match=r"3 outputs: labels is a dict by output, of \['age', 'kind', 'size'\]"
    ):
        check_metadata(kfp.export.Metadata(labels=NAMES), model, input_ports(model))
    with pytest.raises(errors.InvalidValueError, match=r"2 inputs: normalization is a dict by input"):
        check_metadata(kfp.export.Metadata(normalization=(0, 1)), model, input_ports(model))
    with pytest.raises(
        errors.InvalidValueError, match=r"metadata is a kfp\.export\.Metadata, or None\. Received: metadata=\["
    ):
        check_metadata(NAMES, model, input_ports(model))


@pytest.mark.parametrize(
    ("method", "size", "settings"),
    [
        ("pursuit", 8, {"data": np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")}),
        ("lrf", 8, {"compensate": "adapter"}),
        ("similarity", 8, {}),
        ("l2", None, {}),
    ],
    ids=["least squares", "adapters", "merge", "open size"],
)
def test_plans_fit_what_they_made_and_nothing_else(method, size, settings, pruned):
    model, plan = classifier(size), pruned[1].plan
    small, report = kfp.prune_model(model, method, 0.6, return_report=True, progress=False, **settings)
    x = keras.Input((8, 8, 3))
    fixed = keras.Model(x, small(x))
    check_metadata(kfp.export.Metadata(plan=report.plan), fixed, input_ports(fixed))
    for other, wrong in ((fixed, plan), (classifier(), report.plan), (pruned[0], report.plan)):
        with pytest.raises(errors.PlanMismatchError, match=r"the plan leaves .* MACs and .* parameters of model "):
            check_metadata(kfp.export.Metadata(plan=wrong), other, input_ports(other))


def test_a_plan_keeps_its_hash_in_a_file_and_another_has_another(pruned, tmp_path):
    plan = pruned[1].plan
    plan.save(tmp_path / "plan.json")
    assert kfp.PruningPlan.load(tmp_path / "plan.json").sha256 == plan.sha256
    assert kfp.plan_pruning(classifier(), "l2", 0.6, progress=False).sha256 != plan.sha256


def test_files_without_metadata_say_so(files, tmp_path):
    with pytest.raises(errors.FileError, match=r"plain.tflite holds no metadata of keras_filterprune .*Metadata\("):
        kfp.export.read_metadata(files[0].path)
    with zipfile.ZipFile(tmp_path / "other.tflite", "w") as archive:
        archive.writestr("labels.txt", "cat\n")
    with pytest.raises(errors.FileError, match=r"other.tflite holds no metadata"):
        kfp.export.read_metadata(tmp_path / "other.tflite")
    with pytest.raises(errors.FileError, match=r"cannot read .*missing.tflite"):
        kfp.export.read_metadata(tmp_path / "missing.tflite")
