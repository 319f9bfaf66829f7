"""Examples and the notebook use what users may use: the public names, and nothing behind them."""

import ast
import json
from pathlib import Path

import pytest
from public_surface import public_paths

import keras_filterprune as kfp

ROOT = Path(kfp.__file__).parents[1]
PACKAGES = ("keras_filterprune", "tflite_bench")
PUBLIC = public_paths()
MODULES = {name.rpartition(".")[0] for name in PUBLIC}


def sources():
    """{path: code} of all scripts and notebooks."""
    found = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "examples").rglob("*.py"))}
    for path in sorted((ROOT / "examples").rglob("*.ipynb")):
        cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        found[str(path.relative_to(ROOT))] = "\n".join("".join(cell) for cell in cells)
    return found


def used(code):
    """Dotted names of our packages that code imports, or reaches through what it has imported."""
    found, alias_of = set(), {}
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
            # `import a.b` binds `a`.
            alias_of |= {short: full if short != full.partition(".")[0] else short for short, full in names.items()}
            found |= set(names.values())
        elif isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            alias_of |= names
            found |= set(names.values())
    for node in ast.walk(tree):
        parts = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else [""]
        if all(part.isidentifier() for part in parts) and parts[0] in alias_of:
            found.add(".".join([alias_of[parts[0]], *parts[1:]]))
    return {name for name in found if name.split(".")[0] in PACKAGES}


def is_public(name):
    """Whether this is a public name, or an attribute of a public class, function or value."""
    owner = name.rpartition(".")[0]
    return name in PUBLIC or (owner not in MODULES and owner != "" and is_public(owner))


def private(code):
    return sorted(name for name in used(code) if not is_public(name))


@pytest.mark.parametrize("path", sources())
def test_examples_use_public_names_alone(path):
    assert private(sources()[path]) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (
            "from keras_filterprune.export.runtime import predict_tflite",
            "keras_filterprune.export.runtime.predict_tflite",
        ),
        ("import keras_filterprune.rebuild", "keras_filterprune.rebuild"),
        ("from keras_filterprune import demo", "keras_filterprune.demo"),
        (
            "def f():\n    import keras_filterprune as kfp\n    kfp.criteria.greedy.f()",
            "keras_filterprune.criteria.greedy",
        ),
        ("import keras_filterprune as kfp\nkfp.criteria.L3()", "keras_filterprune.criteria.L3"),
        ("from keras_filterprune import criteria\ncriteria.base", "keras_filterprune.criteria.base"),
        ("from tflite_bench.runner import Runner", "tflite_bench.runner.Runner"),
    ],
)
def test_the_check_can_fail(code, found):
    assert found in private(code)


def test_the_check_can_pass():
    code = (
        "import keras_filterprune as kfp, tflite_bench.arm\nfrom tflite_bench import benchmark\nfrom numpy import ma\n"
    )
    assert private(code + "kfp.PruningPlan.load(p).kept\nkfp.criteria.L2().scores\ntflite_bench.arm.CORES.keys()") == []
