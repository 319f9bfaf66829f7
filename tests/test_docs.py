"""What the documentation shows runs: docstring examples, the code on pages; and what it quotes is said elsewhere."""

import ast
import doctest
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import pytest

import keras_filterprune as kfp
import tflite_bench
from keras_filterprune.methods import registry
from tflite_bench.arm.prepare import prepared_folder

pytestmark = pytest.mark.usefixtures("short_recovery")
ROOT = Path(kfp.__file__).parents[1]


def all_modules():
    for package in (kfp, tflite_bench):
        yield package
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(info.name)


def doctests():
    finder = doctest.DocTestFinder()
    return {test.name: test for module in all_modules() for test in finder.find(module) if test.examples}


class Tolerant(doctest.OutputChecker):
    """A time or a ratio of times may be any positive number; everything else must be as shown."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        try:
            return "." in want and float(want) > 0 and float(got) > 0
        except ValueError:
            return False


def failures(test):
    runner = doctest.DocTestRunner(checker=Tolerant(), optionflags=doctest.ELLIPSIS, verbose=False)
    text = []
    runner.run(test, out=text.append)
    return "".join(text)


DOCTESTS = doctests()


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    """Methods that an example registers are gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@pytest.fixture(scope="module")
def tflite_files(tmp_path_factory):
    """A folder with the files that examples of tflite_bench time."""
    folder = tmp_path_factory.mktemp("tflite")
    for name, filters in (("dense", 16), ("pruned", 8), ("model", 4)):
        model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(filters, 3)])
        kfp.export_tflite(model, folder / f"{name}.tflite", verify=False)
    return folder


@pytest.mark.parametrize("name", DOCTESTS)
def test_docstring_examples(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if name.startswith("tflite_bench.arm"):
        try:
            prepared_folder()
        except tflite_bench.BenchError as error:
            pytest.skip(str(error))
    if name.startswith("tflite_bench"):
        for file in request.getfixturevalue("tflite_files").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert failures(DOCTESTS[name]) == ""


def test_examples_are_found_where_users_look():
    names = {"prune_model", "plan_pruning", "analyze", "export_tflite", "register_handler", "benchmark", "Runner"}
    assert names <= {name.rpartition(".")[2] for name in DOCTESTS}


@pytest.mark.parametrize("text", ["2", "'kept'", "0.0", "-1.5", "0.5 s"])
def test_a_wrong_example_is_found(text):
    test = doctest.DocTestParser().get_doctest(f">>> {3 if text != '0.5 s' else 0.5}\n{text}\n", {}, "wrong", None, 0)
    assert "Expected" in failures(test)


# -------------------------------------------------------------------------------------------------------- pages


def python_blocks(text):
    """(line number, code) of every fenced block marked `python`; other libraries' code is marked `py`."""
    found = []
    for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL):
        if match[1].strip() == "python":
            found.append((text[: match.start(2)].count("\n"), match[2]))
    return found


def run_blocks(text, filename="README.md"):
    """Run the blocks in order in one namespace; tracebacks show the page's own line numbers."""
    namespace = {"__name__": "readme"}
    for line, code in python_blocks(text):
        exec(compile("\n" * line + code, filename, "exec"), namespace)
    return namespace


PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}


@pytest.mark.parametrize("page", PAGES)
def test_code_on_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(PAGES[page].read_text(), page)


def scripts(page):
    """The first block of a page, and the scripts that it stands in front of."""
    first, *others = (code for _, code in python_blocks(PAGES[page].read_text()))
    return first, others


def imported(script):
    """The packages of a script's imports."""
    return re.findall(r"^ *(?:import|from) (\w+)", script, re.MULTILINE)


def skip_without_what_it_imports(script, *others):
    for package in [*imported(script), *others]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def printed_by(first, script, folder, **environment):
    """The lines that a script prints, in a process of its own."""
    skip_without_what_it_imports(script, environment.get("KERAS_BACKEND", "keras"))
    path = folder / "script.py"
    path.write_text("\n".join([first, script]))
    settings = {"capture_output": True, "text": True, "timeout": 300, "env": os.environ | environment}
    done = subprocess.run([sys.executable, path], cwd=folder, check=False, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


CLUSTERS, EXECUTORS = scripts("docs/clusters.md")
DEVICES, TRAININGS = scripts("docs/devices.md")


def test_every_executor_gives_what_one_process_gives(tmp_path):
    """One script after the other, as every process imports Keras and its backend: the one that starts soonest."""
    found = [script for script in EXECUTORS if all(map(importlib.util.find_spec, imported(script)))]
    if not found or importlib.util.find_spec("jax") is None:
        pytest.skip("no package of executors is installed, or no jax")
    # One process of each; that two of Python's own agree with one is seen where sensitivity is measured.
    found = [re.sub(r"(?<=[=(])2\b", "1", script) for script in found]
    scripts_ = "\n".join([*found, 'if __name__ == "__main__":\n    measure(None)'])
    # What one process has compiled the others find.
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # Or loky starts its process anew, once the backend takes more than 300 MB.
    settings["LOKY_MAX_MEMORY_LEAK_SIZE"] = "4e9"
    printed = printed_by(CLUSTERS, scripts_, tmp_path, KERAS_BACKEND="jax", **settings)
    lines = [line for line in printed if line == printed[-1]]
    assert printed[-1].startswith("[") and len(lines) == len(found) + 1


@pytest.mark.parametrize(
    ("script", "last"),
    list(zip(TRAININGS, ["True", "[10, 10]", *["True"] * 4, "2", "True"], strict=True)),
    ids=["replicas", "mesh", "schedule", "tensorboard", "mlflow", "wandb", "optuna", "keras_tuner"],
)
def test_trainings_end_as_they_should(script, last, tmp_path, monkeypatch, capsys):
    if "device" in script:
        # Divided before the backend starts.
        environment = {"KERAS_BACKEND": "jax"} if "KERAS_BACKEND" in script else {}
        printed = printed_by(DEVICES, script, tmp_path, **environment)
    else:
        skip_without_what_it_imports(script)
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec("\n".join([DEVICES, script]), {"__name__": "__main__"})
        printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == last


def test_extending_takes_less_than_thirty_lines_each():
    blocks = python_blocks(PAGES["docs/extending.md"].read_text())
    assert len(blocks) >= 8
    assert max(len(code.splitlines()) for _, code in blocks) < 30


EXAMPLE = """
Text
```python
a = 1
```
```py
raise SystemExit
```
```bash
rm
```
```python
b = a + 1
```
"""


def test_readme_blocks_share_a_namespace_and_may_opt_out():
    assert [line for line, _ in python_blocks(EXAMPLE)] == [3, 12]
    assert run_blocks(EXAMPLE)["b"] == 2
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks(EXAMPLE + "```python\n\n1 / 0\n```\n")
    assert caught.traceback[-1].lineno + 1 == 17


def tables(text):
    """Rows of tables, without those that name columns."""
    return re.findall(r"^(?!\|[ :|-]+\|$)\|.*\|$(?!\n\|[ :|-]+\|$)", text, re.MULTILINE)


def test_figures_of_the_readme_are_those_of_the_results():
    (measured,) = re.findall(r"^## Measured$(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    results = "".join(path.read_text() for path in (ROOT / "examples/benchmarks/results").glob("*.md")).splitlines()
    assert len(tables(measured)) >= 4
    assert [row for row in tables(measured) if row not in results] == []


def test_every_result_is_on_a_page():
    pages = "".join(text.read_text() for page, text in PAGES.items() if page.startswith("docs/results/"))
    results = [path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("results/*.md")]
    assert len(results) > 10
    assert [result for result in results if f'--8<-- "{result}"' not in pages] == []


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 170
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_ten_tasks_are_one_click_from_the_first_page():
    text = PAGES["docs/index.md"].read_text()
    tasks = [re.search(r"\]\((\w+\.md)(?:#[\w-]+)?\) \|$", row)[1] for row in tables(text)]
    assert len(set(tasks)) >= 10
    assert [task for task in tasks if f"docs/{task}" not in PAGES] == []


def sentences(source):
    """Every string of a module but docstrings; an f-string with a gap where a value goes."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def unknown_messages(text):
    """What the first column of a table quotes, and no module says."""
    modules = (path.read_text() for path in (ROOT / "keras_filterprune").rglob("*.py"))
    said = [sentence for module in modules for sentence in sentences(module)]
    return [
        quoted for quoted in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE) if not any(quoted in s for s in said)
    ]


def test_messages_that_are_explained_are_said():
    assert unknown_messages(PAGES["docs/troubleshooting.md"].read_text()) == []
    assert unknown_messages("| `the smallest reachable is` | a |\n| `nobody says this` | b |\n") == ["nobody says this"]


def moved_names(text):
    """{old name: new name} of the table in the changelog; `kfp.space.*` stands for the same names in there."""
    found = {}
    for left, right in re.findall(r"^ *\| (`kfp\..*?) \| `kfp\.(.*?)` \|$", text, re.MULTILINE):
        for name in re.findall(r"`(?:kfp\.)?(\w+)`", left):
            found[name] = right.replace("*", name)
    return found


def test_the_changelog_says_where_every_name_went():
    assert moved_names((ROOT / "CHANGELOG.md").read_text()) == kfp._MOVED


def test_the_table_of_moved_names_is_read():
    table = "| old | new |\n|---|---|\n  | `kfp.L1`, `L2` | `kfp.criteria.*` |\n| `kfp.a` | `kfp.studies.b` |\n"
    assert moved_names(table) == {"L1": "criteria.L1", "L2": "criteria.L2", "a": "studies.b"}
