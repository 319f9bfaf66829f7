"""Names are shown as they are, on terminals and in spreadsheets, and progress is for people or for logs."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import keras
import numpy as np
import pytest
from rich.console import Console

import keras_filterprune as kfp
from keras_filterprune.__main__ import main
from keras_filterprune.progress import track
from keras_filterprune.report import graph_tables
from tflite_bench import BenchReport, ModelTiming, OperatorTime, Profile, progress

NAMES = ["a[red]b", "c[bold", "d]", "[link=http]y", "back\\", "[@click=f]z", "x[1]"]


def printed(item) -> str:
    out = io.StringIO()
    Console(file=out, width=400).print(item)
    return out.getvalue()


def network(names):
    x = y = keras.Input((6, 6, 3))
    for name in names:
        y = keras.layers.Conv2D(4, 1, name=name)(y)
    return keras.Model(x, keras.layers.Dense(2, name="head")(y), name="net[bold]work")


@pytest.fixture(scope="module")
def tables():
    """{what it is: (a table, the names in it)}."""
    model = network(NAMES)
    _, pruned = kfp.prune_model(model, "l2", return_report=True, progress=False)
    _, layers = kfp.prune_layers(blocks(), 1, return_report=True, progress=False)
    timing = {field.name: 1.0 for field in dataclasses.fields(ModelTiming)}
    models = tuple(ModelTiming(**timing | {"path": f"x/{name}"}) for name in NAMES)
    machine, settings = {"cpu": "[red]cpu"}, {"threads": 1, "runs": 1}
    operators = [*NAMES, "[/x]"]
    rows = tuple(OperatorTime(name, 1.0, 0.1, False) for name in operators)
    return {
        "scan": (graph_tables(kfp.analyze(model)), [*NAMES, model.name]),
        "prune": (pruned.table(), [*NAMES, model.name]),
        "layers": (layers.table(), ["add[red]"]),
        "bench": (BenchReport(machine, settings, models, ("[red]note",)).table(), NAMES),
        "profile": (Profile("x/[red].tflite", machine, settings, 1.0, rows, ("[red]note",)).table(), operators),
    }


def blocks():
    x = keras.Input((6, 6, 4))
    y = keras.layers.Conv2D(4, 3, padding="same")(x)
    y = keras.layers.Add(name="add[red]")([y, keras.layers.Conv2D(4, 3, padding="same")(keras.layers.ReLU()(y))])
    return keras.Model(x, keras.layers.Conv2D(2, 1)(y))


@pytest.mark.parametrize("kind", ["scan", "prune", "layers", "bench", "profile"])
def test_tables_show_names_as_they_are(tables, kind):
    table, names = tables[kind]
    text = printed(table)
    assert [name for name in names if name not in text] == []


# Red, another title of the window, back over what is there, from right to left.
STEERING = ["\x1b[31mred", "\x1b]0;title\x07", "back\x08\x08", "right\u202etfel", "c1\x9b31m", "bell\x07", "return\rx"]


@pytest.mark.parametrize("name", STEERING, ids=ascii)
def test_names_do_not_steer_a_terminal(name, tmp_path, capsys):
    model = network([name])
    _, report = kfp.prune_model(model, "l2", return_report=True, progress=False)
    graph = kfp.analyze(model)
    texts = [graph.summary(), printed(graph_tables(graph)), report.summary(), printed(report.table())]
    for kind in ("html", "md"):
        report.save(tmp_path / f"report.{kind}")
        texts.append((tmp_path / f"report.{kind}").read_text("utf-8"))
    # Here and in what is written to stderr.
    assert main(["scan", str(tmp_path / f"{name}.keras")]) == 2
    texts.append(capsys.readouterr().err)
    for text in texts:
        assert not [c for c in text if c in name and not c.isprintable()]
    assert ascii(name)[1:-1] in texts[0]


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@x", "\tx", "plain", "a=b"])
def test_spreadsheets_find_no_formula_in_a_name(name, tmp_path):
    model = network([name])
    table = kfp.measure_sensitivity(
        model, np.random.default_rng(0).normal(size=(4, 6, 6, 3)), "error", keep=(0.5,), progress=False
    )
    table.to_csv(tmp_path / "curves.csv")
    with open(tmp_path / "curves.csv", encoding="utf-8", newline="") as file:
        header, row = csv.reader(file)
    found = dict(zip(header, row, strict=True))
    assert found["group"] == (name if name in ("plain", "a=b") else f"'{name}")
    assert float(found["drop"]) == table.cuts[0].drop


# -------------------------------------------------------------------------------------------------------- progress


def test_a_log_gets_a_line_a_minute_and_no_bar(monkeypatch, capsys):
    minutes = iter(np.arange(0, 9999, 20.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(minutes))
    assert list(track(range(9), "measuring [red]", 9)) == [*range(9)]
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "measuring [red]: 3 of 9, about 2 min left",
        "measuring [red]: 6 of 9, about 1 min left",
        "measuring [red]: 9 of 9, about 1 min left",
    ]


def test_quick_work_says_nothing_in_a_log(capsys):
    assert list(track(range(9), "measuring", 9)) == [*range(9)]
    assert list(track(iter(range(9)), "measuring", None)) == [*range(9)]
    assert capsys.readouterr().err == ""


def test_a_bar_in_a_terminal_is_gone_at_the_end_and_alone(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for _ in track(range(2), "outer [red]", 2):
        list(track(range(2), "inner", 2))
    err = capsys.readouterr().err
    assert "outer [red]" in err and "inner" not in err
    # The line is erased, the cursor is shown again.
    assert re.search(r"\x1b\[2K[^\n]*$", err)
    assert err.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in err
