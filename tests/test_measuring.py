"""Latency measured on this computer: a model that is predicted faster is measured so, or refused."""

from __future__ import annotations

import re

import pytest
from builders import chain
from keras import layers
from latency_tables import OTHER, QUIET, sequential, table_of

import keras_filterprune as kfp
import tflite_bench
from keras_filterprune import errors
from keras_filterprune.measuring import require_faster
from tflite_bench.machine import machine_info


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
