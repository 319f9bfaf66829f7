"""What users may import: the top level and its namespaces, and the benchmark's two packages."""

import ast
import inspect
from pathlib import Path

import keras_filterprune as kfp
import tflite_bench
import tflite_bench.arm


def exported(module):
    """Names that a namespace re-exports (`import x as x`) or defines."""
    names = []
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
    return [name for name in names if not name.startswith("_") and not inspect.ismodule(getattr(module, name))]


def namespaces():
    """{name: module} of the namespaces of the top level."""
    return {name: getattr(kfp, name) for name in kfp.__all__ if inspect.ismodule(getattr(kfp, name))}


def public_paths():
    """Dotted names of everything that may be imported."""
    found = {"keras_filterprune": [*kfp.__all__, "__version__"]}
    found |= {f"keras_filterprune.{name}": exported(module) for name, module in namespaces().items()}
    found |= {module.__name__: module.__all__ for module in (tflite_bench, tflite_bench.arm)}
    return {*found, *(f"{module}.{name}" for module, names in found.items() for name in names)}
