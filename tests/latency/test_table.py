"""Tables: what is measured for them prices all that pruning can reach, prices are read off as measured."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from builders import chain
from latency_tables import CONV, EIGHT, FLOOR, MODELS, OTHER, blocks, content, random_keep, staircase, table_of, work
from zoo import ZOO

import keras_filterprune as kfp
import tflite_bench
from keras_filterprune import errors
from keras_filterprune.cost import Tiles
from keras_filterprune.latency import operators_to_measure
from keras_filterprune.latency.budget import LatencyCost
from keras_filterprune.latency.operators import list_operators

# ----------------------------------------------------------------------------------------------------- what is measured


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


# ------------------------------------------------------------------------------------------------------------ the table


FIELDS = tuple((name, value) for name, value in CONV.items() if name != "data_type")


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
