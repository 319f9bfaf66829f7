"""tflite_bench: faster files measure as faster, rounds are interleaved, bad input is one clear line."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from tflite_bench import BenchError, benchmark
from tflite_bench.__main__ import main
from tflite_bench.files import read_json
from tflite_bench.quiet import quiet_litert
from tflite_bench.rounds import run_interleaved
from tflite_bench.runner import Runner
from tflite_bench.runtimes import RUNTIMES

ROOT = Path(__file__).parents[2]


def convert(layers, path, **settings):
    keras.utils.set_random_seed(0)
    keras.Sequential(layers).export(path, format="litert", verbose=False, **settings)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same net at width 8 and 96, with the open batch dimension that Keras writes by default."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for name, width in (("narrow", 8), ("wide", 96)):
        convolutions = [keras.layers.Conv2D(width, 3, padding="same", activation="relu") for _ in range(3)]
        made[name] = convert([keras.Input((24, 24, 3)), *convolutions], folder / f"{name}.tflite")
    return made


def run_cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tflite_bench", *map(os.fspath, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_wider_net_is_slower(files, runtime):
    report = benchmark([files["narrow"], files["wide"]], runs=30, warmup=2, rounds=3, runtime=runtime)
    narrow, wide = report.models
    assert (narrow.ratio_to_first, narrow.ratio_low, narrow.ratio_high) == (1.0, 1.0, 1.0)
    # 60 times the arithmetic: far above what a busy computer can blur.
    assert wide.ratio_to_first > 4
    assert wide.ratio_low <= wide.ratio_to_first <= wide.ratio_high
    for model, path in zip(report.models, files.values(), strict=True):
        assert 0 < model.min_ms <= model.p10_ms <= model.p50_ms <= model.p90_ms
        assert model.min_ms <= model.mean_ms
        assert model.load_ms > 0
        assert model.bytes == path.stat().st_size
        assert model.runs == 30
        assert 0 < model.cpu_wall < 2


class Logged(Runner):
    """A real runner that writes down when it works."""

    def __init__(self, path, log):
        self.log = log
        super().__init__(path)

    def warm_up(self, runs):
        self.log.append((self.path.stem, "warm", runs))
        super().warm_up(runs)

    def time(self, runs):
        self.log.append((self.path.stem, "time", runs))
        return super().time(runs)


def test_rounds_are_interleaved_and_every_run_is_made(files):
    log = []
    runners = [Logged(files["narrow"], log), Logged(files["wide"], log)]
    log.clear()
    blocks = run_interleaved(
        runners, runs=[7, 7], warmup=4, rounds=3, advance=lambda name: log.append((name, "done", 0))
    )
    assert log[:2] == [("narrow", "warm", 4), ("wide", "warm", 4)]
    assert [name for name, kind, _ in log if kind == "done"] == ["narrow.tflite", "wide.tflite"] * 3
    timed = [(name, runs) for name, kind, runs in log if kind == "time"]
    assert [name for name, _ in timed] == ["narrow", "wide"] * 3
    assert [runs for name, runs in timed if name == "wide"] == [2, 2, 3]
    assert [len(block.run_ms) for block in blocks[0]] == [2, 2, 3]
    assert all(block.wall_s * 1e3 == pytest.approx(block.run_ms.sum()) for own in blocks for block in own)


def test_report_survives_json_and_replaces_the_file_whole(files, tmp_path):
    report = benchmark([files["narrow"]], runs=4, warmup=0, rounds=2)
    target = tmp_path / "report.json"
    target.write_text("old")
    report.save(target)
    saved = read_json(target, sealed=True)
    assert saved == report.to_dict()
    assert os.listdir(tmp_path) == ["report.json"]
    assert saved["format"] == 1
    cores = saved["settings"].pop("cores")
    assert saved["settings"] == {"threads": 1, "runs": 4, "warmup": 0, "rounds": 2, "runtime": "interpreter"}
    assert cores is None or len(cores) == 1
    busy = {"load_average_1min", "load_average_1min_end", "steal_percent"}
    assert set(saved["machine"]) == {"cpu", "cores", "system", "python", "litert"} | busy
    assert set(saved["models"][0]) > {"path", "bytes", "threads", "load_ms", "p50_ms", "p90_ms", "min_ms", "mean_ms"}
    assert set(saved["models"][0]) > {"runs", "cpu_wall", "ratio_to_first", "ratio_low", "ratio_high"}


def test_figures_that_were_not_measured_are_none_and_a_dash(files):
    report = benchmark([files["narrow"]], runs=2, warmup=0, rounds=1, cold=False)
    (timing,) = report.models
    assert (timing.load_ms, timing.peak_rss_kb) == (None, None)
    # What a phone does not give.
    bare = dataclasses.replace(timing, p50_ms=None, p90_ms=None, cpu_wall=None, ratio_low=None, ratio_high=None)
    console = Console(width=80, file=io.StringIO())
    console.print(dataclasses.replace(report, models=(bare,), notes=("The phone was warm.",)).table())
    text = console.file.getvalue()
    (row,) = (line for line in text.splitlines() if "narrow.tflite" in line)
    assert row.split() == [
        "narrow.tflite", f"{timing.bytes / 1e3:.1f}", "-", "-", f"{timing.min_ms:.3f}", "-", "-", "-", "1.000", "-"
    ]  # fmt: skip
    assert "- The phone was warm." in text


def test_table_fits_a_terminal_of_80_columns(files):
    console = Console(width=80, file=io.StringIO())
    console.print(benchmark(list(files.values()), runs=2, warmup=0, rounds=1).table())
    text = console.file.getvalue()
    assert "…" not in text
    assert "narrow.tflite" in text
    assert "wide.tflite" in text
    assert "1.00-1.00" in text


def test_both_runtimes_compute_on_the_same_inputs(files):
    interpreter, compiled = (Runner(files["narrow"], runtime=runtime).runtime for runtime in RUNTIMES)
    (detail,) = interpreter.interpreter.get_input_details()
    expected = interpreter.interpreter.get_tensor(detail["index"])
    (found,) = (buffer.read(expected.size, np.float32) for buffer in compiled._inputs)
    assert expected.std() > 0.5
    np.testing.assert_array_equal(found, expected.ravel())


def test_only_harmless_messages_of_litert_are_held_back(capfd):
    lines = "INFO: a\nERROR: b\n└ c\nWARNING: [npu_registry.cc:34] d\n└ e\nf\nWARNING: [other.cc:1] g\n"
    with quiet_litert():
        os.write(2, lines.encode())
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "ERROR: b\n└ c\nf\nWARNING: [other.cc:1] g\n"


def test_open_dimensions_become_one(files):
    runner = Runner(files["narrow"])
    (detail,) = runner.runtime.interpreter.get_input_details()
    assert detail["shape_signature"].tolist() == [-1, 24, 24, 3]
    assert detail["shape"].tolist() == [1, 24, 24, 3]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "bool"])
def test_other_input_types_run(tmp_path, kind):
    if kind in ("int8", "uint8"):
        path = convert_quantised(tmp_path / "model.tflite", kind)
    else:
        layer = keras.layers.Embedding(2, 3) if kind == "int32" else keras.layers.Rescaling(2.0)
        path = convert([keras.Input((4,), dtype=kind), layer], tmp_path / "model.tflite")
    runner = Runner(path)
    (detail,) = runner.runtime.interpreter.get_input_details()
    assert np.dtype(detail["dtype"]) == kind
    values = runner.runtime.interpreter.get_tensor(detail["index"])
    assert len(np.unique(values)) > 1
    assert runner.time(3).run_ms.shape == (3,)


def convert_quantised(path, kind):
    import tensorflow as tf

    samples = np.random.default_rng(0).standard_normal((4, 1, 8)).astype("float32")
    return convert(
        [keras.Input((8,)), keras.layers.Dense(4)],
        path,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([sample] for sample in samples),
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
        inference_input_type=tf.as_dtype(kind),
        inference_output_type=tf.as_dtype(kind),
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"runs": 0}, r"runs is an integer, at least 1\. Received: runs=0\."),
        ({"threads": 0}, r"threads is an integer, at least 1\. Received: threads=0\."),
        ({"warmup": -1}, r"warmup is an integer, at least 0\. Received: warmup=-1\."),
        ({"runs": 3, "rounds": 4}, r"rounds is an integer between 1 and runs=3\. Received: rounds=4\."),
        ({"rounds": 0}, r"rounds is an integer between 1 and runs=100\. Received: rounds=0\."),
    ],
)
def test_bad_settings(files, settings, sentence):
    with pytest.raises(BenchError, match=sentence):
        benchmark([files["narrow"]], **settings)


def test_bad_files(files, tmp_path):
    for paths in ([], "model.tflite"):
        with pytest.raises(BenchError, match=r"paths is a list of at least one \.tflite file\. Received: paths="):
            benchmark(paths)
    with pytest.raises(BenchError, match=r"gone.tflite: no such file"):
        benchmark([files["narrow"], tmp_path / "gone.tflite"])
    broken = tmp_path / "broken.tflite"
    for content in (b"", b"not a model", files["narrow"].read_bytes()[:-500]):
        broken.write_bytes(content)
        with pytest.raises(BenchError, match=r"broken.tflite: LiteRT cannot load this file"):
            benchmark([broken])


@pytest.fixture(scope="module")
def other_tasks(tmp_path_factory):
    """A file that reads text, and one with an operator of TensorFlow."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("other_tasks")
    functions = {
        "text": (lambda x: tf.reshape(x, (1, 1)), tf.TensorSpec((1,), tf.string)),
        "flex": (tf.linalg.det, tf.TensorSpec((1, 3, 3), tf.float32)),
    }
    for name, (function, spec) in functions.items():
        concrete = tf.function(function, input_signature=[spec]).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
        (folder / f"{name}.tflite").write_bytes(converter.convert())
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_files_of_other_tasks(other_tasks, runtime):
    with pytest.raises(BenchError, match=r"text.tflite: input '.*' has dtype .*S0, expected a number type"):
        Runner(other_tasks / "text.tflite", runtime=runtime)
    with pytest.raises(BenchError, match=r"flex.tflite: LiteRT cannot load this file \(Select TensorFlow op"):
        Runner(other_tasks / "flex.tflite", runtime=runtime)


def test_an_unknown_runtime(files):
    with pytest.raises(BenchError, match=r"runtime is one of interpreter, compiled\. Received: runtime='gpu'"):
        benchmark([files["narrow"]], runtime="gpu")


def test_command_line(files, tmp_path):
    target, picture = tmp_path / "out.json", tmp_path / "out.png"
    settings = ["--runs", "6", "--warmup", "1", "--rounds", "2", "--runtime", "compiled", "--no-pin"]
    done = run_cli(files["narrow"], files["wide"], *settings, "--json", target, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert "narrow.tflite" in done.stdout
    # Nothing of what LiteRT says of itself, not even at its end.
    assert "INFO" not in done.stderr
    assert "registry" not in done.stderr
    saved = json.loads(target.read_text())
    assert [model["runs"] for model in saved["models"]] == [6, 6]
    assert saved["models"][0]["path"] == os.fspath(files["narrow"])
    assert (saved["settings"]["runtime"], saved["settings"]["cores"]) == ("compiled", None)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_command_line_refuses_bad_input_in_one_line(files, tmp_path, capfd):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(files["narrow"].read_bytes()[:300])
    cases = {
        "no such file": [tmp_path / "gone.tflite"],
        "runs is an integer, at least 1. Received: runs=0.": [files["narrow"], "--runs", "0"],
        "out.json: the folder does not exist": [files["narrow"], "--json", tmp_path / "missing" / "out.json"],
        "out.png: the folder does not exist": [files["narrow"], "--plot", tmp_path / "missing" / "out.png"],
        "expected a file name, this is a folder": [files["narrow"], "--json", tmp_path],
        "out.xyz: expected the name of an image": [files["narrow"], "--plot", tmp_path / "out.xyz"],
        "leave it out with --profile": [files["narrow"], "--profile", "--plot", tmp_path / "out.png"],
        "broken.tflite: LiteRT cannot load this file": ["compare", files["narrow"], broken],
        "rounds is an integer between 3 and runs=200.": ["compare", *files.values(), "--rounds", "2"],
    }
    for sentence, arguments in cases.items():
        assert main([*map(os.fspath, arguments)]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(f"tflite_bench{' compare' * (arguments[0] == 'compare')}: ")
        assert sentence in err
    # A compiled model of a damaged file would end the process.
    done = run_cli(broken, "--runtime", "compiled")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "broken.tflite: LiteRT cannot load this file" in done.stderr


def test_it_stands_alone():
    for path in (ROOT / "tflite_bench").glob("*.py"):
        assert "keras" not in path.read_text(encoding="utf-8")
