"""How a model was compiled, and what of it belongs to which output: the one place that knows where Keras keeps it."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import keras

from keras_filterprune.graph.keras_view import output_names
from keras_filterprune.graph.types import ModelView

# What `fit` is made of, and a class of models may do in a way of its own.
STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """What a model was compiled with: the very objects, `model.optimizer` left out.

    Args:
        model: a compiled model.

    Returns:
        Keyword arguments of `keras.Model.compile`.
    """
    # Keras has no public way to its metrics but for their configurations.
    given = model._compile_config.config
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    return {
        "loss": model.loss,
        "loss_weights": given["loss_weights"],
        "metrics": given["metrics"],
        "weighted_metrics": given["weighted_metrics"],
        "run_eagerly": model.run_eagerly,
        "steps_per_execution": model.steps_per_execution,
        "jit_compile": model.jit_compile,
        "auto_scale_loss": scaled or model.dtype_policy.name != "mixed_float16",
    }


def own_steps(model: keras.Model, *names: str) -> str:
    """The parts of `fit` that the class of a model does in its own way, as "Mine's own train_step()"; "" for none.

    Args:
        model: any model.
        names: those that matter (all).
    """
    kind = type(model)
    found = [name for name in names or STEPS if getattr(kind, name, None) is not getattr(keras.Model, name, None)]
    return f"{kind.__name__}'s own {', '.join(f'{name}()' for name in found)}" if found else ""


def warn_of_own_training(view: ModelView) -> None:
    """Warn where a plain model stands for one that trains in its own way: its `fit` runs, and trains otherwise."""
    steps = own_steps(view.given, "train_step", "compute_loss")
    if steps and view.given.compiled and view.given.loss is not None:
        warnings.warn(
            f"The result is a plain model, whose fit() goes by the compiled loss: {steps} is not part of it. Train it "
            "in a keras.Model of (result.inputs, result.outputs) with the same methods.",
            stacklevel=4,
        )


def per_output(model: keras.Model, given: Any) -> list[Any]:
    """What is given for the outputs of a model (losses, weights), as a list, an entry for each of them.

    Args:
        model: a functional or Sequential model.
        given: one value for all, a list, a dict by the outputs' names, or all of them in the structure of the outputs.
    """
    keys = output_keys(model)
    if keras.tree.is_nested(given) and _is_deep(output_structure(model)):
        with contextlib.suppress(TypeError, ValueError, KeyError):
            return _like(output_structure(model), given)
    if isinstance(given, dict):
        return [given.get(key, given.get(name)) for key, name in keys]
    if isinstance(given, list | tuple):
        # Several losses may stand for a single output.
        return list(given) if len(given) == len(keys) else [given[0]] * len(keys)
    return [given] * len(keys)


def output_keys(model: keras.Model) -> list[tuple[str, str]]:
    """(key, name) of every output of a model; a key differs from the name where the model gives a dict."""
    names, structure = output_names(model), output_structure(model)
    flat = isinstance(structure, dict) and not _is_deep(structure)
    return list(zip(sorted(structure) if flat else names, names, strict=True))


def _is_deep(structure: Any) -> bool:
    """Whether there are structures in a structure."""
    parts = structure.values() if isinstance(structure, dict) else structure
    return keras.tree.is_nested(structure) and any(map(keras.tree.is_nested, parts))


def _like(structure: Any, given: Any) -> list[Any]:
    """What is given in a structure, flat, whatever Keras has made of its dicts; raises where that is another one."""
    if isinstance(structure, dict):
        return [value for key in sorted(structure) for value in _like(structure[key], given[key])]
    if isinstance(structure, list | tuple):
        return [value for part, own in zip(structure, given, strict=True) for value in _like(part, own)]
    return [given]


def output_structure(model: keras.Model) -> Any:
    """The outputs of a model in their structure. Sequential models know their one from the first call on."""
    return model.outputs[0] if isinstance(model, keras.Sequential) else model.output
