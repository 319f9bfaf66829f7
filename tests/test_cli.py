"""The command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from zoo import ZOO

import keras_filterprune as kfp
from keras_filterprune import demo
from keras_filterprune.__main__ import main
from keras_filterprune.export.tflite import MODES
from tflite_bench.__main__ import main as bench_main

pytestmark = pytest.mark.usefixtures("short_recovery")


@pytest.fixture
def folder(tmp_path):
    ZOO["residual_projection"]().save(tmp_path / "model.keras")
    return tmp_path


def refused(capsys, *words: str) -> str:
    """The one line on stderr of a call that exits with 2."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_scan_shows_groups_pins_and_costs(folder, capsys):
    assert main(["scan", str(folder / "model.keras")]) == 0
    printed = capsys.readouterr().out
    assert "MACs can fall, in" in printed.replace("\n", " ")
    assert "is model output" in printed.replace("\n", " ")
    assert main(["scan", str(folder / "model.keras"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    model = keras.models.load_model(folder / "model.keras")
    assert content["params"] == model.count_params()
    assert sum(layer["params"] for layer in content["layers"].values()) == model.count_params()
    assert {"name", "units", "layers", "approximate"} == set(content["groups"][0])
    assert content["reach"] == kfp.analyze(model).reach > 0


def test_prune_writes_a_smaller_model_and_its_plan(folder, capsys):
    before = (folder / "model.keras").read_bytes()
    words = ["prune", folder / "model.keras", "-o", folder / "small.keras", "--method", "l1", "--keep-macs", "0.6"]
    words += ["--plan", folder / "plan.json", "--report", folder / "report.md", "--json"]
    assert main([*map(str, words)]) == 0
    report = json.loads(capsys.readouterr().out)
    macs, after = report["plan"]["cost"]["macs"]
    assert 0.5 * macs < after <= 0.6 * macs
    small = keras.models.load_model(folder / "small.keras")
    assert small.count_params() == report["plan"]["cost"]["params"][1]
    assert kfp.PruningPlan.load(folder / "plan.json").to_dict() == report["plan"]
    assert (folder / "model.keras").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["model.keras", "plan.json", "report.md", "small.keras"]
    assert f"{after:,}" in (folder / "report.md").read_text()


def test_existing_output_is_kept_unless_overwrite(folder, capsys):
    (folder / "small.keras").write_text("mine")
    words = ["prune", folder / "model.keras", "-o", folder / "small.keras"]
    assert "already exists and is kept" in refused(capsys, *words)
    assert (folder / "small.keras").read_text() == "mine"
    assert main([*map(str, words), "--overwrite"]) == 0
    assert keras.models.load_model(folder / "small.keras").count_params() > 0
    capsys.readouterr()
    (folder / "report.html").write_text("mine")
    words = ["prune", folder / "model.keras", "-o", folder / "other.keras", "--report", folder / "report.html"]
    assert "already exists and is kept" in refused(capsys, *words)
    assert not (folder / "other.keras").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "l3"], "method is a criterion object, a Method, or one of l1, l2"),
        (["--keep-macs", "0"], "--keep-macs is the fraction that is kept, in (0, 1]. Received: --keep-macs=0.0."),
        (["--keep-params", "50"], "Received: --keep-params=50.0. For 50 %, give 0.5."),
        (["--keep-filters", "5"], "Received: --keep-filters=5.0. For 5 %, give 0.05."),
        (["--keep-latency", "60"], "Received: --keep-latency=60.0. For 60 %, give 0.6."),
        (["--ms", "0"], "--ms is a number of milliseconds, above 0. Received: --ms=0.0."),
        (["--keep-macs", "1e-9"], "the smallest reachable is"),
        (["--exclude", "stemm"], "no layer matches 'stemm'. Did you mean 'stem"),
        (["--method", "cap"], "needs calibration inputs: pass data="),
        (["--data", "nowhere.npy"], "cannot read samples from nowhere.npy"),
        (["--report", "report.pdf"], "path is a name that ends in .html or .md. Received: path='report.pdf'"),
        (["--min-filters", "0"], "min_filters is an integer, at least 1. Received: min_filters=0"),
    ],
)
def test_bad_options_are_one_clear_line_and_leave_no_file(folder, capsys, words, sentence):
    assert sentence in refused(capsys, "prune", folder / "model.keras", "-o", folder / "small.keras", *words)
    assert [p.name for p in folder.iterdir()] == ["model.keras"]


OUTPUT = ["-o", "small.keras"]


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "model.keras", "--plan", "model.keras"],
        [*OUTPUT, "--plan", "small.keras"],
        [*OUTPUT, "--plan", "./small.keras"],
        [*OUTPUT, "--plan", "link.keras"],
        [*OUTPUT, "--plan", "model.keras"],
        [*OUTPUT, "--plan", "both.md", "--report", "both.md"],
        [*OUTPUT, "--plan", "x.npy", "--data", "x.npy"],
    ],
    ids=" ".join,
)
def test_no_file_replaces_another(folder, capsys, monkeypatch, words):
    monkeypatch.chdir(folder)
    np.save(folder / "x.npy", np.zeros((2, 4)))
    (folder / "link.keras").symlink_to(folder / "small.keras")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.exists()}
    assert "every file has a name of its own" in refused(capsys, "prune", "model.keras", "--overwrite", *words)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.exists()} == before


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (main, "export model.keras -o model.keras --overwrite"),
        (main, "export model.keras -o link.keras --overwrite"),
        (main, "export model.keras -o x.npy --data x.npy --overwrite"),
        (bench_main, "a.tflite b.tflite --json b.tflite"),
        (bench_main, "a.tflite b.tflite --plot ./a.tflite"),
        (bench_main, "a.tflite --plot new.png --json new.png"),
        (bench_main, "a.tflite --profile --json a.tflite"),
        (bench_main, "compare a.tflite b.tflite --json link.tflite"),
        (bench_main, "arm count a.tflite --json a.tflite"),
        (bench_main, "android a.tflite --binary x.npy --json x.npy"),
        (bench_main, "android a.tflite --binary x.npy --json a.tflite"),
    ],
)
def test_no_output_is_an_input(folder, capsys, monkeypatch, run, words):
    monkeypatch.chdir(folder)
    for name in ("x.npy", "a.tflite", "b.tflite"):
        (folder / name).write_text(name)
    (folder / "link.keras").symlink_to("model.keras")
    (folder / "link.tflite").symlink_to("b.tflite")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(words.split()) == 2
    assert "every file has a name of its own" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (folder / "link.keras").is_symlink()


@pytest.mark.parametrize("words", ["a.tflite", "compare a.tflite a.tflite", "a.tflite --profile"])
def test_threads_are_no_more_than_cores(folder, capsys, monkeypatch, words):
    monkeypatch.chdir(folder)
    (folder / "a.tflite").write_text("no matter")
    assert bench_main([*words.split(), "--threads", "100000"]) == 2
    assert "threads is at most " in capsys.readouterr().err


def test_the_model_alone_may_be_replaced(folder, capsys):
    before = keras.models.load_model(folder / "model.keras").count_params()
    path = str(folder / "model.keras")
    assert main(["prune", path, "-o", path, "--overwrite"]) == 0
    assert keras.models.load_model(path).count_params() < before


@pytest.mark.parametrize(
    ("run", "name"), [(main, "keras-filterprune"), (bench_main, "tflite_bench")], ids=["library", "benchmark"]
)
def test_called_alone_it_says_what_there_is_to_be_done(run, name, capsys):
    assert run([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {name}")
    assert "--version" in printed
    with pytest.raises(SystemExit, match="0"):
        run(["--version"])
    assert capsys.readouterr().out == f"{name} {kfp.__version__}\n"


@pytest.mark.parametrize("command", ["compare", "android", "arm"])
def test_so_do_the_commands_of_the_benchmark(command, capsys):
    assert bench_main([command]) == 0
    assert capsys.readouterr().out.startswith(f"usage: tflite_bench {command}")


def test_modes_are_those_of_the_export(capsys):
    with pytest.raises(SystemExit):
        main(["export", "a.keras", "-o", "a.tflite", "--quantize", "none"])
    assert re.findall(r"\w+", capsys.readouterr().err.partition("choose from")[2]) == list(MODES)


def test_unreadable_models_and_unwritable_places(folder, capsys):
    assert "no model at" in refused(capsys, "scan", folder / "none.keras")
    content = (folder / "model.keras").read_bytes()
    (folder / "cut.keras").write_bytes(content[: len(content) // 2])
    assert "cannot load" in refused(capsys, "scan", folder / "cut.keras")
    line = refused(capsys, "prune", folder / "model.keras", "-o", folder / "none" / "small.keras")
    assert "does not exist" in line
    assert "ends in .keras" in refused(capsys, "prune", folder / "model.keras", "-o", folder / "small.h5")
    assert sorted(p.name for p in folder.iterdir()) == ["cut.keras", "model.keras"]


def test_export_and_bench(folder, capsys):
    model = keras.models.load_model(folder / "model.keras")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(20, *model.input_shape[1:])).astype("float32"))
    assert main(["export", str(folder / "model.keras"), "-o", str(folder / "a.tflite")]) == 0
    assert "largest difference from Keras" in capsys.readouterr().out
    words = ["export", folder / "model.keras", "-o", folder / "b.tflite", "--quantize", "int8"]
    assert "int8' needs data=" in refused(capsys, *words)
    assert main([*map(str, words), "--data", str(folder / "x.npy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantize"] == "int8"
    mixed = ["--data", folder / "x.npy", "--keep-float", "CONV_2D", "--integer-io", "--dynamic-batch", "--overwrite"]
    assert main([str(word) for word in (*words, *mixed)]) == 0
    assert "warning: CONV_2D" not in capsys.readouterr().out
    assert "keep_float holds operators or layers" in refused(capsys, *words, *mixed, "--keep-float", "swish")
    assert "expected; nothing was written" in refused(capsys, *words, *mixed, "--tolerance", "1e-9")
    assert main(["bench", str(folder / "a.tflite"), str(folder / "b.tflite"), "--runs", "20", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [m["runs"] for m in models] == [20, 20]
    (folder / "bad.tflite").write_text("nothing")
    assert "bad.tflite" in refused(capsys, "bench", folder / "bad.tflite")


def test_module_runs_as_a_command(folder):
    # The one that imports no Keras.
    command = [sys.executable, "-m", "keras_filterprune", "bench", str(folder / "none.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("none.tflite: no such file, expected a .tflite file")
    assert done.stderr.startswith("keras-filterprune: ")


def test_demo_does_the_whole_job(tmp_path, capsys, monkeypatch):
    # Half as long as it trains elsewhere.
    monkeypatch.setattr(demo, "_EPOCHS", 10)
    monkeypatch.setattr(demo, "_FINE_TUNE_EPOCHS", 4)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["dense"]["accuracy"] > 0.95
    assert rows["fine-tuned"]["accuracy"] > rows["dense"]["accuracy"] - 0.03
    assert rows["pruned"]["macs"] <= 0.5 * rows["dense"]["macs"]
    assert rows["int8"]["bytes"] < 0.4 * rows["pruned"]["bytes"]
    for name in ("dense", "pruned", "fine-tuned"):
        model = keras.models.load_model(tmp_path / "demo" / f"{name}.keras")
        assert model.count_params() == rows[name]["params"]
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    files = {f"{name}.tflite" for name in ("dense", "pruned", "fine-tuned", "int8")}
    assert {"plan.json", "report.json", "report.html", *files} <= names
