"""What users may import: the top level and its namespaces, and the benchmark's two packages."""

import inspect

import keras_filterprune as kfp
import tflite_bench
import tflite_bench.arm


def exported(module):
    """Names that a namespace lists, or defines where it has no list."""
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return getattr(module, "__all__", None) or [name for name in own if not name.startswith("_")]


def namespaces():
    """{name: module} of the namespaces of the top level."""
    return {name: getattr(kfp, name) for name in kfp.__all__ if inspect.ismodule(getattr(kfp, name))}


def public_paths():
    """Dotted names of everything that may be imported."""
    found = {"keras_filterprune": [*kfp.__all__, "__version__"]}
    found |= {f"keras_filterprune.{name}": exported(module) for name, module in namespaces().items()}
    found |= {module.__name__: module.__all__ for module in (tflite_bench, tflite_bench.arm)}
    return {*found, *(f"{module}.{name}" for module, names in found.items() for name in names)}
