"""Latency: the operators of a model are those of its file, tables price them, budgets on them are kept."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from dataclasses import fields as fields_of
from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from builders import chain
from keras import layers
from zoo import ZOO, randomise

import keras_filterprune as kfp
import tflite_bench
from keras_filterprune import allocators, criteria, errors
from keras_filterprune.cost import Tiles
from keras_filterprune.cost.tiles import TARGETS
from keras_filterprune.latency import PaddedMacs, operators_to_measure
from keras_filterprune.latency.budget import LatencyCost
from keras_filterprune.latency.operators import DEFAULTS, list_operators
from keras_filterprune.measuring import require_faster
from tflite_bench.machine import machine_info

OTHER = "Cortex-A76"
QUIET = {"progress": False}
FLOOR = 0.5
ONE, EIGHT = Tiles(1), Tiles(8)


def blocks(preactivation: bool = False) -> keras.Model:
    """Three residual blocks on one trunk."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    for name in "abc":
        y = layers.ReLU()(layers.BatchNormalization()(x)) if preactivation else x
        y = layers.ReLU()(layers.Conv2D(24, 3, padding="same", name=f"{name}1")(y))
        x = layers.Add(name=f"{name}_add")([x, layers.Conv2D(16, 3, padding="same", name=f"{name}2")(y)])
        x = x if preactivation else layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)) if preactivation else x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x), name="blocks"))


def sequential(*parts, shape=(8, 8, 3)) -> keras.Model:
    return randomise(keras.Sequential([keras.Input(shape), *parts]))


def sizes(graph) -> np.ndarray:
    return np.array([group.size for group in graph.groups], int)


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


# -------------------------------------------------------------------------------------- what stands in the file

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


MODELS = (
    "residual_identity residual_projection bottleneck preactivation_residual inception se_keepdims se_reshape "
    "separable plain_chain bn_before_conv grouped_conv grouped_as_depthwise depthwise flatten_dense dense_concat"
).split()


def assert_pruned_list_is_in_the_file(model: keras.Model, folder) -> None:
    plan = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(0.6), **QUIET)
    pruned = kfp.apply_plan(model, plan, compensate="none", verify=False, **QUIET)
    kept = {group["name"]: group["kept"] for group in plan.groups}
    assert any(len(group["kept"]) < group["size"] for group in plan.groups)
    expected = counted(in_file(pruned, folder))
    assert counted(listed(model, kept)) == expected
    assert counted(listed(pruned)) == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_dense_list_at_the_kept_counts_is_the_file_of_the_pruned_model(name, tmp_path):
    assert_pruned_list_is_in_the_file(ZOO[name](), tmp_path)


@pytest.mark.parametrize("name", ["residual_projection", "se_keepdims", "bn_before_conv"])
def test_the_list_is_the_file_of_the_dense_model(name, tmp_path):
    model = ZOO[name]()
    assert counted(listed(model)) == counted(in_file(model, tmp_path))


def application(name: str) -> keras.Model:
    return randomise(getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3)))


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2", "ResNet50V2"])
def test_the_list_is_the_file_of_an_application(name, tmp_path):
    model = application(name)
    assert counted(listed(model)) == counted(in_file(model, tmp_path))


def test_the_dense_list_is_the_file_of_a_pruned_application(tmp_path):
    assert_pruned_list_is_in_the_file(application("MobileNetV3Small"), tmp_path)


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


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize(
    ("layer", "pads"),
    [
        (layers.Conv2D(16, 3), 0),
        (layers.DepthwiseConv2D(3), 0),
        (layers.SeparableConv2D(16, 3), 0),
        (layers.Conv2D(16, 3, strides=2), 0),
        (layers.Conv2D(16, 3, padding="same"), 0),
        (layers.Conv2D(16, 3, padding="same", dilation_rate=2), 0),
        (layers.Conv2D(16, 3, strides=2, padding="same"), 1),
        (layers.MaxPooling2D(3), 1),
    ],
    ids=["conv", "depthwise", "separable", "strides", "same", "dilation", "same with strides", "pooling"],
)
def test_xnnpack_runs_no_padding_in_front_of_a_convolution(layer, pads, quantize, tmp_path):
    model, path = sequential(layers.ZeroPadding2D(2), layer, shape=(64, 64, 16)), tmp_path / "model.tflite"
    samples = np.random.default_rng(0).normal(size=(4, 64, 64, 16)).astype("float32") if quantize else None
    kfp.export_tflite(model, path, quantize=quantize, data=samples, verify=False)
    names = [row.operator for row in tflite_bench.profile(path).operators]
    assert sum("Pad" in name for name in names) == sum(o.kind == "PAD" for o in listed(model)) == pads


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


@pytest.mark.parametrize("channels", [3, 15, 16])
def test_the_list_has_the_constants_of_the_file(channels, tmp_path):
    values = np.linspace(0.5, 2, channels)
    for layer in (layers.Rescaling(values, offset=1 - values), layers.Rescaling(0.5, offset=2.0)):
        model = sequential(layer, layers.Conv2D(4, 3, padding="same"), shape=(8, 6, channels))
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
    assert "Without a time, and left out: {'norm': 'LayerNormalization'}." in report.notes


# ------------------------------------------------------------------------------------------- what is measured


def work(entry: dict, tiles: Tiles = ONE) -> float:
    """A device whose time is proportional to what it computes, in whole tiles of output channels."""
    kind, (rows, columns) = entry["kind"], entry.get("size", (1, 1))
    if kind in ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
        window = math.prod(entry.get("kernel", (1, 1))) / math.prod(entry.get("strides", (1, 1)))
        return rows * columns * window * entry["channels"] * tiles.ceil(entry["filters"]) / 1e3
    return rows * columns * max(entry["channels"], entry["filters"]) / 1e3


def table_of(*models: keras.Model, tiles=EIGHT, device=OTHER, data_type="float32", noise=0.0) -> kfp.LatencyTable:
    rng = np.random.default_rng(0)
    entries = [entry for model in models for entry in operators_to_measure(kfp.analyze(model), data_type)]
    timed = [{**e, "us": FLOOR + work(e, tiles) * (1 + noise * rng.normal())} for e in entries]
    return kfp.LatencyTable(content(timed, device))


def content(entries: list[dict], device=OTHER) -> dict:
    return {
        "format": 1,
        "machine": {"cpu": device},
        "settings": {"threads": 1},
        "call_floor_us": FLOOR,
        "operators": entries,
    }


def random_keep(graph, rng) -> np.ndarray:
    return np.array([rng.integers(group.least, group.size + 1) for group in graph.groups], int)


MEASURED = [*MODELS, "depthwise_chain", "concat_with_image", "unet", "activations", "broadcast_merges"]


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_measured_prices_everything_that_pruning_can_reach(name):
    model = ZOO[name]()
    graph, rng = kfp.analyze(model), np.random.default_rng(0)
    entries = operators_to_measure(graph)
    for entry in entries:
        tflite_bench.Operator(**entry)
    cost = LatencyCost(graph, table_of(model))
    for _ in range(20):
        assert cost(random_keep(graph, rng)) <= 1.0001 * cost(cost.sizes)
    operators = list_operators(graph)[0]
    assert len(entries) <= 24 * 4 * len(operators)


def test_wide_operators_are_measured_at_few_widths():
    entries = operators_to_measure(kfp.analyze(chain((500, 1000))))
    middle = [e for e in entries if e["kind"] == "CONV_2D" and e["channels"] > 3]
    assert len(middle) <= 24 * 4
    assert {e["channels"] for e in middle} == {128, 256, 376, 500}
    outputs = {e["filters"] for e in middle}
    assert {8, 16, 24, 32, 40, 48, 56, 64, 128, 960, 1000} <= outputs
    assert all(n % 8 == 0 for n in outputs)
    assert {e["data_type"] for e in operators_to_measure(kfp.analyze(chain()), "int8")} == {"int8"}


def test_equal_operators_are_measured_once():
    entries = operators_to_measure(kfp.analyze(blocks()))
    assert len(entries) == len({json.dumps(entry, sort_keys=True) for entry in entries})


# ------------------------------------------------------------------------------------------------ the table

CONV = {"kind": "CONV_2D", "size": (8, 8), "kernel": (3, 3), "data_type": "float32"}
FIELDS = tuple((name, value) for name, value in CONV.items() if name != "data_type")


def staircase(tiles: Tiles, noise: float = 0.0, seed: int = 0, channels=(16, 32, 48, 64)) -> kfp.LatencyTable:
    rng = np.random.default_rng(seed)
    entries = [CONV | {"channels": c, "filters": f} for c in channels for f in range(8, 129, 8)]
    return kfp.LatencyTable(content([e | {"us": FLOOR + work(e, tiles) * (1 + noise * rng.normal())} for e in entries]))


@pytest.mark.parametrize("tiles", [Tiles(32), Tiles(32, first=16), Tiles(16), Tiles(8)], ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_tiles_are_read_off_a_noisy_staircase(tiles, seed):
    assert staircase(tiles, 0.03, seed).tiles == tiles


def test_without_a_convolution_there_are_no_tiles():
    entry = {"kind": "FULLY_CONNECTED", "channels": 8, "filters": 8, "data_type": "float32", "us": 3.0}
    assert kfp.LatencyTable(content([entry])).tiles == Tiles(1)


def test_prices_at_measured_points_are_the_measured_ones_without_the_call():
    table = staircase(EIGHT)
    for channels, filters in itertools.product((16, 48, 64), (8, 64, 128)):
        expected = work(CONV | {"channels": channels, "filters": filters})
        assert table.price(FIELDS, channels, filters) == pytest.approx(expected)


def test_prices_rise_with_input_widths_whatever_the_noise():
    table = staircase(Tiles(16), noise=0.3)
    prices = np.array([[table.price(FIELDS, c, f) for f in range(1, 65)] for c in range(1, 65)])
    assert (np.diff(prices, axis=0) >= 0).all()


def test_part_of_a_step_may_cost_more_than_all_of_it():
    times = {8: 10, 16: 10, 24: 33, 32: 25, 40: 45, 48: 45, 56: 45, 64: 44}
    table = kfp.LatencyTable(
        content([CONV | {"channels": 16, "filters": f, "us": FLOOR + us} for f, us in times.items()])
    )
    assert table.tiles == Tiles(32, first=16)
    found = {f: table.price(FIELDS, 16, f) for f in (1, 9, 16, 17, 24, 25, 32, 33, 60, 64)}
    expected = {1: 10, 9: 10, 16: 10, 17: 33, 24: 33, 25: 25, 32: 25, 33: 45, 60: 44, 64: 44}
    assert found == pytest.approx(expected)


def test_prices_are_straight_lines_in_input_channels_and_stairs_in_output_channels():
    table = staircase(Tiles(32))
    prices = [table.price(FIELDS, channels, 64) for channels in range(16, 65)]
    np.testing.assert_allclose(np.diff(prices), prices[1] - prices[0])
    assert len({table.price(FIELDS, 64, filters) for filters in range(33, 65)}) == 1
    assert table.price(FIELDS, 64, 32) < table.price(FIELDS, 64, 33)


def test_a_fused_activation_is_free():
    table = staircase(EIGHT)
    assert table.price((*FIELDS, ("activation", "relu")), 16, 16) == table.price(FIELDS, 16, 16)


def test_a_time_below_that_of_a_call_is_none_at_all():
    assert kfp.LatencyTable(content([CONV | {"channels": 8, "filters": 8, "us": 0.1}])).price(FIELDS, 8, 8) == 0


@pytest.mark.parametrize(
    ("given", "channels", "filters"),
    [(FIELDS, 65, 8), (FIELDS, 8, 129), ((*FIELDS, ("strides", (2, 2))), 8, 8), (FIELDS[:-1], 8, 8)],
)
def test_what_was_not_measured_is_named(given, channels, filters):
    sentence = rf"no time for an operator with .*kind=CONV_2D.*, {channels} to {filters} channels. Measure the model"
    with pytest.raises(errors.InfeasibleBudgetError, match=sentence):
        staircase(EIGHT).price(given, channels, filters)


def test_a_saved_table_has_the_same_times(tmp_path):
    model = chain()
    table = table_of(model)
    table.save(tmp_path / "table.json")
    loaded = kfp.LatencyTable.load(tmp_path / "table.json")
    assert (loaded.device, loaded.threads, loaded.data_type) == (OTHER, 1, "float32")
    assert loaded.predict(model) == table.predict(model)
    assert loaded.digest == kfp.LatencyTable(json.loads((tmp_path / "table.json").read_text())).digest
    stairs = staircase(EIGHT, noise=0.1)
    stairs.save(tmp_path / "stairs.json")
    again = kfp.LatencyTable.load(tmp_path / "stairs.json")
    assert all(stairs.price(FIELDS, 20, filters) == again.price(FIELDS, 20, filters) for filters in range(1, 129))


ENTRY = CONV | {"channels": 8, "filters": 8, "us": 9.0}


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2},
        {"format": None},
        {"operators": []},
        {"operators": 3},
        {"operators": [ENTRY, ENTRY | {"data_type": "int8"}]},
        {"operators": [ENTRY | {"data_type": "int4"}]},
        {"operators": [ENTRY | {"data_type": None}]},
        {"operators": [{k: v for k, v in ENTRY.items() if k != "kind"}]},
        {"operators": [{k: v for k, v in ENTRY.items() if k != "us"}]},
        {"operators": [{k: v for k, v in ENTRY.items() if k != "data_type"}]},
        *({"operators": [ENTRY | {"us": us}]} for us in (math.nan, math.inf, -1.0, "9", True, None)),
        *({"operators": [ENTRY | {"channels": n}]} for n in ("8", 8.5, 0, -8, None, [8], True)),
        {"operators": [ENTRY | {"padding": {}}]},
        *({"call_floor_us": floor} for floor in (math.nan, -1, "x", None)),
        *({"settings": {"threads": threads}} for threads in (0, 1.5, math.inf, None)),
        {"settings": {}},
        {"machine": "x"},
    ],
    ids=str,
)
def test_a_damaged_table_is_refused(damage):
    with pytest.raises(errors.FileError, match=r"tflite_bench.time_operators, and .* in the way|holds one data type"):
        kfp.LatencyTable(content([ENTRY]) | damage)


@pytest.mark.parametrize("found", [[], None, 3, "x", {}])
def test_something_else_is_no_table(found, tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(found))
    with pytest.raises(errors.FileError, match="Time the operators again"):
        kfp.LatencyTable.load(tmp_path / "table.json")


@pytest.mark.parametrize("found", [b"", b"{", b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read_is_named(found, tmp_path):
    path = tmp_path / "table.json"
    if found is not None:
        path.write_bytes(found)
    with pytest.raises(errors.FileError, match=r"cannot read a latency table from '.*table.json'"):
        kfp.LatencyTable.load(path)


def test_a_table_says_what_it_is():
    assert repr(staircase(EIGHT)) == "LatencyTable('Cortex-A76', float32, 1 thread(s), 1 operators)"


# ------------------------------------------------------------------------------------------------- the cost


@pytest.mark.parametrize("name", ["residual_projection", "inception", "separable"])
def test_the_cost_is_the_sum_of_prices(name):
    model = ZOO[name]()
    graph, table = kfp.analyze(model), table_of(ZOO[name](), tiles=Tiles(1))
    cost = LatencyCost(graph, table)
    operators, widths, _ = list_operators(graph)
    keep = random_keep(graph, np.random.default_rng(1))
    at = widths.at(keep)
    prices = [round(1e3 * table.price(o.fields, at[o.channels], at[o.filters])) for o in operators]
    assert cost(keep) == sum(prices) + round(1e3 * FLOOR)
    assert sum(cost.by_layer(keep).values()) == sum(prices)
    assert list(cost.by_layer(keep)) == list(dict.fromkeys(o.layer for o in operators))
    assert table.predict(model) == pytest.approx(cost(cost.sizes) / 1e6, rel=1e-3)


@pytest.mark.parametrize("prices", [staircase, PaddedMacs], ids=["table", "target"])
def test_the_gradient_is_what_half_of_a_group_saves(prices):
    model = chain()
    prices = PaddedMacs("arm64") if prices is PaddedMacs else table_of(model, tiles=Tiles(16))
    cost, keep = LatencyCost(kfp.analyze(model), prices), np.array([1, 33, 48])
    found = cost.gradient(keep)
    for group, half in ((1, 16), (2, 24)):
        fewer = keep.copy()
        fewer[group] = half
        assert found[group] == pytest.approx((cost(keep) - cost(fewer)) / (keep[group] - half))
        assert found[group] > 0
    assert found[0] == 0


def slow_parts(model: keras.Model) -> kfp.LatencyTable:
    """A device that takes longer for 24 filters than for 32, and for 56 than for 64, whatever comes in."""
    entries = operators_to_measure(kfp.analyze(model))
    times = [1 + e["channels"] / 1e3 + {24: 50, 56: 70}.get(e["filters"], e["filters"]) for e in entries]
    return kfp.LatencyTable(content([e | {"us": FLOOR + us} for e, us in zip(entries, times, strict=True)]))


def test_widths_that_cost_more_than_wider_ones_are_not_worthwhile():
    model = chain((64, 64))
    cost = LatencyCost(kfp.analyze(model), slow_parts(model))
    assert cost.worthwhile(0, [8, 16, 24, 32, 40, 48, 56, 64]) == [8, 16, 32, 40, 48, 64]
    assert cost.worthwhile(0, [20, 24, 30, 64]) == [30, 64]


@pytest.mark.parametrize("keep", [0.35, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("method", ["l2", kfp.Method(criteria.L2(), allocators.Uniform()), "search"], ids=str)
def test_no_plan_has_such_widths(method, keep):
    model = chain((64, 64, 64, 64))
    if method == "search":
        method = kfp.Method(criteria.L2(), allocators.Search(beta=8, measure="error"))
    budget = kfp.LatencyBudget(keep=keep, table=slow_parts(model))
    plan = kfp.plan_pruning(model, method, budget, data=DATA, **QUIET)
    assert not {24, 56} & set(kept_counts(plan))
    cost = LatencyCost(kfp.analyze(model), budget.table)
    assert 0.8 * keep * cost(cost.sizes) < cost(np.array(kept_counts(plan))) <= keep * cost(cost.sizes)


@pytest.mark.parametrize("name", ["residual_identity", "dense_concat", "separable", "se_keepdims"])
def test_fewer_units_never_cost_more(name):
    model = ZOO[name]()
    graph, rng = kfp.analyze(model), np.random.default_rng(0)
    cost = LatencyCost(graph, table_of(model))
    for _ in range(20):
        keep = random_keep(graph, rng)
        fewer = np.maximum([g.least for g in graph.groups], keep - rng.integers(0, 4, len(keep)))
        assert cost(fewer) <= cost(keep)


# ------------------------------------------------------------------------------- targets in the place of a table


@pytest.mark.parametrize("name", [*MODELS, "unet", "decoder", "depthwise_chain"])
def test_padded_macs_in_steps_of_one_are_macs(name, monkeypatch):
    monkeypatch.setitem(TARGETS, "one", ONE)
    graph = kfp.analyze(ZOO[name]())
    padded, macs, rng = (
        LatencyCost(graph, PaddedMacs("one")),
        kfp.budgets.CostModel(graph).macs,
        np.random.default_rng(0),
    )
    for _ in range(5):
        keep = random_keep(graph, rng)
        assert padded(keep) == macs(keep)


@pytest.mark.parametrize("target", TARGETS)
def test_padded_macs_are_macs_where_widths_fit_and_stairs_elsewhere(target):
    inputs = keras.Input((6, 6, 32))
    y = layers.Conv2D(96, 3, padding="same")(layers.Conv2D(64, 3, padding="same")(inputs))
    graph = kfp.analyze(keras.Model(inputs, layers.Conv2D(32, 3)(y)))
    padded, macs, step = LatencyCost(graph, PaddedMacs(target)), kfp.budgets.CostModel(graph).macs, TARGETS[target].step
    for keep in ([64, 96], [32, 64]):
        assert padded(np.array(keep)) == macs(np.array(keep))
    # Input channels are rounded up in smaller steps than output channels, or not at all.
    assert macs(np.array([64, 65])) < padded(np.array([64, 65])) <= padded(np.array([64, 64 + step]))
    assert padded(np.array([64, 65])) > padded(np.array([64, 64]))


def test_padded_macs_round_input_channels_up_to_their_own_step():
    prices = PaddedMacs("arm64-dotprod-int8")
    assert prices.price((("kind", "FULLY_CONNECTED"),), 5, 17) == 8 * 32 / 1e3
    assert prices.price((("kind", "DEPTHWISE_CONV_2D"), ("kernel", (3, 3))), 17, 17) == 9 * 32 / 1e3
    assert prices.price((("kind", "ADD"),), 17, 17) == 0


# ---------------------------------------------------------------------------------------------- budgets

DATA = np.random.default_rng(0).normal(size=(24, 6, 6, 3)).astype("float32")
METHODS = {
    "l2": "l2",
    "global": kfp.Method(criteria.L2(), allocators.Global()),
    "two rounds": kfp.Method(criteria.L2(), allocators.Global(0.7), rounds=2),
    "pursuit": "pursuit",
}


def kept_counts(plan) -> list[int]:
    return [len(group["kept"]) for group in plan.groups]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("keep", [0.35, 0.7])
def test_a_budget_is_kept_and_spent_up_to_a_measured_width(method, keep):
    model = chain()
    table = table_of(model, tiles=Tiles(16))
    pruned, report = kfp.prune_model(
        model, method, kfp.LatencyBudget(keep=keep, table=table), data=DATA, return_report=True, **QUIET
    )
    cost, found = LatencyCost(kfp.analyze(model), table), np.array(kept_counts(report.plan))
    limit = keep * cost(cost.sizes)
    # Prices are rounded to nanoseconds.
    assert 1e6 * table.predict(pruned) <= limit + 10
    assert all(n % 8 == 0 for n in found)
    in_rounds = method in ("pursuit", METHODS["two rounds"])
    # What went in an earlier round does not come back.
    for group in () if in_rounds else range(len(found)):
        more = found.copy()
        more[group] = min(more[group] + 8, cost.sizes[group])
        assert cost(more) > limit or (more == found).all() or cost(found) >= 0.99 * limit
    assert f"{table!r} rises at widths that are multiples of 16." in report.notes


ALLOCATORS = {
    "sensitivity": allocators.Sensitivity((0.5,), measure="error"),
    "tolerance": allocators.Tolerance(measure="error"),
    "search": allocators.Search(beta=5, measure="error"),
    "evolution": allocators.Evolution(population=10, generations=1, measure="error"),
}


@pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
def test_every_allocator_keeps_the_budget_at_measured_widths(allocator):
    model = chain((32, 48))
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model, tiles=Tiles(16)))
    plan = kfp.plan_pruning(model, kfp.Method(criteria.L2(), allocator), budget, data=DATA, **QUIET)
    cost = LatencyCost(kfp.analyze(model), budget.table)
    assert cost(np.array(kept_counts(plan))) <= 0.5 * cost(cost.sizes)
    assert all(n % 8 == 0 for n in kept_counts(plan))


def test_training_between_rounds_keeps_the_budget():
    model, trained = chain((32, 48)), []
    budget = kfp.LatencyBudget(keep=0.4, table=table_of(model))
    pruned = kfp.prune_model(model, METHODS["two rounds"], budget, data=DATA, finetune=trained.append, **QUIET)
    assert len(trained) == 2
    assert budget.table.predict(pruned) <= 0.4 * budget.table.predict(model) + 1e-5


@pytest.mark.parametrize("method", ["l2", METHODS["two rounds"]])
def test_a_plan_keeps_the_budget_too(method):
    model = chain()
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model))
    plan = kfp.plan_pruning(model, method, budget, **QUIET)
    pruned = kfp.apply_plan(model, plan, compensate="none", **QUIET)
    assert budget.table.predict(pruned) <= 0.5 * budget.table.predict(model) + 1e-6
    assert plan.budget == repr(budget)


def test_milliseconds_and_fractions_agree():
    model = chain()
    table = table_of(model)
    milliseconds = 0.5 * LatencyCost(kfp.analyze(model), table)(np.array([64, 96, 48])) / 1e6
    plans = [
        kfp.plan_pruning(model, "l2", budget, **QUIET)
        for budget in (kfp.LatencyBudget(keep=0.5, table=table), kfp.LatencyBudget(ms=milliseconds, table=table))
    ]
    assert kept_counts(plans[0]) == kept_counts(plans[1]) != [64, 96, 48]


@pytest.mark.parametrize("given", [{"ms": 1e9}, {"ms": 1e308}, {"keep": 1}, {"keep": 1.0}])
def test_a_budget_of_the_whole_model_leaves_it_whole_and_measures_nothing(given):
    model = chain((16, 16))
    budget = kfp.LatencyBudget(**given, table=table_of(model, device=machine_info()["cpu"]))
    pruned, report = kfp.prune_model(model, "l2", budget, return_report=True, **QUIET)
    assert pruned.count_params() == model.count_params()
    assert not any("easured" in note for note in report.notes)


@pytest.mark.parametrize(("keep", "step"), [(0.6, 8), (0.01, 1)])
def test_widths_are_measured_ones_and_finer_only_where_those_are_too_much(keep, step):
    model = chain((64, 96, 64))
    table = table_of(model, tiles=Tiles(32))
    plan = kfp.plan_pruning(model, "l2", kfp.LatencyBudget(keep=keep, table="arm64" if step == 1 else table), **QUIET)
    assert math.gcd(*kept_counts(plan)) % step == 0
    # Between the ends of steps too: the next layer's inputs become fewer.
    assert any(n % 32 for n in kept_counts(plan))
    assert step == 8 or any(n % 8 for n in kept_counts(plan))


def test_channel_multiple_wins_over_measured_widths():
    model = chain()
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model, tiles=Tiles(32)))
    plan = kfp.plan_pruning(model, "l2", budget, channel_multiple=12, **QUIET)
    assert all(n % 12 == 0 or n == size for n, size in zip(kept_counts(plan), (64, 96, 48), strict=True))
    assert any(n % 32 for n in kept_counts(plan))
    with pytest.raises(errors.InfeasibleBudgetError, match="the smallest reachable is"):
        kfp.plan_pruning(model, "l2", replace(budget, keep=0.01), channel_multiple=12, **QUIET)


def test_a_float_counts_multiply_accumulates_as_ever():
    model = chain()
    plans = [kfp.plan_pruning(model, "l2", budget, **QUIET) for budget in (0.5, kfp.MacsBudget(0.5))]
    assert kept_counts(plans[0]) == kept_counts(plans[1])
    assert any(n % 8 for n in kept_counts(plans[0]))
    assert plans[0].budget == "MacsBudget(keep=0.5)"
    filters = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(0.4), **QUIET)
    assert kept_counts(filters) == [26, 38, 19]


def test_layers_of_other_names_stay_whole_under_a_latency_budget():
    model = chain()
    budget = kfp.LatencyBudget(keep=0.6, table=table_of(model))
    plan = kfp.plan_pruning(model, "l2", budget, include="conv1", **QUIET)
    assert [n for n, size in zip(kept_counts(plan), (64, 96, 48), strict=True) if n < size] == [kept_counts(plan)[1]]


def test_another_table_is_another_search(tmp_path):
    """A search that was broken off is taken up again only for the same table and tiles."""
    from keras_filterprune.methods import as_method
    from keras_filterprune.pruning.options import Options
    from keras_filterprune.pruning.planner import Planner
    from keras_filterprune.pruning.task import Task
    from keras_filterprune.rebuild.outcome import Run

    model = chain((32, 32))

    def key(table, **options) -> str:
        budget = kfp.LatencyBudget(keep=options.pop("keep", 0.5), table=table)
        recipe, costs = as_method("l2", 0, False), kfp.budgets.CostModel(kfp.analyze(model))
        checked = Options(None, None, 1, options.get("channel_multiple", 1))
        return Planner(Task(model, costs, recipe, budget, checked, Run(progress=False))).problem().key

    table = table_of(model)
    assert key(table) == key(kfp.LatencyTable(json.loads(json.dumps(table._content)))) == key(table, keep=0.6)
    keys = [key(table), key(table_of(model, noise=0.01)), key("arm64"), key("arm32"), key(table, channel_multiple=4)]
    assert len({*keys, key(table, keep=0.031)}) == 6


@pytest.mark.parametrize("preactivation", [False, True])
def test_prune_layers_keeps_a_latency_budget(preactivation):
    model = blocks(preactivation)
    table = table_of(model)
    budget = kfp.LatencyBudget(keep=0.75, table=table)
    small, report = kfp.prune_layers(model, budget=budget, return_report=True, **QUIET)
    assert 1 <= len(report.removed) < 3
    assert table.predict(small) <= 0.75 * table.predict(model) + 1e-6
    assert report.notes == [f"Predicted for {OTHER}, and not measured: this is {machine_info()['cpu']}."]
    with pytest.raises(errors.InfeasibleBudgetError, match="without all 3 units"):
        kfp.prune_layers(model, budget=replace(budget, keep=0.01), **QUIET)


@pytest.mark.parametrize("given", [0, 1.5, True, -0.5, math.nan, math.inf, "0.5", [0.5]])
def test_a_fraction_that_is_none_is_refused(given):
    with pytest.raises(
        errors.InfeasibleBudgetError, match=r"keep is the fraction that is kept, in \(0, 1\]. Received: keep="
    ):
        kfp.LatencyBudget(keep=given, table="arm64")


@pytest.mark.parametrize("given", [0, True, -3, math.nan, math.inf, "5"])
def test_milliseconds_that_are_none_are_refused(given):
    with pytest.raises(
        errors.InfeasibleBudgetError, match=r"ms is a number of milliseconds, above 0, or None. Received: ms="
    ):
        kfp.LatencyBudget(ms=given, table=staircase(EIGHT))


@pytest.mark.parametrize("given", [{}, {"ms": 1, "keep": 0.5}])
def test_either_milliseconds_or_a_fraction(given):
    with pytest.raises(errors.InfeasibleBudgetError, match="expects either ms= or keep="):
        kfp.LatencyBudget(**given, table="arm64")


@pytest.mark.parametrize("table", [None, 3, {"format": 1}])
def test_a_budget_takes_a_table(table):
    with pytest.raises(errors.InvalidValueError, match=r"table is a LatencyTable .* Received: table="):
        kfp.LatencyBudget(keep=0.5, table=table)


def test_a_target_has_to_be_known_and_has_no_milliseconds():
    with pytest.raises(errors.UnknownNameError, match=re.escape("Did you mean 'arm64'?")):
        kfp.LatencyBudget(keep=0.5, table="arm46")
    with pytest.raises(
        errors.InfeasibleBudgetError, match="counts padded MACs, which are not milliseconds: give keep="
    ):
        kfp.LatencyBudget(ms=5, table="arm64")
    assert kfp.LatencyBudget(keep=np.float32(0.5), table="arm64").unit == "padded MACs"
    assert kfp.LatencyBudget(keep=0.5, table=staircase(EIGHT)).unit == "ns"


def test_a_budget_below_the_reachable_minimum_says_what_is_left():
    model = chain()
    budget = kfp.LatencyBudget(keep=0.5, table=table_of(model))
    sentence = (
        r"asks for at most [\d,]+ ns; the smallest reachable is [\d,]+ \(.* What is left is mostly in layers 'conv0'"
    )
    with pytest.raises(errors.InfeasibleBudgetError, match=sentence):
        kfp.prune_model(model, "l2", replace(budget, keep=0.001), **QUIET)
    with pytest.raises(errors.InfeasibleBudgetError, match="padded MACs"):
        kfp.prune_model(model, "l2", kfp.LatencyBudget(keep=0.001, table="arm64"), **QUIET)


def test_the_table_of_another_model_is_refused_before_anything_is_cut():
    with pytest.raises(errors.InfeasibleBudgetError, match=r"has no time for an operator with .*kind=CONV_2D"):
        kfp.prune_model(chain(), "l2", kfp.LatencyBudget(keep=0.5, table=table_of(chain(side=5))), **QUIET)


# ------------------------------------------------------------------------------------------- on this computer


def test_a_measured_table_prunes_to_a_model_that_is_measured_faster(tmp_path):
    model = chain((32, 48), side=24)
    table = kfp.measure_latency(model, tmp_path / "table.json", **QUIET)
    assert table.device == machine_info()["cpu"]
    assert kfp.LatencyTable.load(tmp_path / "table.json").digest == table.digest
    budget = kfp.LatencyBudget(keep=0.5, table=table)
    pruned, report = kfp.prune_model(model, "l2", budget, return_report=True, **QUIET)
    assert table.predict(pruned) <= 0.5 * table.predict(model)
    note = next(note for note in report.notes if note.startswith("Measured latency: "))
    ratio, predicted = map(float, re.search(r"\(([\d.]+)x\); ([\d.]+)x was predicted", note).groups())
    assert ratio <= 1 and predicted <= 0.5


def test_without_verification_nothing_is_measured():
    model = chain((16, 16))
    budget = kfp.LatencyBudget(keep=0.6, table=table_of(model, device=machine_info()["cpu"]))
    _, report = kfp.prune_model(model, "l2", budget, verify=False, return_report=True, **QUIET)
    assert not any("easured" in note for note in report.notes)


def test_another_device_is_not_measured_here():
    model = chain((16, 16))
    for table in (table_of(model), "arm64"):
        budget = kfp.LatencyBudget(keep=0.6, table=table)
        _, report = kfp.prune_model(model, "l2", budget, return_report=True, **QUIET)
        name = table if table == "arm64" else OTHER
        sentence = f"Predicted for {name}, and not measured: this is {machine_info()['cpu']}."
        assert sentence in report.notes


def test_a_model_that_is_not_faster_is_refused():
    narrow, wide = chain((8, 8), side=16), chain((96, 96), side=16)
    table = table_of(narrow, wide, device=machine_info()["cpu"])
    with pytest.raises(
        errors.InfeasibleBudgetError, match=r"the pruned model is not faster: measured .* ms dense, .* pruned"
    ):
        require_faster(narrow, wide, table)


def test_an_int8_table_is_measured_with_int8_files(monkeypatch):
    benchmark, bytes_of_files = tflite_bench.benchmark, []

    def watched(files, **settings):
        bytes_of_files.extend(file.stat().st_size for file in files)
        return benchmark(files, **settings)

    model = chain((64, 64), side=12)
    table = kfp.measure_latency(model, quantize="int8", **QUIET)
    assert table.data_type == "int8"
    monkeypatch.setattr(tflite_bench, "benchmark", watched)
    note = require_faster(model, chain((8, 8), side=12), table)
    assert note.startswith("Measured latency: ")
    assert bytes_of_files[0] < 2 * model.count_params()


def test_a_model_without_known_operators_cannot_be_measured():
    with pytest.raises(errors.UnsupportedModelError, match="has no operator whose time could be measured"):
        kfp.measure_latency(sequential(layers.Conv1D(4, 3), shape=(8, 3)), **QUIET)
