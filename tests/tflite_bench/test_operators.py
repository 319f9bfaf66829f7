"""Single operators: each one-op model computes what NumPy says, timings are interleaved, reports survive JSON."""

import dataclasses
import json
import os
import sys
import weakref

import numpy as np
import pytest
from scipy import special

from tflite_bench import (
    BenchError,
    Operator,
    OperatorReport,
    benchmark,
    operator_model,
    time_operators,
)
from tflite_bench.files import read_json
from tflite_bench.operators import timing
from tflite_bench.operators.model import _KINDS
from tflite_bench.operators.operator import FIELDS_OF_KIND
from tflite_bench.runner import Runner

# Shape of the second input of sums and products of (1, 4, 5, 8).
SECONDS = {None: [1, 4, 5, 8], "gate": [1, 1, 1, 8], "constant": [8], "row": [5, 8]}
CASES = [
    Operator("CONV_2D", 4, (6, 5), filters=8),
    Operator("CONV_2D", 4, (7, 6), filters=8, kernel=(3, 2), activation="relu"),
    Operator("CONV_2D", 4, (8, 7), filters=8, kernel=(3, 3), strides=(2, 1)),
    Operator("CONV_2D", 4, (8, 7), filters=6, kernel=(3, 3), strides=(1, 2), padding="valid", activation="relu6"),
    Operator("CONV_2D", 4, (9, 8), filters=8, kernel=(3, 2), dilation=(2, 3)),
    Operator("CONV_2D", 4, (9, 8), filters=8, kernel=(3, 2), dilation=(2, 3), padding="valid"),
    Operator("CONV_2D", 6, (6, 5), filters=9, kernel=(3, 3), groups=3),
    Operator("DEPTHWISE_CONV_2D", 8, (6, 5), kernel=(3, 3)),
    Operator("DEPTHWISE_CONV_2D", 4, (7, 6), filters=12, kernel=(3, 3), strides=(2, 2), activation="relu6"),
    Operator("DEPTHWISE_CONV_2D", 4, (7, 6), kernel=(3, 2), dilation=(2, 3), padding="valid"),
    Operator("TRANSPOSE_CONV", 4, (4, 3), filters=6, kernel=(3, 2), strides=(2, 2)),
    Operator("TRANSPOSE_CONV", 4, (4, 3), filters=6, kernel=(4, 3), strides=(2, 1), padding="valid", activation="relu"),
    Operator("FULLY_CONNECTED", 12, (), filters=5),
    Operator("FULLY_CONNECTED", 12, filters=20, activation="relu"),
    *(Operator(kind, 8, (4, 5), second=second) for kind in ("ADD", "MUL") for second in SECONDS),
    Operator("ADD", 8, (4, 5), activation="relu"),
    Operator("MUL", 8, (4, 5), second="constant", activation="relu6"),
    Operator("MEAN", 8, (4, 5)),
    Operator("MAX_POOL_2D", 8, (7, 6), kernel=(3, 2), strides=(2, 1)),
    Operator("MAX_POOL_2D", 8, (7, 6), kernel=(3, 2), strides=(2, 1), padding="valid", activation="relu"),
    Operator("AVERAGE_POOL_2D", 8, (7, 6), kernel=(3, 2), strides=(1, 2)),
    Operator("AVERAGE_POOL_2D", 8, (7, 6), kernel=(3, 2), strides=(1, 2), padding="valid"),
    Operator("PAD", 8, (4, 5), kernel=(2, 3)),
    Operator("PAD", 8, (4, 5), kernel=(0, 0), filters=11),
    Operator("CONCATENATION", 4, (4, 5), filters=10),
    Operator("RESIZE_BILINEAR", 4, (4, 5), strides=(2, 3)),
    Operator("RESIZE_NEAREST_NEIGHBOR", 4, (4, 5), strides=(2, 3)),
    *(
        Operator(kind, 8, (4, 5))
        for kind in "RELU RELU6 LOGISTIC TANH HARD_SWISH LEAKY_RELU ELU GELU SOFTMAX".split()
    ),
]  # fmt: skip
# XNNPACK has no int8 kernel for these, LiteRT's own one runs.
NOT_DELEGATED = {"AVERAGE_POOL_2D", "RESIZE_NEAREST_NEIGHBOR", "RELU", "RELU6", "HARD_SWISH", "GELU", "SOFTMAX"}


# ------------------------------------------------------------------------------------- what operators compute


def windows(operator, image, fill):
    """(rows, columns, kernel rows, kernel columns, channels): what the window sees at each place."""
    placed = []
    for axis in (0, 1):
        reach = (operator.kernel[axis] - 1) * operator.dilation[axis] + 1
        length, stride = image.shape[axis], operator.strides[axis]
        if operator.padding == "same":
            count = int(np.ceil(length / stride))
            before = max((count - 1) * stride + reach - length, 0) // 2
        else:
            count, before = (length - reach) // stride + 1, 0
        placed.append(
            [
                [place * stride - before + tap * operator.dilation[axis] for tap in range(operator.kernel[axis])]
                for place in range(count)
            ]
        )
    margin = 20
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=fill)
    rows, columns = (np.array(places) + margin for places in placed)
    return padded[rows[:, None, :, None], columns[None, :, None, :]]


def convolution(operator, image, weights, bias):
    seen = windows(operator, image[0], 0)
    width, share = operator.channels // operator.groups, operator.filters // operator.groups
    parts = [
        np.einsum(
            "rcijk,fijk->rcf", seen[..., g * width : (g + 1) * width], weights[g * share : (g + 1) * share], dtype="f8"
        )
        for g in range(operator.groups)
    ]
    return np.concatenate(parts, axis=-1) + bias


def depthwise(operator, image, weights, bias):
    seen = windows(operator, image[0], 0).repeat(operator.filters // operator.channels, axis=-1)
    return np.einsum("rcijk,ijk->rck", seen, weights[0], dtype="f8") + bias


def transposed(operator, output_shape, weights, image, bias):
    rows, columns = output_shape[1:3].astype(int)
    canvas = np.zeros((rows + 20, columns + 20, operator.filters))
    for row, column in np.ndindex(*operator.size):
        top, left = row * operator.strides[0], column * operator.strides[1]
        canvas[top : top + operator.kernel[0], left : left + operator.kernel[1]] += np.einsum(
            "fijk,k->ijf", weights, image[0, row, column]
        )
    top, left = (
        max((operator.size[axis] - 1) * operator.strides[axis] + operator.kernel[axis] - length, 0) // 2
        for axis, length in enumerate((rows, columns))
    )
    return canvas[top : top + rows, left : left + columns] + bias


def padded(operator, image, _):
    space = [(total // 2, (total + 1) // 2) for total in operator.kernel]
    return np.pad(image, [(0, 0), *space, (0, operator.filters - operator.channels)])


def resized(operator, image, size):
    for axis in (0, 1):
        places = (np.arange(size[axis]) + 0.5) / operator.strides[axis] - 0.5
        known = np.arange(operator.size[axis])
        image = np.apply_along_axis(lambda line, at=places, known=known: np.interp(at, known, line), 1 + axis, image)
    return image


REFERENCE = {
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": depthwise,
    "TRANSPOSE_CONV": transposed,
    "FULLY_CONNECTED": lambda _, values, weights, bias: values @ weights.T + bias,
    "ADD": lambda _, first, second: first + second,
    "MUL": lambda _, first, second: first * second,
    "MEAN": lambda _, image, axes: image.mean((1, 2)),
    "MAX_POOL_2D": lambda operator, image: windows(operator, image[0], -np.inf).max((2, 3)),
    "AVERAGE_POOL_2D": lambda operator, image: np.nanmean(windows(operator, image[0], np.nan), (2, 3)),
    "PAD": padded,
    "CONCATENATION": lambda _, first, second: np.concatenate([first, second], axis=-1),
    "RESIZE_BILINEAR": resized,
    "RESIZE_NEAREST_NEIGHBOR": lambda operator, image, _: image.repeat(operator.strides[0], 1).repeat(
        operator.strides[1], 2
    ),
    "RELU": lambda _, x: np.maximum(x, 0),
    "RELU6": lambda _, x: np.clip(x, 0, 6),
    "LOGISTIC": lambda _, x: special.expit(x),
    "TANH": lambda _, x: np.tanh(x),
    "HARD_SWISH": lambda _, x: x * np.clip(x + 3, 0, 6) / 6,
    "LEAKY_RELU": lambda _, x: np.where(x > 0, x, 0.2 * x),
    "ELU": lambda _, x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "GELU": lambda _, x: x * special.ndtr(x),
    "SOFTMAX": lambda _, x: special.softmax(x, axis=-1),
}
HIGHEST = {"relu": np.inf, "relu6": 6}


def as_float(values, detail):
    """The real numbers that a tensor stands for."""
    quantization = detail["quantization_parameters"]
    if not len(quantization["scales"]):
        return values.astype("f8")
    shape = np.ones(values.ndim, int)
    shape[quantization["quantized_dimension"]] = -1
    scales, zeros = (quantization[name].reshape(shape) for name in ("scales", "zero_points"))
    return (values.astype("f8") - zeros) * scales


def computed(operator):
    """(expected output, LiteRT's output, step of its quantization or 0, names of what ran it)."""
    interpreter = Runner(str(operator), content=operator_model(operator)).runtime.interpreter
    (node, *delegates) = interpreter._get_ops_details()
    assert node["op_name"] == operator.kind
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    inputs = [as_float(interpreter.get_tensor(index), details[index]) for index in node["inputs"]]
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    got = as_float(interpreter.get_tensor(output["index"]), output)
    assert got.shape == operator.output_shape
    assert np.dtype(output["dtype"]) == operator.data_type
    expected = REFERENCE[operator.kind](operator, *inputs).reshape(got.shape)
    if operator.activation is not None:
        expected = np.clip(expected, 0, HIGHEST[operator.activation])
    step, zero = output["quantization"]
    if step:
        expected = np.clip(expected, (-128 - zero) * step, (127 - zero) * step)
    return expected, got, step, [delegate["op_name"] for delegate in delegates]


def test_every_kind_is_tried():
    assert {case.kind for case in CASES} == set(FIELDS_OF_KIND) == set(_KINDS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_computes_what_numpy_computes(case):
    expected, got, _, delegates = computed(case)
    assert expected.std() > 0.01
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # The one kind that XNNPACK leaves to LiteRT.
    assert delegates == ([] if case.kind == "RESIZE_NEAREST_NEIGHBOR" else ["DELEGATE"])


@pytest.mark.parametrize("case", [dataclasses.replace(case, data_type="int8") for case in CASES], ids=str)
def test_int8_computes_the_same_to_one_step(case):
    expected, got, step, delegates = computed(case)
    assert step > 0
    assert len(np.unique(got)) > 4
    # Half a step of rounding, and as much again for kernels that work in fixed point.
    assert np.abs(got - expected).max() <= 1.01 * step
    assert delegates == ([] if case.kind in NOT_DELEGATED else ["DELEGATE"])


@pytest.mark.parametrize("kind", ["ADD", "MUL"])
def test_the_second_input_is_the_one_described(kind):
    for second, shape in SECONDS.items():
        interpreter = Runner(kind, content=operator_model(Operator(kind, 8, (4, 5), second=second))).runtime.interpreter
        assert interpreter.get_tensor_details()[1]["shape"].tolist() == shape
        assert [detail["index"] for detail in interpreter.get_input_details()] == [0, 1][: 1 if len(shape) < 4 else 2]


def test_int8_weights_have_a_scale_per_channel():
    for kind, axis in (("CONV_2D", 0), ("DEPTHWISE_CONV_2D", 3), ("TRANSPOSE_CONV", 0), ("FULLY_CONNECTED", 0)):
        size = () if kind == "FULLY_CONNECTED" else (4, 4)
        content = operator_model(Operator(kind, 6, size, data_type="int8"))
        details = Runner(kind, content=content).runtime.interpreter.get_tensor_details()
        (weights,) = [detail["quantization_parameters"] for detail in details if len(detail["shape"]) in (2, 4)
                      and len(detail["quantization_parameters"]["scales"]) > 1]  # fmt: skip
        assert len(set(weights["scales"])) == 6
        assert weights["quantized_dimension"] == axis


def test_models_are_reproducible_and_run_from_disk(tmp_path):
    content = operator_model(CASES[0])
    assert content == operator_model(CASES[0])
    path = tmp_path / "operator.tflite"
    path.write_bytes(content)
    assert benchmark([path], runs=2, rounds=1).models[0].bytes == len(content) == Runner("x", content=content).bytes


# ------------------------------------------------------------------------------------------------ descriptions


def test_equal_operators_are_equal():
    listed = Operator("CONV_2D", np.int64(4), [8, 8], filters=4, kernel=[3, 3])
    assert listed == Operator("CONV_2D", 4, (8, 8), kernel=(3, 3))
    assert len({listed, Operator("CONV_2D", 4, (8, 8), kernel=(3, 3))}) == 1
    assert json.loads(json.dumps(vars(listed)))["kernel"] == [3, 3]
    assert Operator("FULLY_CONNECTED", 4, ()) == Operator("FULLY_CONNECTED", 4, [1, 1])


def test_an_operator_has_a_short_name():
    operator = Operator("CONV_2D", 4, (8, 6), filters=5, strides=(2, 2), data_type="int8")
    assert str(operator) == "CONV_2D int8 8x6x4 -> 4x3x5"
    assert str(Operator("MEAN", 4, (8, 6))) == "MEAN float32 8x6x4 -> 4"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "CONV"}, r"Operator CONV: kind is one of CONV_2D, .*, SOFTMAX\. Received: kind='CONV'"),
        ({"padding": "SAME"}, r"Operator CONV_2D: padding is one of same, valid\. Received: padding='SAME'"),
        ({"second": "vector"}, r"second is one of None, gate, constant, row\. Received: second='vector'"),
        ({"activation": "tanh"}, r"activation is one of None, relu, relu6\. Received: activation='tanh'"),
        ({"data_type": "int16"}, r"data_type is one of float32, int8\. Received: data_type='int16'"),
        ({"channels": 0}, r"channels is an integer of at least 1\. Received: channels=0"),
        ({"channels": 2.0}, r"channels is an integer of at least 1\. Received: channels=2.0"),
        ({"filters": True}, r"filters is an integer of at least 1\. Received: filters=True"),
        ({"kernel": 3}, r"kernel is a pair \(rows, columns\)\. Received: kernel=3"),
        ({"size": (8, 8, 4)}, r"size is a pair \(rows, columns\)\. Received: size=\(8, 8, 4\)"),
        ({"strides": (2, 0)}, r"strides is a pair of integers of at least 1\. Received: strides=\(2, 0\)"),
        (
            {"kind": "PAD", "kernel": (1, -1)},
            r"kernel is a pair of integers of at least 0\. Received: kernel=\(1, -1\)",
        ),
        ({"kind": "RELU", "kernel": (3, 3)}, r"RELU: kernel is \(1, 1\), as always for this kind; leave it out"),
        ({"kind": "TANH", "filters": 8}, r"filters is 4, as always for this kind; leave it out\. Received: filters=8"),
        ({"kind": "MAX_POOL_2D", "second": "gate"}, r"second is None, as always for this kind; leave it out"),
        ({"kind": "FULLY_CONNECTED"}, r"size is \(1, 1\): flatten the input into channels\. Received: size=\(8, 8\)"),
        ({"groups": 3, "filters": 6}, r"groups is a divisor of channels=4 and filters=6\. Received: groups=3"),
        ({"groups": 4, "filters": 6}, r"groups is a divisor of channels=4 and filters=6\. Received: groups=4"),
        ({"kind": "DEPTHWISE_CONV_2D", "filters": 6}, r"filters is a multiple of channels=4\. Received: filters=6"),
        ({"kind": "PAD", "filters": 3}, r"filters is at least channels=4, PAD only adds\. Received: filters=3"),
        ({"kind": "CONCATENATION"}, r"filters is more than channels=4, the second input has the difference"),
        (
            {"padding": "valid", "kernel": (1, 5), "dilation": (1, 2)},
            r"size is at least the dilated kernel, \(1, 9\), because of padding='valid'\. Received: size=\(8, 8\)",
        ),
    ],
)
def test_descriptions_that_make_no_sense(fields, sentence):
    with pytest.raises(BenchError, match=sentence):
        Operator(**{"kind": "CONV_2D", "channels": 4, "size": (8, 8), **fields})


# ------------------------------------------------------------------------------------------------------ timing


def convolutions(*widths):
    return [Operator("CONV_2D", width, (32, 32), kernel=(3, 3)) for width in widths]


def test_more_arithmetic_takes_longer_and_nothing_takes_next_to_nothing():
    floor = Operator("RELU", 1)
    report = time_operators([*convolutions(8, 64), floor], rounds=3)
    narrow, wide, nothing = report.operators
    assert wide.us > narrow.us > report.call_floor_us > 0
    assert nothing.us == report.call_floor_us
    assert all(timing.us <= timing.p50_us for timing in report.operators)


def test_equal_operators_are_timed_once_in_the_order_given():
    first, second, other = convolutions(8, 4, 2)
    report = time_operators(iter([first, second, *convolutions(8), other, second]), rounds=1, seconds=1e-4)
    assert [timing.operator for timing in report.operators] == [first, second, other]


@pytest.fixture
def log(monkeypatch):
    """What real runners do, in order; `log.alive` counts them whenever another is loaded."""

    class Log(list):
        alive = ()

    entries, living = Log(), weakref.WeakSet()

    class Logged(Runner):
        def __init__(self, path, threads, **settings):
            super().__init__(path, threads, **settings)
            living.add(self)
            entries.alive = (*entries.alive, len(living))
            entries.append(("load", self.path.name, threads))

        def time(self, runs):
            entries.append(("time", self.path.name, runs))
            return super().time(runs)

    monkeypatch.setattr(timing, "Runner", Logged)
    monkeypatch.setattr(timing, "_CHUNK", 2)
    return entries


def test_chunks_are_loaded_one_after_the_other_and_interleaved(log):
    operators = convolutions(8, 4, 2)
    time_operators(operators, rounds=2, seconds=1e-9, threads=2)
    floor, a, b, c = (str(operator) for operator in (Operator("RELU", 1), *operators))
    once, twice = [("time", name, 3) for name in (floor, a)], [("time", name, 3) for name in (b, c)]
    # Three runs to estimate, then at least three in each of two rounds.
    loads = [("load", name, 2) for name in (floor, a, b, c)]
    assert log == [*loads[:2], *once * 3, *loads[2:], *twice * 3]
    assert log.alive == (1, 2, 1, 2)


def test_seconds_are_dealt_over_the_rounds(log):
    time_operators([Operator("RELU", 1)], rounds=4, seconds=0.01)
    runs = [count for what, _, count in log if what == "time"][1:]
    assert len(runs) == 4
    assert max(runs) - min(runs) <= 1
    # A run takes 0.4 us on a fast computer; a hundredth of that speed still gives more than the three of a slow one.
    assert min(runs) > 20


def test_a_log_file_gets_no_bar(capfd):
    time_operators(convolutions(4, 2), rounds=2, seconds=1e-4, progress=True)
    captured = capfd.readouterr()
    assert "6/6" not in captured.err
    assert captured.out == ""


OPERATORS = r"operators is a list of at least one Operator, and of nothing else\. Received:"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"operators": []}, rf"{OPERATORS} operators=\[\]"),
        ({"operators": "RELU"}, rf"{OPERATORS} operators='RELU'"),
        ({"operators": CASES[0]}, rf"{OPERATORS} operators=Operator\(kind='CONV_2D'"),
        ({"operators": 3}, rf"{OPERATORS} operators=3"),
        ({"operators": ["RELU"]}, r"Received: operators=\['RELU'\]"),
        ({"threads": 0}, r"threads is an integer, at least 1\. Received: threads=0\."),
        ({"rounds": 0}, r"rounds is an integer, at least 1\. Received: rounds=0\."),
        ({"seconds": 0}, r"seconds is a positive number of seconds\. Received: seconds=0"),
        ({"seconds": float("nan")}, r"seconds is a positive number of seconds\. Received: seconds=nan"),
    ],
)
def test_bad_settings(arguments, sentence):
    with pytest.raises(BenchError, match=sentence):
        time_operators(**{"operators": CASES[:1], **arguments})


def test_without_litert_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    with pytest.raises(BenchError, match=r"ai-edge-litert cannot be imported \(.*\): pip install -U ai-edge-litert"):
        time_operators(CASES[:1])


def test_content_that_is_no_model_is_named():
    with pytest.raises(BenchError, match=r"my operator: LiteRT cannot load this file"):
        Runner("my operator", content=b"no model")


# ------------------------------------------------------------------------------------------------------ report


@pytest.fixture(scope="module")
def report():
    return time_operators([CASES[4], CASES[12], Operator("MUL", 4, second="gate", data_type="int8")], rounds=1)


def test_report_survives_json_and_replaces_the_file_whole(report, tmp_path):
    target = tmp_path / "operators.json"
    target.write_text("old")
    report.save(target)
    assert os.listdir(tmp_path) == ["operators.json"]
    assert OperatorReport.load(target) == report
    saved = read_json(target, sealed=True)
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert set(saved) == {"format", "machine", "settings", "call_floor_us", "operators"}
    assert saved["format"] == 1
    assert saved["settings"] == {"threads": 1, "rounds": 1, "seconds": 0.01}
    assert set(saved["operators"][0]) == {*vars(CASES[4]), "us", "p50_us"}


def test_files_that_are_no_report(report, tmp_path):
    good = json.loads(json.dumps(report.to_dict()))
    entry = good["operators"][0]
    cases = {
        "a JSON file could not be read": "{",
        'it has no "format": 1 or no "operators"': [1],
        "'machine' is missing": {key: value for key, value in good.items() if key != "machine"},
        "'us' is missing": {**good, "operators": [{"kind": "RELU"}]},
        "unexpected keyword argument 'colour'": {**good, "operators": [{**entry, "colour": "red"}]},
        "channels is an integer": {**good, "operators": [{**entry, "channels": "8"}]},
        "'fast' stands where a positive number of microseconds belongs": {
            **good,
            "operators": [{**entry, "us": "fast"}],
        },
        "nan stands where a positive number of microseconds belongs": {**good, "call_floor_us": float("nan")},
        "True stands where a positive number of microseconds belongs": {**good, "call_floor_us": True},
    }
    path = tmp_path / "other.json"
    for sentence, content in cases.items():
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(BenchError) as caught:
            OperatorReport.load(path)
        assert str(caught.value).startswith(f"{path}: expected a file of OperatorReport.save, but ")
        assert sentence in str(caught.value)
        assert str(caught.value).endswith("time the operators again")
    for content in ({**good, "format": 2}, {"format": 1, "machine": {}, "settings": {}, "models": []}):
        path.write_text(json.dumps(content))
        with pytest.raises(BenchError, match='it has no "format": 1 or no "operators"'):
            OperatorReport.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchError, match="a JSON file could not be read"):
        OperatorReport.load(path)
    with pytest.raises(BenchError, match=r"gone.json: expected a file of OperatorReport.save"):
        OperatorReport.load(tmp_path / "gone.json")
