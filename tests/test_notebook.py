"""Notebooks run from their first cell to their last, do what they promise, and show outputs of the code they hold."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = ["colab_quickstart.ipynb", "colab_own_images.ipynb"]
every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)
# Runs every code cell of a notebook in one namespace, one notebook after the other in a folder of its own, and writes
# what each of the cells printed.
RUN = """
import contextlib, io, json, os, sys
for folder, notebook in json.loads(sys.argv[1]).items():
    names, printed = {"__name__": "__main__"}, []
    os.chdir(folder)
    for cell in json.load(open(notebook))["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as text:
                exec("".join(cell["source"]), names)
            printed.append(text.getvalue())
    json.dump({"printed": printed, "rows": names["rows"]}, open("result.json", "w"))
"""


def code_cells(name):
    return [cell for cell in json.loads((EXAMPLES / name).read_text())["cells"] if cell["cell_type"] == "code"]


def stored_text(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def sentences(text):
    """The lines of a text without numbers and what comes of teaching, each once: both differ on another computer."""
    told = re.sub(r"(on \d+ others \S+ before).*", r"\1", text)
    return sorted({re.sub(r"\d[\d.,]*(e[-+]?\d+)?", "#", line) for line in told.splitlines()})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{notebook: what its cells printed, and its table}."""
    folders = {name: tmp_path_factory.mktemp("notebook") for name in NOTEBOOKS}
    given = json.dumps({os.fspath(folder): os.fspath(EXAMPLES / name) for name, folder in folders.items()})
    settings = {"env": os.environ | {"MPLBACKEND": "agg"}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", RUN, given], check=False, timeout=600, cwd=EXAMPLES.parent, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: json.loads((folder / "result.json").read_text()) for name, folder in folders.items()}


@pytest.mark.parametrize(
    ("name", "models", "least", "share"),
    [
        ("colab_quickstart.ipynb", ["dense", "pruned", "int8"], 0.96, 0.2),
        ("colab_own_images.ipynb", ["dense", "small-int8"], 0.85, 0.25),
    ],
)
def test_notebooks_measure_what_they_promise(results, name, models, least, share):
    rows = results[name]["rows"]
    assert list(rows) == models
    sizes = [row["size in kB"] for row in rows.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < share * sizes[0]
    assert min(row["accuracy"] for row in rows.values()) > least
    assert min(row["median time in ms"] for row in rows.values()) > 0


@every_notebook
def test_the_stored_outputs_belong_to_the_code(results, name):
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [sentences(stored_text(cell)) for cell in cells] == [sentences(text) for text in results[name]["printed"]]
    (plot,) = [output for output in cells[-1]["outputs"] if output["output_type"] == "display_data"]
    assert plot["data"]["image/png"]


@every_notebook
def test_stored_outputs_hold_no_errors_and_are_small(name):
    outputs = [output for cell in code_cells(name) for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    assert (EXAMPLES / name).stat().st_size < 60_000


@every_notebook
@pytest.mark.parametrize(
    ("answer", "installed"),
    [
        ("https://example.org/project.git", "keras-filterprune[all] @ git+https://example.org/project.git"),
        (" keras_filterprune.whl ", "keras_filterprune.whl[all]"),
        ("", None),
    ],
)
def test_the_first_cell_asks_once_where_the_package_is(name, answer, installed, monkeypatch):
    asked, commands = [], []
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    names = {"__name__": "__main__", "input": lambda question: asked.append(question) or answer}
    first = "".join(code_cells(name)[0]["source"])
    if installed is None:
        with pytest.raises(ValueError, match="keras_filterprune is not installed: run this cell again"):
            exec(first, names)
        assert commands == []
    else:
        exec(first, names)
        assert [command[-1] for command in commands] == [installed]
    assert len(asked) == 1
