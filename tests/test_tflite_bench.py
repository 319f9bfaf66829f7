"""tflite_bench: faster files measure as faster, rounds are interleaved, bad input is one clear line."""

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
from tflite_bench.rounds import run_interleaved
from tflite_bench.runner import Runner

ROOT = Path(__file__).parents[1]


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


def test_wider_net_is_slower(files):
    report = benchmark([files["narrow"], files["wide"]], runs=30, warmup=2, rounds=3)
    narrow, wide = report.models
    assert (narrow.ratio_to_first, narrow.ratio_low, narrow.ratio_high) == (1.0, 1.0, 1.0)
    # 60 times the arithmetic: far above what a busy computer can blur.
    assert wide.ratio_to_first > 4
    assert wide.ratio_low <= wide.ratio_to_first <= wide.ratio_high
    for model, path in zip(report.models, files.values(), strict=True):
        assert 0 < model.min_ms <= model.p50_ms <= model.p90_ms
        assert model.min_ms <= model.mean_ms
        assert model.load_ms > 0
        assert model.bytes == path.stat().st_size
        assert model.runs == 30
        assert 0 < model.cpu_wall < 2


class Logged(Runner):
    """A real runner that writes down when it works."""

    def __init__(self, path, log):
        super().__init__(path)
        self.log = log

    def warm_up(self, runs):
        self.log.append((self.path.stem, "warm", runs))
        super().warm_up(runs)

    def time(self, runs):
        self.log.append((self.path.stem, "time", runs))
        return super().time(runs)


def test_rounds_are_interleaved_and_every_run_is_made(files):
    log = []
    runners = [Logged(files["narrow"], log), Logged(files["wide"], log)]
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
    saved = json.loads(target.read_text())
    assert saved == report.to_dict()
    assert os.listdir(tmp_path) == ["report.json"]
    assert saved["format"] == 1
    assert saved["settings"] == {"threads": 1, "runs": 4, "warmup": 0, "rounds": 2}
    assert set(saved["machine"]) == {"cpu", "cores", "load_average_1min", "system", "python", "litert"}
    assert set(saved["models"][0]) > {"path", "bytes", "threads", "load_ms", "p50_ms", "p90_ms", "min_ms", "mean_ms"}
    assert set(saved["models"][0]) > {"runs", "cpu_wall", "ratio_to_first", "ratio_low", "ratio_high"}


def test_table_fits_a_terminal_of_80_columns(files):
    console = Console(width=80, file=io.StringIO())
    console.print(benchmark(list(files.values()), runs=2, warmup=0, rounds=1).table())
    text = console.file.getvalue()
    assert "…" not in text
    assert "narrow.tflite" in text
    assert "wide.tflite" in text
    assert "1.00-1.00" in text


def test_open_dimensions_become_one(files):
    runner = Runner(files["narrow"])
    (detail,) = runner._interpreter.get_input_details()
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
    (detail,) = runner._interpreter.get_input_details()
    assert np.dtype(detail["dtype"]) == kind
    values = runner._interpreter.get_tensor(detail["index"])
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
        ({"runs": 0}, "runs must be at least 1, got runs=0"),
        ({"threads": 0}, "threads must be at least 1, got threads=0"),
        ({"warmup": -1}, "warmup must be at least 0, got warmup=-1"),
        ({"runs": 3, "rounds": 4}, "rounds must be between 1 and runs=3, got rounds=4"),
        ({"rounds": 0}, "rounds must be between 1 and runs=100, got rounds=0"),
    ],
)
def test_bad_settings(files, settings, sentence):
    with pytest.raises(BenchError, match=sentence):
        benchmark([files["narrow"]], **settings)


def test_bad_files(files, tmp_path):
    for paths in ([], "model.tflite"):
        with pytest.raises(BenchError, match=r"paths must be a list of at least one .tflite file, got"):
            benchmark(paths)
    with pytest.raises(BenchError, match=r"gone.tflite: no such file"):
        benchmark([files["narrow"], tmp_path / "gone.tflite"])
    broken = tmp_path / "broken.tflite"
    for content in (b"", b"not a model", files["narrow"].read_bytes()[:-500]):
        broken.write_bytes(content)
        with pytest.raises(BenchError, match=r"broken.tflite: LiteRT cannot load this file"):
            benchmark([broken])


def test_command_line(files, tmp_path):
    target = tmp_path / "out.json"
    done = run_cli(files["narrow"], files["wide"], "--runs", "6", "--warmup", "1", "--rounds", "2", "--json", target)
    assert done.returncode == 0, done.stderr
    assert "narrow.tflite" in done.stdout
    saved = json.loads(target.read_text())
    assert [model["runs"] for model in saved["models"]] == [6, 6]
    assert saved["models"][0]["path"] == os.fspath(files["narrow"])


def test_command_line_refuses_bad_input_in_one_line(files, tmp_path):
    cases = {
        "no such file": [tmp_path / "gone.tflite"],
        "runs must be at least 1": [files["narrow"], "--runs", "0"],
        "the folder does not exist": [files["narrow"], "--json", tmp_path / "missing" / "out.json"],
    }
    for sentence, arguments in cases.items():
        done = run_cli(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("tflite_bench: ")
        assert sentence in done.stderr


def test_it_stands_alone():
    for path in (ROOT / "tflite_bench").glob("*.py"):
        assert "keras" not in path.read_text(encoding="utf-8")
