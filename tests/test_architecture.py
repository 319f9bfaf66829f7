"""The layout of DESIGN.md holds: imports point one way, only public Keras is used, and importing is cheap."""

import ast
import importlib
import operator
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_filterprune as kfp

ROOT = Path(kfp.__file__).parents[1]
# A module imports from the rows above its own and from its own package, never from a neighbour in its row.
ROWS = [
    ["errors"],
    ["checks", "interrupts", "parts", "progress", "quiet", "summarised", "version"],
    ["files", "elsewhere", "terminal"],
    ["checkpoint", "folder"],
    ["graph"],
    ["handlers"],
    ["tracing"],
    ["cost"],
    ["latency"],
    ["budgets", "probe"],
    ["criteria", "allocators"],
    ["rebuild"],
    ["opening"],
    ["analysis"],
    ["distillation"],
    ["compensators"],
    ["outcome"],
    ["report"],
    ["methods"],
    ["export"],
    ["measuring"],
    ["pruning"],
    ["layer_pruning", "studies"],
    ["training", "tfmot"],
    ["compression"],
    ["callbacks", "layers", "regularizers"],
    ["demo"],
    ["commands"],
    ["__main__"],
]
ROW_OF = {package: number for number, row in enumerate(ROWS) for package in row}
# What times the files it writes, and what writes, reports and is silent as it is; nothing else knows the benchmark.
MAY_BENCHMARK = {"commands", "compression", "demo", "files", "measuring", "progress", "quiet", "__main__"}
PRIVATE = ("keras.src", "tensorflow.python", "_inbound_nodes", "_nodes_by_depth", "_keras_history", "tf.keras")
HEAVY = ("keras", "tensorflow", "scipy", "matplotlib", "tensorflow_model_optimization", "jax", "torch")


def modules(package):
    """{dotted name: path} of every module of a top-level package."""
    paths = sorted(Path(ROOT, package).rglob("*.py"))
    assert paths
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in paths}


LIBRARY = modules("keras_filterprune")
BENCH = modules("tflite_bench")
ALL = LIBRARY | BENCH


def offenders(found, paths=ALL):
    """{dotted name of a module: what `found(name, source)` has to say of it}, where that is anything."""
    said = {name: found(name, path.read_text()) for name, path in paths.items()}
    return {name: what for name, what in said.items() if what}


def imports(source, name="keras_filterprune.x.y"):
    """Dotted names that a module imports anywhere, `from a import b` as `a.b`, relative ones resolved."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(name.split(".")[: -node.level]) + "." if node.level else ""
            found |= {f"{base}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names}
    return found


def package_of(dotted):
    """The row's entry a dotted name of keras_filterprune belongs to, None for the top level itself."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "keras_filterprune" and len(parts) > 1 and parts[1] != "__init__" else None


def wrong_imports(name, source):
    """Imports of module `name` that do not come from a row above or from its own package."""
    own = package_of(name)
    wrong = []
    for dotted in sorted(imports(source, name)):
        other = package_of(dotted)
        if dotted.split(".")[0] == "tflite_bench":
            if own not in MAY_BENCHMARK:
                wrong.append(dotted)
        elif dotted.split(".")[0] == "keras_filterprune" and other != own and ROW_OF.get(other, 99) >= ROW_OF[own]:
            wrong.append(dotted)
    return wrong


def test_every_package_has_a_row():
    assert {package_of(name) for name in LIBRARY} - {None} <= set(ROW_OF)


def test_imports_point_to_rows_above():
    assert offenders(wrong_imports, {name: path for name, path in LIBRARY.items() if package_of(name)}) == {}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("keras_filterprune.criteria.base", "from keras_filterprune.allocators.base import Allocation"),
        ("keras_filterprune.graph.types", "from keras_filterprune.handlers import Handler"),
        ("keras_filterprune.graph.types", "def f():\n    import keras_filterprune.rebuild.plan"),
        ("keras_filterprune.probe.data", "from ..rebuild import plan"),
        ("keras_filterprune.report.prune_report", "from keras_filterprune import methods"),
        ("keras_filterprune.export.tflite", "import tflite_bench"),
        ("keras_filterprune.cost.model", "import keras_filterprune"),
    ],
)
def test_the_import_check_can_fail(name, line):
    assert wrong_imports(name, line)


def test_the_import_check_can_pass():
    line = "import keras\nfrom keras_filterprune.graph.types import Group\nfrom keras_filterprune.criteria import base"
    assert wrong_imports("keras_filterprune.criteria.x", line) == []


def circles(sources):
    """Groups of modules that import each other, given {dotted name: source}; what a package re-exports counts too."""
    names = {name.removesuffix(".__init__"): name for name in sources}
    arrows = {}
    for name, source in sources.items():
        found = {dotted if dotted in names else dotted.rpartition(".")[0] for dotted in imports(source, name)}
        arrows[name.removesuffix(".__init__")] = (found & set(names)) - {name.removesuffix(".__init__")}
    reached = {name: set() for name in arrows}
    for name in arrows:
        waiting = list(arrows[name])
        while waiting:
            if (other := waiting.pop()) not in reached[name]:
                reached[name].add(other)
                waiting += arrows[other]
    return {
        frozenset({name, *(o for o in reached[name] if name in reached[o])}) for name in arrows if name in reached[name]
    }


@pytest.mark.parametrize("package", [LIBRARY, BENCH], ids=["keras_filterprune", "tflite_bench"])
def test_no_modules_import_each_other(package):
    assert circles({name: path.read_text() for name, path in package.items()}) == set()


def test_the_check_for_circles_can_fail():
    sources = {
        "p.a": "from p.b import x",
        "p.b": "def f():\n    import p.c",
        "p.c": "from p import a",
        "p.d": "import p.a",
    }
    assert circles(sources) == {frozenset({"p.a", "p.b", "p.c"})}
    assert circles({"p.a": "from p.b import x", "p.b": "import os"}) == set()


def test_the_benchmark_stands_alone():
    def borrowed(name, source):
        return {dotted.split(".")[0] for dotted in imports(source, name)} & {"keras_filterprune", "keras", "tensorflow"}

    assert offenders(borrowed, BENCH) == {}


# ------------------------------------------------------------------------------------------------------- code


def without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def forbidden(source):
    """What a source text must not hold: private Keras, print, assert, bare except."""
    tree = without_docstrings(ast.parse(source))
    text = ast.unparse(tree)
    found = [word for word in PRIVATE if word in text]
    found += [d for d in imports(source) if d.startswith(("keras.src", "tensorflow.python", "tensorflow.keras"))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "breakpoint"):
            found.append(node.func.id)
        if isinstance(node, ast.Assert):
            found.append("assert")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("bare except")
    return found


def test_no_private_keras_no_print_no_assert_no_bare_except():
    assert offenders(lambda name, source: forbidden(source)) == {}


@pytest.mark.parametrize(
    "line",
    [
        "from keras.src import ops",
        "import keras.src.ops as ops",
        "from tensorflow.python import x",
        "from tensorflow import keras",
        "x._keras_history",
        "getattr(layer, '_inbound_nodes')",
        "y = tf.keras.Model",
        "print(3)",
        "def f():\n    assert x",
        "try:\n    x\nexcept:\n    y",
    ],
)
def test_the_code_check_can_fail(line):
    assert forbidden(line)


def test_the_code_check_leaves_words_in_docstrings_alone():
    assert forbidden('"""Not tf.keras, no _keras_history."""\n# print(x)\nconsole.print(3)') == []


def long(name, source):
    """{what is too long: its lines}."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    found = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno - node.lineno >= 80}
    return found | ({"module": len(source.splitlines())} if len(source.splitlines()) > 400 else {})


def test_modules_and_functions_are_short():
    assert offenders(long) == {}
    assert long("a", "def f():\n" + 79 * "\n" + "    pass") == {"f": 81} and long("a", 401 * "\n") == {"module": 401}


def test_every_module_says_what_it_is():
    assert offenders(lambda name, source: not ast.get_docstring(ast.parse(source))) == {}


# ------------------------------------------------------------------------------------------------ import hygiene


def loaded_by(statement, names=HEAVY):
    code = f"{statement}; import sys; sys.stdout.write(' '.join(m for m in {names!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    ["import keras_filterprune", "from keras_filterprune import errors, __all__", "import keras_filterprune.__main__"],
)
def test_importing_is_cheap(statement):
    assert loaded_by(statement) == []


def test_importing_the_benchmark_is_cheap():
    assert loaded_by("import tflite_bench", (*HEAVY, "keras_filterprune", "ai_edge_litert")) == []


def test_the_hygiene_check_can_fail():
    assert loaded_by("import keras_filterprune, scipy") == ["scipy"]


# --------------------------------------------------------------------------------------------------- public names


def reexports():
    """{name: home module} that `keras_filterprune/__init__.py` shows to type checkers."""
    tree = ast.parse(Path(kfp.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname, f"write `{alias.name} as {alias.name}`: an explicit re-export"
            found[alias.name] = node.module
    return found


def test_public_names_are_what_type_checkers_see():
    assert kfp.__all__ == sorted(reexports())
    assert len(set(kfp.__all__)) == len(kfp.__all__)


def test_public_names_resolve_to_documented_objects():
    for name, home in reexports().items():
        value, module = getattr(kfp, name), f"{home}.{name}" if home == "keras_filterprune" else home
        assert value is (
            importlib.import_module(module) if module != home else getattr(importlib.import_module(home), name)
        )
        assert value.__doc__, name
        assert name in dir(kfp)


def test_the_top_level_is_small_and_shows_nothing_else():
    assert sorted(name for name in dir(kfp) if name[0] != "_") == kfp.__all__
    assert len(kfp.__all__) <= 45
    assert kfp.__version__


def test_names_that_moved_still_work_and_say_where_to():
    for old, new in kfp._MOVED.items():
        with pytest.warns(DeprecationWarning, match=rf"kfp\.{old} is kfp\.{new} now\."):
            found = getattr(kfp, old)
        assert found is operator.attrgetter(new)(kfp), old


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'keras_filterprune' has no attribute 'prune'"):
        _ = kfp.prune
    assert not hasattr(kfp, "MODULE")


def test_star_import_and_packages():
    names = {}
    exec("from keras_filterprune import *", names)
    assert set(kfp.__all__) <= set(names)
    for package in {package_of(n) for n in LIBRARY} - {None, "__main__", "demo"}:
        importlib.import_module(f"keras_filterprune.{package}")


SAVED = {
    "FilterPruning": lambda model: kfp.apply_filter_pruning(model),
    "BranchGate": lambda model: keras.Sequential([model, kfp.layers.BranchGate()]),
    "BatchBridgeout": lambda model: kfp.apply_bridgeout(model),
    "GroupLasso": lambda model: kfp.apply_penalty(model, kfp.regularizers.GroupLasso()),
    "BridgePenalty": lambda model: kfp.apply_penalty(model, kfp.regularizers.BridgePenalty()),
    **dict.fromkeys(
        ("AddedLoss", "Constant", "PerSample", "Weight", "WeightedSum"),
        lambda model: kfp.open_model(keras.Sequential([model, Token()])),
    ),
}


class Token(keras.layers.Layer):
    """Holds weights, looks up a constant, repeats both for every sample, and adds a loss."""

    def build(self, shape):
        self.token = self.add_weight((1, 1, shape[-1]), "ones", name="token")
        self.mix = self.add_weight((shape[-1], shape[-1]), "ones", name="mix")
        self.places = keras.layers.Embedding(36, shape[-1])
        self.places.build((None,))

    def call(self, x):
        batch = keras.ops.shape(x)[0]
        x = keras.ops.reshape(x, (batch, -1, x.shape[-1])) + self.places(keras.ops.arange(36))
        x = keras.ops.einsum("btc,cd->btd", x, self.mix)
        self.add_loss(keras.ops.mean(x))
        return keras.ops.concatenate([keras.ops.broadcast_to(self.token, (batch, 1, x.shape[-1])), x], axis=1)


IMPORTS = "import keras, keras_filterprune", "import keras_filterprune, keras"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a saved model of every class."""
    folder = tmp_path_factory.mktemp("saved")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 1)])
    for number, make in enumerate(set(SAVED.values())):
        make(model).save(folder / f"{number}.keras")
    return folder


@pytest.mark.parametrize("line", IMPORTS)
def test_saved_models_load_after_the_plain_import(saved, line):
    code = f"{line}\nfor p in {[*map(str, saved.iterdir())]}: keras.saving.load_model(p).get_config()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_saved_class_is_known_before_its_module_is_loaded():
    """What `register_keras_serializable` marks anywhere stands in the table of the plain import."""
    marked = {
        node.name
        for path in LIBRARY.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any("register_keras_serializable" in ast.unparse(d) for d in node.decorator_list)
    }
    assert marked == set(SAVED)
