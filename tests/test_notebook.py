"""The notebook runs from its first cell to its last, does what it promises, and shows outputs of the code it holds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "colab_quickstart.ipynb"
# Runs every code cell in one namespace and writes what each of them printed.
RUN = """
import contextlib, io, json, sys
names, printed = {"__name__": "__main__"}, []
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        with contextlib.redirect_stdout(io.StringIO()) as text:
            exec("".join(cell["source"]), names)
        printed.append(text.getvalue())
json.dump({"printed": printed, "rows": names["rows"]}, open("result.json", "w"))
"""


def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def stored_text(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def sentences(text):
    """The lines of a text without their numbers, each once: widths may differ on another computer."""
    return sorted({re.sub(r"\d[\d.,]*(e[-+]?\d+)?", "#", line) for line in text.splitlines()})


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    environment = os.environ | {"MPLBACKEND": "agg"}
    command = [sys.executable, "-c", RUN, os.fspath(NOTEBOOK)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "result.json").read_text())


def test_the_notebook_measures_what_it_promises(result):
    rows = result["rows"]
    assert list(rows) == ["dense", "pruned", "int8"]
    sizes = [row["size in kB"] for row in rows.values()]
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.4 * sizes[1]
    assert min(row["accuracy"] for row in rows.values()) > 0.96
    assert min(row["median time in ms"] for row in rows.values()) > 0


def test_the_stored_outputs_belong_to_the_code(result):
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [sentences(stored_text(cell)) for cell in cells] == [sentences(text) for text in result["printed"]]
    (plot,) = [output for output in cells[-1]["outputs"] if output["output_type"] == "display_data"]
    assert plot["data"]["image/png"]


def test_stored_outputs_hold_no_errors_and_are_small():
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    assert NOTEBOOK.stat().st_size < 60_000
