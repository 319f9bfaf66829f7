"""The emulated Arm core: what it counts, that it computes what this computer does, what is said where it is missing."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from io import StringIO
from pathlib import Path

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from rich.console import Console
from zoo import randomise

import keras_filterprune as kfp
from keras_filterprune import errors
from keras_filterprune.cost import Tiles
from keras_filterprune.measuring import require_faster
from tflite_bench import BenchError, Operator, operator_model
from tflite_bench.arm import CORES, Emulator, core_of, count_instructions, count_operators, setup
from tflite_bench.arm.command import main
from tflite_bench.arm.prepare import prepared_folder

QUIET = {"progress": False}


def why_missing() -> str:
    try:
        prepared_folder()
    except BenchError as error:
        return str(error)
    return ""


emulated = pytest.mark.skipif(bool(why_missing()), reason=why_missing())


def net(width: int) -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(x)))
    y = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(width, 1)(x)))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([x, y])))
    return randomise(keras.Model(inputs, layers.Dense(5)(x)))


def two_ports() -> keras.Model:
    """Two inputs and two outputs, of which the first ones are not the first in the file."""
    image, vector = keras.Input((8, 8, 3), name="z"), keras.Input((4,), name="a")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    return randomise(keras.Model([image, vector], [layers.Add()([x, vector]), layers.Multiply()([x, vector])]))


@pytest.fixture(scope="module")
def model():
    return net(48)


@pytest.fixture(scope="module")
def files(tmp_path_factory, model):
    """{name: path} of networks and of single operators."""
    folder = tmp_path_factory.mktemp("files")
    images = np.random.default_rng(0).standard_normal((8, *model.input_shape[1:])).astype("float32")
    kfp.export_tflite(model, folder / "float32.tflite", verify=False)
    kfp.export_tflite(model, folder / "int8.tflite", quantize="int8", data=images, verify=False)
    kfp.export_tflite(two_ports(), folder / "two.tflite", verify=False)
    for width in (7, 8, 32):
        for data_type in ("float32", "int8"):
            content = operator_model(Operator("CONV_2D", 32, (8, 8), width, (3, 3), data_type=data_type))
            (folder / f"conv{width}_{data_type}.tflite").write_bytes(content)
    return {path.stem: path for path in folder.glob("*.tflite")}


def instructions(*paths, cpu="cortex-a76") -> list[int]:
    return [model.instructions for model in count_instructions(paths, cpu=cpu).models]


def on_this_computer(path, inputs) -> list[np.ndarray]:
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def random_inputs(path) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    details = Interpreter(str(path)).get_input_details()
    return [
        rng.standard_normal(d["shape"]).astype("float32")
        if d["dtype"] == np.float32
        else rng.integers(-128, 128, d["shape"]).astype(d["dtype"])
        for d in details
    ]


# ------------------------------------------------------------------------------------------------------- counting


@emulated
def test_counts_do_not_vary(files):
    counts = np.array([instructions(files["float32"], files["int8"]) for _ in range(5)])
    assert (np.ptp(counts, axis=0) < 0.005 * counts.min(axis=0)).all()


@emulated
def test_an_instruction_multiplies_up_to_four_float32_numbers(files):
    macs = 8 * 8 * 32 * 3 * 3 * 32
    assert macs / 4 < instructions(files["conv32_float32"])[0] < macs


@emulated
def test_a_count_does_not_depend_on_what_ran_before(files):
    alone, after = instructions(files["int8"]), instructions(files["two"], files["float32"], files["int8"])
    assert after[2] == pytest.approx(alone[0], rel=0.005)


@emulated
def test_wider_is_more_and_ratios_refer_to_the_first(files):
    first, second = count_instructions([files["conv8_float32"], files["conv32_float32"]]).models
    assert second.instructions > 2 * first.instructions
    assert (first.ratio_to_first, second.ratio_to_first) == (1, second.instructions / first.instructions)
    assert second.bytes == files["conv32_float32"].stat().st_size


@emulated
def test_seven_filters_cost_more_than_eight_in_float32_only(files):
    seven, eight = instructions(files["conv7_float32"], files["conv8_float32"])
    assert seven > 1.5 * eight
    seven, eight = instructions(files["conv7_int8"], files["conv8_int8"])
    assert seven < 1.1 * eight


@emulated
def test_the_core_chooses_the_kernels(files):
    old, new = (instructions(files["conv8_int8"], cpu=cpu)[0] for cpu in ("cortex-a72", "cortex-a76"))
    assert old > 1.3 * new


@emulated
def test_an_open_batch_dimension_counts_as_one(files, tmp_path):
    content = schema.ModelT.InitFromPackedBuf(files["conv8_int8"].read_bytes())
    for number in (0, 3):
        tensor = content.subgraphs[0].tensors[number]
        tensor.shapeSignature, tensor.hasRank = [-1, *tensor.shape[1:]], True
    builder = flatbuffers.Builder(1024)
    builder.Finish(content.Pack(builder), file_identifier=b"TFL3")
    opened = tmp_path / "open.tflite"
    opened.write_bytes(builder.Output())
    assert Interpreter(str(opened)).get_input_details()[0]["shape_signature"][0] == -1
    counts = instructions(files["conv8_int8"], opened)
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@emulated
def test_operators_count_as_their_files_do(files):
    wanted = [Operator("CONV_2D", 32, (8, 8), width, (3, 3)) for width in (8, 7, 8)]
    report = count_operators(wanted)
    assert [entry.operator for entry in report.operators] == wanted[:2]
    counts = [1e3 * entry.kilo_instructions for entry in report.operators]
    assert counts == pytest.approx(instructions(files["conv8_float32"], files["conv7_float32"]), rel=0.005)
    assert 0 < 1e3 * report.call_floor_kilo_instructions < min(counts) / 2


@emulated
def test_more_operators_than_run_at_a_time_are_counted_in_order():
    wanted = [Operator("RELU", channels, (64, 4)) for channels in range(8, 8 * 67, 8)]
    counts = [entry.kilo_instructions for entry in count_operators(wanted, cpu="cortex-a53").operators]
    assert (np.diff(counts) > 0).all()


# --------------------------------------------------------------------------------------------------------- parity


@emulated
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72", "cortex-a76"])
@pytest.mark.parametrize("name", ["int8", "float32", "conv7_int8", "conv7_float32", "two"])
def test_outputs_are_those_of_this_computer(files, name, cpu):
    inputs = random_inputs(files[name])
    expected, found = on_this_computer(files[name], inputs), Emulator(cpu).run(files[name], inputs)
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.dtype == theirs.dtype and len(np.unique(ours)) > 1
        if "int8" in name:
            np.testing.assert_array_equal(theirs, ours)
        else:
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6 * np.abs(ours).max())


@emulated
def test_inputs_that_do_not_fit_are_refused(files):
    with pytest.raises(
        BenchError, match=r"float32.tflite: inputs are float32 \(1, 8, 8, 3\)\. Received: float32 \(1, 3\)\."
    ):
        Emulator("cortex-a76").run(files["float32"], [np.zeros((1, 3), "float32")])


# --------------------------------------------------------------------------------------------------------- tables


@emulated
def test_a_budget_in_instructions_is_met_and_counted(model, files, tmp_path):
    measured = kfp.measure_latency(model, tmp_path / "table.json", device="cortex-a76", **QUIET)
    table = kfp.LatencyTable.load(tmp_path / "table.json")
    assert (table.device, table.unit) == ("emulated cortex-a76", "million instructions")
    assert table.digest == measured.digest and table.tiles == Tiles(8)
    assert 1e6 * table.predict(model) == pytest.approx(instructions(files["float32"])[0], rel=0.03)
    budget = kfp.LatencyBudget(keep=0.6, table=table)
    small, report = kfp.prune_model(model, "l2", budget, compensate="none", return_report=True, **QUIET)
    said = re.fullmatch(r"Measured instructions: .* million pruned \((.*)x\); (.*)x was predicted\.", report.notes[-1])
    assert float(said[2]) <= 0.6
    assert float(said[1]) == pytest.approx(float(said[2]), abs=0.03)
    with pytest.raises(errors.InfeasibleBudgetError, match=r"[\d,]+ instructions; the smallest reachable is"):
        kfp.prune_model(model, "l2", kfp.LatencyBudget(keep=0.001, table=table), **QUIET)
    with pytest.raises(errors.InfeasibleBudgetError, match=r"not faster: measured .* million instructions dense"):
        require_faster(small, model, table)


OPERATOR = {"kind": "CONV_2D", "channels": 8, "filters": 8, "data_type": "float32", "kilo_instructions": 9.0}
COUNTED = {
    "format": 1,
    "unit": "kilo_instructions",
    "machine": {"cpu": "emulated cortex-a72"},
    "settings": {"threads": 1},
    "call_floor_kilo_instructions": 0.5,
    "operators": [OPERATOR],
}


def test_milliseconds_and_a_table_of_instructions_do_not_go_together():
    with pytest.raises(
        errors.InfeasibleBudgetError, match="counts instructions, which are not milliseconds: give keep="
    ):
        kfp.LatencyBudget(ms=3, table=kfp.LatencyTable(COUNTED))
    assert kfp.LatencyBudget(keep=0.5, table=kfp.LatencyTable(COUNTED)).unit == "instructions"


@pytest.mark.parametrize("damage", [{"unit": "us"}, {"unit": "bananas"}, {"unit": []}, {"unit": None}])
def test_a_table_says_what_it_counts(damage):
    with pytest.raises(errors.FileError, match="stands in the way"):
        kfp.LatencyTable(COUNTED | damage)


def test_an_emulated_core_has_one_thread():
    with pytest.raises(errors.InvalidValueError, match=r"one thread.*device='cortex-a76', threads=2"):
        kfp.measure_latency(net(8), device="cortex-a76", threads=2, **QUIET)


def test_without_the_emulator_nothing_is_claimed(monkeypatch, tmp_path):
    monkeypatch.setenv("TFLITE_BENCH_CACHE", str(tmp_path))
    note = require_faster(net(16), net(8), kfp.LatencyTable(COUNTED))
    assert note.startswith("Instructions are predicted for emulated cortex-a72 and were not counted: the emulated Arm")


def test_devices_and_cores():
    assert core_of("emulated cortex-a72") == "cortex-a72"
    assert [core_of(name) for name in ("cortex-a72", "emulated 6502", "emulated ", "AMD EPYC")] == [None] * 4


# ----------------------------------------------------------------------------------------------- setup and errors


def test_a_missing_emulator_is_named_with_its_package(monkeypatch, tmp_path, files, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    for attempt in (setup, lambda: count_instructions([files["int8"]]), lambda: count_operators([Operator("RELU", 1)])):
        with pytest.raises(BenchError, match=r"needs qemu-aarch64, gcc, aarch64-linux-gnu-gcc, not found on PATH: "):
            attempt()
    assert main(["setup"]) == 2
    install = "apt-get install qemu-user gcc libc6-dev g++-aarch64-linux-gnu; then python -m tflite_bench arm setup"
    assert capsys.readouterr().err.strip().endswith(install)


with_qemu = pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="apt-get install qemu-user")


@with_qemu
def test_missing_compilers_are_named_with_their_packages(monkeypatch, tmp_path):
    (tmp_path / "qemu-aarch64").symlink_to(shutil.which("qemu-aarch64"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TFLITE_BENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        BenchError, match=r"needs gcc, aarch64-linux-gnu-gcc, not .*install gcc libc6-dev g\+\+-aarch64-linux-gnu; then"
    ):
        setup()


@with_qemu
def test_what_was_not_set_up_says_how(monkeypatch, tmp_path, files):
    monkeypatch.setenv("TFLITE_BENCH_CACHE", str(tmp_path))
    with pytest.raises(BenchError, match=r"not set up; python -m tflite_bench arm setup does that$"):
        count_instructions([files["int8"]])


@emulated
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="apt-get install g++-aarch64-linux-gnu")
def test_a_failed_download_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("TFLITE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BenchError, match=r"cannot get ai-edge-litert==.* for Arm from PyPI"):
        setup()
    assert list(tmp_path.iterdir()) == []


@emulated
def test_setup_is_done_once():
    before = {path: path.stat().st_mtime_ns for path in prepared_folder().rglob("*")}
    assert setup() == prepared_folder()
    assert {path: path.stat().st_mtime_ns for path in prepared_folder().rglob("*")} == before


@emulated
def test_a_file_that_cannot_run_is_named(files, tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"nothing of the kind")
    with pytest.raises(BenchError, match=r"bad.tflite: LiteRT cannot run this file on emulated cortex-a76 \(.*status"):
        count_instructions([files["int8"], bad, files["float32"]])


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(BenchError, match=r"at least one \.tflite file\. Received: paths='a\.tflite'\."):
        count_instructions("a.tflite")
    with pytest.raises(BenchError, match=r"none.tflite: no such file"):
        count_instructions([tmp_path / "none.tflite"])
    with pytest.raises(
        BenchError, match=r"cpu is one of cortex-a53, .*\. Received: cpu='cortex-a77'\. Did you mean 'cortex-a7"
    ):
        Emulator("cortex-a77")
    with pytest.raises(BenchError, match=r"at least one Operator, and of nothing else\. Received: operators=\[\]"):
        count_operators([])


@emulated
def test_no_file_takes_more_instructions_than_are_stored():
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "benchmarks" / "instructions.py"))
    stored, now = json.loads(benchmark["BASELINE"].read_text(encoding="utf-8")), benchmark["count"]()
    assert now["instructions"].keys() == stored["instructions"].keys()
    more = {name: count / stored["instructions"][name] for name, count in now["instructions"].items()}
    assert max(more.values()) < 1.01, (
        f"times the stored count: {more}. Stored with {stored['versions']}, here {now['versions']}. "
        "If it is meant to be: python examples/benchmarks/instructions.py"
    )


# ------------------------------------------------------------------------------------------- reports and commands


@emulated
def test_the_command_line_counts(files, tmp_path, capsys):
    path = tmp_path / "report.json"
    assert (
        main(["count", str(files["conv7_int8"]), str(files["conv8_int8"]), "--cpu", CORES[0], "--json", str(path)]) == 0
    )
    assert "not time" in " ".join(capsys.readouterr().out.split())
    saved = json.loads(path.read_text())
    assert saved["unit"] == "instructions" and saved["machine"]["cpu"] == f"emulated {CORES[0]}"
    assert saved["machine"]["emulator"].startswith("qemu ") and saved["machine"]["measured"] == "instructions, not time"
    assert [model["path"] for model in saved["models"]] == [str(files["conv7_int8"]), str(files["conv8_int8"])]


@emulated
def test_the_command_line_refuses_in_one_line(files, capsys):
    assert main(["count", str(files["int8"]), "--cpu", "z80"]) == 2
    assert main(["count", str(files["int8"]), "--json", "/nowhere/x.json"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@emulated
def test_a_report_reads_well(files):
    report = count_instructions([files["conv8_int8"], files["conv32_int8"]], cpu="cortex-a72")
    console = Console(width=100, record=True, file=StringIO())
    console.print(report.table())
    text = console.export_text()
    assert "emulated cortex-a72 (qemu " in text and "instructions per inference, not time" in text
    assert f"{report.models[1].instructions / 1e6:.3f}" in text
