"""The operators of a model are those of its file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields as fields_of
from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers
from latency_tables import MODELS, QUIET, sequential, sizes, table_of
from zoo import ZOO, randomise

import keras_filterprune as kfp
import tflite_bench
from keras_filterprune.latency import operators_to_measure
from keras_filterprune.latency.budget import LatencyCost
from keras_filterprune.latency.operators import DEFAULTS, list_operators


def listed(model: keras.Model, kept: dict | None = None) -> list[tflite_bench.Operator]:
    """The operators of a model, or of what is left of it when these units stay."""
    graph = kfp.analyze(model)
    operators, widths, _ = list_operators(graph)
    at = widths.at(sizes(graph) if kept is None else np.array([len(kept[g.name]) for g in graph.groups], int))
    own = [{name: value for name, value in o.fields if name != "folds"} for o in operators]
    pairs = zip(operators, own, strict=True)
    return [tflite_bench.Operator(channels=at[o.channels], filters=at[o.filters], **fields) for o, fields in pairs]


def unknown(*parts, shape=(8, 8, 3)) -> list[str]:
    """What of a chain of layers has no operator."""
    return list(list_operators(kfp.analyze(sequential(*parts, shape=shape)))[2].values())


def fields(*parts, shape=(8, 8, 3)) -> list[dict]:
    return [dict(o.fields) for o in list_operators(kfp.analyze(sequential(*parts, shape=shape)))[0]]


KINDS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
FUSED = {0: None, 1: "relu", 3: "relu6"}


def in_file(model: keras.Model, folder) -> list[tflite_bench.Operator]:
    """Operators of the file that a model is exported to, as they are run: no reshapes, no zeros before convolutions."""
    path = folder / "model.tflite"
    kfp.export_tflite(model, path, verify=False, overwrite=True)
    content = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    graph, found = content.subgraphs[0], []
    for node in graph.operators:
        code = content.operatorCodes[node.opcodeIndex]
        kind = KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if kind != "RESHAPE" and not folded(graph, node, kind):
            inputs = [graph.tensors[number] for number in node.inputs if number >= 0]
            stored = [content.buffers[tensor.buffer].data is not None for tensor in inputs]
            found.append(operator(kind, node, inputs, stored, graph.tensors[node.outputs[0]]))
    return found


def folded(graph, node, kind) -> bool:
    """Which padding is not run: see the test of it below."""
    readers = [other for other in graph.operators if node.outputs[0] in other.inputs]
    options = readers[0].builtinOptions if len(readers) == 1 else None
    convolution = kind == "PAD" and hasattr(options, "dilationWFactor")
    return convolution and (options.padding == 1 or options.strideH == options.strideW == 1)


def test_defaults_are_those_of_the_benchmark():
    """Two tables on purpose: the benchmark stands alone."""
    defaults = {field.name: field.default for field in fields_of(tflite_bench.Operator)}
    assert {name: defaults[name] for name in DEFAULTS} == DEFAULTS


def operator(kind, node, inputs, stored, output) -> tflite_bench.Operator:
    shapes = [tuple(map(int, tensor.shape)) for tensor in inputs]
    # The larger input is the one that a gate or a constant is applied to.
    x, y = max(shapes, key=math.prod) if kind in ("ADD", "MUL") else shapes[0], tuple(map(int, output.shape))
    options, given = node.builtinOptions, {"channels": x[-1], "filters": y[-1]}
    if len(x) == 4 and kind != "FULLY_CONNECTED":
        given["size"] = x[1:3]
    if kind in ("ADD", "MUL"):
        given["second"] = "gate" if shapes[0] != shapes[1] else None
        if any(stored):
            # A single value is listed like a row of them.
            by_channel = x[1:3] == (1, 1) or x[-1] >= 16 or shapes[stored.index(True)] == x[-1:]
            given["second"] = "constant" if by_channel else "row"
    if kind in tflite_bench.operators.FIELDS_OF_KIND and hasattr(options, "fusedActivationFunction"):
        given["activation"] = None if kind == "CONCATENATION" else FUSED[options.fusedActivationFunction]
    if hasattr(options, "padding"):
        given |= {"padding": ("same", "valid")[options.padding], "strides": (options.strideH, options.strideW)}
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        given |= {"kernel": shapes[1][1:3], "dilation": (options.dilationHFactor, options.dilationWFactor)}
    if kind == "CONV_2D" and x[-1] != shapes[1][3]:
        # With one input channel in each group it is listed as what it computes.
        given |= {"groups": x[-1] // shapes[1][3]} if shapes[1][3] > 1 else {}
        kind = "CONV_2D" if shapes[1][3] > 1 else "DEPTHWISE_CONV_2D"
    if kind.endswith("POOL_2D"):
        given["kernel"] = (options.filterHeight, options.filterWidth)
    if kind == "PAD":
        given["kernel"] = (y[1] - x[1], y[2] - x[2])
    return tflite_bench.Operator(kind, **given)


def counted(operators) -> Counter:
    """Equal for equal lists in any order: the converter sorts branches its own way; padding of 1x1 says nothing."""
    return Counter(replace(o, padding="same") if o.kernel == (1, 1) and "CONV" in o.kind else o for o in operators)


def assert_pruned_list_is_in_the_file(model: keras.Model, folder) -> None:
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(0.6), **QUIET)
    pruned = kfp.apply_plan(model, plan, compensate="none", verify=False, **QUIET)
    kept = {group["name"]: group["kept"] for group in plan.groups}
    assert any(len(group["kept"]) < group["size"] for group in plan.groups)
    expected = counted(in_file(pruned, folder))
    assert counted(listed(model, kept)) == expected
    assert counted(listed(pruned)) == expected


@pytest.mark.parametrize("names", [MODELS[:5], MODELS[5:10], MODELS[10:]], ids=lambda names: names[0])
def test_the_dense_list_at_the_kept_counts_is_the_file_of_the_pruned_model(names, tmp_path):
    parts = [ZOO[name]() for name in names]
    inputs = [keras.Input(part.input_shape[1:]) for part in parts]
    model = keras.Model(inputs, [part(x) for part, x in zip(parts, inputs, strict=True)])
    assert_pruned_list_is_in_the_file(model, tmp_path)


@pytest.mark.parametrize("name", ["residual_projection", "se_keepdims", "bn_before_conv"])
def test_the_list_is_the_file_of_the_dense_model(name, tmp_path):
    model = ZOO[name]()
    assert counted(listed(model)) == counted(in_file(model, tmp_path))


def application(name: str, **settings) -> keras.Model:
    return randomise(getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), **settings))


@pytest.mark.parametrize(
    ("name", "settings", "end"),
    [
        # Blocks of every kind are there, most of the weights are not.
        ("MobileNet", {"alpha": 0.25}, "conv_pw_6_relu"),
        ("MobileNetV2", {"alpha": 0.35}, "block_5_add"),
        ("ResNet50V2", {}, "conv3_block2_out"),
    ],
    ids=["MobileNet", "MobileNetV2", "ResNet50V2"],
)
def test_the_list_is_the_file_of_an_application(name, settings, end, tmp_path):
    model = application(name, **settings)
    pooled = layers.GlobalAveragePooling2D()(model.get_layer(end).output)
    model = keras.Model(model.input, layers.Dense(10)(pooled))
    assert counted(listed(model)) == counted(in_file(model, tmp_path))


def test_the_dense_list_is_the_file_of_a_pruned_application(tmp_path):
    assert_pruned_list_is_in_the_file(application("MobileNetV3Small", alpha=0.5), tmp_path)


def test_activations_of_layers_are_listed_as_the_file_has_them(tmp_path):
    parts = [
        layers.Conv2D(8, 3, activation=layers.LeakyReLU()),
        layers.Conv2D(8, 1, activation=layers.ReLU()),
        layers.MaxPooling2D(1),
        layers.ReLU(),
        layers.Conv2D(8, 1, activation="silu"),
        layers.Activation("hard_silu"),
        layers.Conv2D(8, 1, activation="hard_sigmoid"),
        layers.Activation("elu"),
        layers.Conv2D(8, 1),
        layers.ReLU(6.0),
        layers.BatchNormalization(),
        layers.Activation("tanh"),
        layers.SeparableConv2D(8, 3, dilation_rate=2, activation="relu6"),
        layers.Activation("relu"),
        layers.GlobalAveragePooling2D(keepdims=True),
        layers.Dense(8, activation="gelu"),
        layers.Dense(4),
        layers.Activation("relu6"),
        layers.Softmax(),
    ]
    model = sequential(*parts, shape=(12, 12, 3))
    assert counted(listed(model)) == counted(in_file(model, tmp_path))


@pytest.mark.parametrize(("quantize", "products"), [(None, 1), ("int8", 0)])
def test_silu_is_one_operator_in_int8(quantize, products, tmp_path):
    model, path = sequential(layers.Conv2D(64, 3, activation="silu"), shape=(64, 64, 16)), tmp_path / "model.tflite"
    samples = np.random.default_rng(0).normal(size=(4, 64, 64, 16)).astype("float32") if quantize else None
    kfp.export_tflite(model, path, quantize=quantize, data=samples, verify=False)
    names = [row.operator for row in tflite_bench.profile(path).operators]
    data_type = quantize or "float32"
    measured = [entry["kind"] for entry in operators_to_measure(kfp.analyze(model), data_type)]
    assert sum("Multiply" in name for name in names) == products == (1 if "MUL" in measured else 0)
    cost = LatencyCost(kfp.analyze(model), table_of(model, data_type=data_type))
    assert cost(cost.sizes) > 0


def test_a_relu_is_fused_into_the_last_of_several_sums_and_not_where_it_is_not_alone(tmp_path):
    inputs = keras.Input((8, 8, 4))
    x, y, z, shown = (layers.Conv2D(4, k, padding="same")(inputs) for k in (1, 3, 5, 7))
    outputs = [layers.ReLU()(layers.Add()([x, y, z])), layers.ReLU()(y), z, shown, layers.ReLU()(shown)]
    model = randomise(keras.Model(inputs, outputs))
    assert counted(listed(model)) == counted(in_file(model, tmp_path))


def test_padding_in_front_of_a_convolution_is_part_of_it(tmp_path):
    inputs = keras.Input((9, 8, 4))
    pads = [1, ((1, 1), (0, 1)), ((1, 0), (0, 1)), 2]
    y = [layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(pad)(inputs)) for pad in pads]
    y.append(layers.Conv2D(4, 3, dilation_rate=2)(layers.ZeroPadding2D(2)(inputs)))
    y.append(layers.Conv2D(4, 3, padding="same")(layers.ZeroPadding2D(3)(inputs)))
    model = randomise(keras.Model(inputs, y))
    found = listed(model)
    assert counted(found) == counted(in_file(model, tmp_path))
    assert not any(o.kind == "PAD" for o in found)


# {what reads the padding: (layer, how often it is run)}.
READERS = {
    "conv": (layers.Conv2D(16, 3), 0),
    "depthwise": (layers.DepthwiseConv2D(3), 0),
    "separable": (layers.SeparableConv2D(16, 3), 0),
    "strides": (layers.Conv2D(16, 3, strides=2), 0),
    "same": (layers.Conv2D(16, 3, padding="same"), 0),
    "dilation": (layers.Conv2D(16, 3, padding="same", dilation_rate=2), 0),
    "same with strides": (layers.Conv2D(16, 3, strides=2, padding="same"), 1),
    "pooling": (layers.MaxPooling2D(3), 1),
}


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_xnnpack_runs_no_padding_in_front_of_a_convolution(quantize, tmp_path):
    parts = {
        name: sequential(layers.ZeroPadding2D(2), layer, shape=(32, 32, 16)) for name, (layer, _) in READERS.items()
    }
    for name, part in parts.items():
        assert sum(o.kind == "PAD" for o in listed(part)) == READERS[name][1], name
    # One file of all of them, with an input each: padding that several read would be run.
    inputs = [keras.Input((32, 32, 16)) for _ in parts]
    model = keras.Model(inputs, [part(x) for x, part in zip(inputs, parts.values(), strict=True)])
    samples = [np.random.default_rng(0).normal(size=(4, 32, 32, 16)).astype("float32") for _ in parts]
    path = tmp_path / "model.tflite"
    kfp.export_tflite(model, path, quantize=quantize, data=samples if quantize else None, verify=False)
    names = [row.operator for row in tflite_bench.profile(path, runs=20).operators]
    assert sum("Pad" in name for name in names) == sum(pads for _, pads in READERS.values())


def test_transposed_convolutions_and_bilinear_resizing_are_listed():
    parts = [
        layers.Conv2DTranspose(8, 4, strides=2, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.UpSampling2D((2, 3), interpolation="bilinear"),
    ]
    transposed = {"kind": "TRANSPOSE_CONV", "size": (8, 8), "kernel": (4, 4), "strides": (2, 2), "padding": "same"}
    resized = {"kind": "RESIZE_BILINEAR", "size": (16, 16), "strides": (2, 3)}
    assert fields(*parts) == [transposed | {"activation": "relu"}, resized]


def test_constants_on_the_image_are_listed_and_those_that_do_nothing_are_not():
    parts = [layers.Rescaling(1.0), layers.Rescaling(1.0, offset=2.0), layers.Rescaling(0.5, offset=1.0)]
    assert [f["kind"] for f in fields(*parts)] == ["ADD", "MUL", "ADD"]
    parts = [layers.Normalization(mean=[1.0, 2, 3], variance=[1.0, 2, 3])]
    assert [f["second"] for f in fields(*parts)] == ["row", "row"]
    assert [f["second"] for f in fields(layers.Rescaling(list(range(16))), shape=(8, 8, 16))] == ["constant"]


def test_the_list_has_the_constants_of_the_file(tmp_path):
    inputs, outputs = [], []
    for channels in (3, 15, 16):
        values = np.linspace(0.5, 2, channels)
        for layer in (layers.Rescaling(values, offset=1 - values), layers.Rescaling(0.5, offset=2.0)):
            # Their width tells them apart.
            inputs.append(keras.Input((8, 6 + len(inputs), channels)))
            outputs.append(layers.Conv2D(4, 3, padding="same")(layer(inputs[-1])))
    model = randomise(keras.Model(inputs, outputs))
    assert counted(listed(model)) == counted(in_file(model, tmp_path))


def test_a_dense_layer_on_a_map_is_a_convolution_of_one_pixel():
    assert fields(layers.Dense(5)) == [{"kind": "CONV_2D", "size": (8, 8)}]


def test_normalization_over_rows_is_no_part_of_a_convolution():
    assert [f["kind"] for f in fields(layers.Conv2D(4, 1), layers.BatchNormalization(axis=1))][1:] == ["MUL", "ADD"]
    assert [f["kind"] for f in fields(layers.Conv2D(4, 1), layers.BatchNormalization(axis=3))] == ["CONV_2D"]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([layers.UpSampling2D(2)], ["UpSampling2D by nearest"]),
        ([layers.LayerNormalization()], ["LayerNormalization"]),
        ([layers.Lambda(lambda x: 2 * x, output_shape=(8, 8, 3))], ["Lambda"]),
        ([layers.Permute((2, 1, 3)), layers.PReLU()], ["Permute", "PReLU"]),
        ([layers.Conv2D(4, 1, activation="mish"), layers.GlobalMaxPooling2D()], ["mish", "GlobalMaxPooling2D"]),
        ([layers.Conv2D(4, 1, activation=layers.PReLU()), layers.ReLU(3.0)], ["PReLU", "ReLU"]),
        ([layers.Conv2DTranspose(4, 3, dilation_rate=2)], ["Conv2DTranspose with dilation"]),
        ([layers.Reshape((-1, 3)), layers.Softmax(), layers.Dense(2)], ["Softmax", "Dense"]),
    ],
)
def test_what_has_no_operator_is_named(parts, expected):
    assert unknown(*parts) == expected


def test_layers_of_signals_and_volumes_are_named():
    assert unknown(layers.Conv1D(4, 3), shape=(8, 3)) == ["Conv1D"]
    assert unknown(layers.Conv3D(4, 3), shape=(4, 4, 4, 3)) == ["Conv3D"]


def test_the_report_says_what_was_left_out():
    model = sequential(layers.Conv2D(16, 3), layers.LayerNormalization(name="norm"), layers.Conv2D(4, 3))
    budget = kfp.LatencyBudget(keep=0.7, table="arm64")
    _, report = kfp.prune_model(model, "l2", budget, return_report=True, **QUIET)
    assert "Without a price, and left out: norm (LayerNormalization)." in report.notes
