"""tflite_bench: pinned threads, fresh processes, comparisons with an interval, profiles of operators."""

import dataclasses
import json
import os

import numpy as np
import pytest
from scipy import stats

from tflite_bench import BenchError, Operator, bench, benchmark, compare, comparison, operator_model, profile, profiling
from tflite_bench.__main__ import main
from tflite_bench.cold import measure_cold
from tflite_bench.fresh import run_fresh
from tflite_bench.pinning import choose_cores, pinned
from tflite_bench.runner import Runner
from tflite_bench.runtimes import RUNTIMES

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads can be pinned on Linux only")
two_cores = pytest.mark.skipif(choose_cores(2)[0] == [], reason="needs two cores")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of one operator each: a narrow and a wide convolution, one of XNNPACK's gaps, and 16 MB of weights."""
    operators = {
        "narrow": Operator("CONV_2D", 8, (16, 16), kernel=(3, 3)),
        "wide": Operator("CONV_2D", 96, (16, 16), kernel=(3, 3)),
        "gap": Operator("HARD_SWISH", 64, (16, 16), data_type="int8"),
        "heavy": Operator("FULLY_CONNECTED", 2048, filters=2048),
    }
    folder = tmp_path_factory.mktemp("files")
    for name, operator in operators.items():
        (folder / f"{name}.tflite").write_bytes(operator_model(operator))
    return {name: folder / f"{name}.tflite" for name in operators}


# ------------------------------------------------------------------------------------------------------- pinning


@two_cores
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_thread_gets_a_core_of_its_own_and_this_thread_is_released(files, runtime):
    allowed = os.sched_getaffinity(0)
    runners = [Runner(files["wide"], 2, runtime=runtime), Runner(files["wide"], 2, runtime=runtime)]
    cores, note = choose_cores(2)
    assert note is None
    assert len(set(cores)) == 2
    assert set(cores) <= allowed
    assert [len(runner.worker_ids) for runner in runners] == [1, 1]
    with pytest.raises(ZeroDivisionError), pinned(cores, [runner.worker_ids for runner in runners]):
        assert os.sched_getaffinity(0) == {cores[0]}
        assert all(os.sched_getaffinity(runner.worker_ids[0]) == {cores[1]} for runner in runners)
        _ = 1 / 0
    assert os.sched_getaffinity(0) == allowed


@linux
@pytest.mark.parametrize("pin", [True, False])
def test_runs_are_timed_on_the_reported_core(files, monkeypatch, pin):
    interleaved, seen = bench.run_interleaved, []

    def watched(*arguments):
        seen.append(os.sched_getaffinity(0))
        return interleaved(*arguments)

    monkeypatch.setattr(bench, "run_interleaved", watched)
    report = benchmark([files["narrow"]], runs=2, rounds=1, cold=False, pin=pin)
    assert seen == [set(report.settings["cores"] or os.sched_getaffinity(0))]
    assert (report.settings["cores"] is None) is not pin


@linux
def test_too_few_cores_are_said_not_hidden(files):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        report = benchmark([files["narrow"]], threads=2, runs=2, rounds=1, cold=False)
        verdict = compare(files["narrow"], files["narrow"], threads=2, runs=3, rounds=3)
    finally:
        os.sched_setaffinity(0, allowed)
    sentence = "threads are not pinned to cores: 2 threads, 1 core(s) for this process"
    assert report.settings["cores"] is None
    assert report.notes[0] == verdict.notes[0] == sentence


# ------------------------------------------------------------------------------------------------ fresh processes


@linux
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_peak_memory_is_that_of_the_file_alone(files, runtime):
    narrow, heavy = (measure_cold(files[name], 1, runtime) for name in ("narrow", "heavy"))
    weights_kb = 2048 * 2048 * 4 / 1024
    assert weights_kb < heavy.peak_rss_kb - narrow.peak_rss_kb < 3 * weights_kb
    # This process holds TensorFlow, another one LiteRT alone.
    assert 0 < narrow.peak_rss_kb < 20_000
    assert narrow.load_ms > 0


def test_a_failing_process_is_an_error(tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model")
    with pytest.raises(BenchError, match=r"broken.tflite: the process .*child_cold ended with 1: ValueError"):
        measure_cold(broken, 1, "interpreter")


# ----------------------------------------------------------------------------------------------------- comparison


def test_verdicts(files):
    narrow, wide = files["narrow"], files["wide"]
    slower, faster = compare(narrow, wide, runs=15, rounds=5), compare(wide, narrow, runs=15, rounds=5)
    assert (slower.verdict, faster.verdict) == ("slower", "faster")
    # 144 times the arithmetic: far above what a busy computer can blur.
    assert faster.ratio < 0.3 < 3 < slower.ratio
    assert str(faster).startswith(f"narrow.tflite against wide.tflite: faster, {faster.ratio:.3f} times the time (95 %")
    between = dataclasses.replace(slower, ratio=1.01, ratio_low=0.99, ratio_high=1.03)
    assert between.verdict == "no difference shown"


def test_the_interval_is_students(files):
    found = compare(files["narrow"], files["narrow"], runs=12, rounds=6)
    assert len(found.round_ratios) == 6
    oracle = stats.ttest_1samp(np.log(found.round_ratios), 0).confidence_interval(0.95)
    assert found.ratio == pytest.approx(stats.gmean(found.round_ratios))
    assert (found.ratio_low, found.ratio_high) == pytest.approx((np.exp(oracle.low), np.exp(oracle.high)))


def test_each_round_loads_both_files_in_turning_order(files, monkeypatch):
    loaded, timed = [], []

    class Logged(Runner):
        def __init__(self, path, *arguments, **settings):
            super().__init__(path, *arguments, **settings)
            loaded.append(self.path.stem)

        def time(self, runs):
            timed.append((self.path.stem, runs))
            return super().time(runs)

    monkeypatch.setattr(comparison, "Runner", Logged)
    compare(files["narrow"], files["gap"], runs=10, rounds=4)
    assert loaded[2:] == ["gap", "narrow", "narrow", "gap"] * 2
    assert [name for name, _ in timed] == loaded[2:]
    assert [runs for name, runs in timed if name == "gap"] == [2, 3, 2, 3]


def test_compare_on_the_command_line(files, tmp_path, capsys):
    target = tmp_path / "out.json"
    arguments = ["compare", files["wide"], files["narrow"], "--runs", "9", "--rounds", "3", "--json", target]
    assert main([*map(os.fspath, arguments)]) == 0
    saved = json.loads(target.read_text())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("narrow.tflite against wide.tflite: ")
    assert f": {saved['verdict']}, {saved['ratio']:.3f} times the time" in line
    assert saved["format"] == 1
    assert saved["ratio_low"] <= saved["ratio"] <= saved["ratio_high"]


# -------------------------------------------------------------------------------------------------------- profile


def test_a_profile_tells_what_xnnpack_leaves_to_litert(files):
    (delegated,), (own,) = (profile(files[name], runs=20).operators for name in ("wide", "gap"))
    assert (delegated.operator, delegated.delegated) == ("Convolution (NHWC, F32) IGEMM", True)
    assert (own.operator, own.delegated) == ("HARD_SWISH", False)
    assert delegated.share == own.share == 1.0


def test_a_profile_has_a_row_per_operator_in_order(tmp_path):
    import keras

    layers = keras.layers
    path = tmp_path / "net.tflite"
    net = [keras.Input((24, 24, 3)), layers.Conv2D(96, 3), layers.MaxPooling2D(2), layers.Conv2D(96, 3)]
    keras.Sequential(net).export(path, format="litert", verbose=False)
    found = profile(path, threads=2, runs=30)
    names = [row.operator for row in found.operators]
    assert ["Convolution" in name for name in names] == [True, False, True]
    assert "Pooling" in names[1]
    assert sum(row.share for row in found.operators) == pytest.approx(1)
    first, pooling, second = found.operators
    # 32 times the weights on a quarter of the places; a pool computes next to nothing.
    assert second.ms > first.ms > 0
    assert second.ms > pooling.ms
    assert found.sum_ms == pytest.approx(sum(row.ms for row in found.operators))
    assert found.whole_ms > 0


def test_profiles_on_the_command_line(files, tmp_path, capsys):
    target = tmp_path / "out.json"
    arguments = [files["wide"], files["gap"], "--profile", "--runs", "5", "--json", target]
    assert main([*map(os.fspath, arguments)]) == 0
    shown = capsys.readouterr().out
    assert "XNNPACK" in shown
    assert "HARD_SWISH" in shown
    saved = json.loads(target.read_text())
    assert [entry["operators"][0]["delegated"] for entry in saved["profiles"]] == [True, False]


def test_a_library_that_cannot_be_profiled_is_named(files, tmp_path, monkeypatch):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model")
    # The file is good, the process of the profile fails all the same.
    monkeypatch.setattr(profiling, "run_fresh", lambda module, path, *settings: run_fresh(module, broken, *settings))
    with pytest.raises(BenchError, match=r"could not be profiled; .* known to work with ai-edge-litert 2.3.0, this is"):
        profile(files["narrow"])


def test_bad_settings_and_files(tmp_path):
    with pytest.raises(BenchError, match=r"gone.tflite: no such file"):
        profile(tmp_path / "gone.tflite")
    with pytest.raises(BenchError, match=r"runs is an integer, at least 1\. Received: runs=0\."):
        profile(tmp_path / "gone.tflite", runs=0)


# ----------------------------------------------------------------------------------------------------------- plot


def test_a_plot_of_what_a_phone_gives(files, tmp_path):
    report = benchmark([files["narrow"], files["wide"]], runs=3, rounds=1, cold=False)
    bare = [dataclasses.replace(timing, p10_ms=None, p50_ms=None, p90_ms=None) for timing in report.models]
    target = tmp_path / "latency.svg"
    target.write_text("old")
    dataclasses.replace(report, models=tuple(bare)).plot(target)
    assert "</svg>" in target.read_text()
    assert os.listdir(tmp_path) == ["latency.svg"]


def test_notes_and_short_operators_are_in_the_table_of_a_profile(files):
    found = profile(files["narrow"], runs=3)
    row = dataclasses.replace(found.operators[0], ms=0.0)
    table = dataclasses.replace(found, operators=(found.operators[0], row, row), notes=("Beware.",)).table()
    assert table.row_count == 2
    assert str(table.caption) == "- Beware."
