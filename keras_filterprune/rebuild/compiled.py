"""A clone that is compiled as its original is, with a fresh optimizer and metrics of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_filterprune.graph.compiled import compile_arguments
from keras_filterprune.graph.keras_view import first_line
from keras_filterprune.graph.live import LiveObjects

# What a configuration that does not describe its object makes of it.
_UNBUILDABLE = (TypeError, ValueError, AttributeError, NotImplementedError)


def compile_like(model: keras.Model, twin: keras.Model, variables: Mapping[int, Any]) -> list[str]:
    """Compile a clone as the original is compiled, with a fresh optimizer and metrics of its own.

    Args:
        model: a compiled model.
        twin: its clone.
        variables: {id of a variable of the model: the clone's}.

    Returns:
        What could not be carried over, in sentences.
    """
    if hasattr(model.optimizer, "optimizers"):
        return [
            f"The result is not compiled, because {type(model.optimizer).__name__} knows by the paths of variables "
            "which optimizer is whose. Call compile() again, with optimizers of its own."
        ]
    try:
        arguments = compile_arguments(model)
        optimizer = LiveObjects().clone(model.optimizer)
        _exclude_like(model, optimizer, variables)
    except _UNBUILDABLE as error:
        return [
            f"The result is not compiled, because {type(model.optimizer).__name__} cannot be built from its "
            f"get_config() ({first_line(error)}) Call compile() again."
        ]
    notes = []
    for kind in ("metrics", "weighted_metrics"):
        try:
            arguments[kind] = keras.tree.map_structure(_metric_like, arguments[kind])
        except _UNBUILDABLE as error:
            arguments[kind] = None
            notes.append(
                f"The result is compiled without {kind}, because one of them cannot be built from its get_config() "
                f"({first_line(error)}) Call compile() again."
            )
    # Neither have Sequential models names for their outputs, nor subclassed ones.
    names = getattr(model, "output_names", None)
    if names and getattr(twin, "output_names", None) != names:
        # The layers at the ends are called differently, in the same order.
        for kind in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            arguments[kind] = _in_order(arguments[kind], names)
        twin.output_names = list(names)
    twin.compile(optimizer, **arguments)
    if model.optimizer.built:
        # Otherwise fit() does, when activations with weights are built too.
        twin.optimizer.build(twin.trainable_variables)
    return notes


def _in_order(given: Any, names: list[str]) -> Any:
    """What stands under the names of outputs, as a list."""
    return [given.get(name) for name in names] if isinstance(given, dict) and set(given) <= set(names) else given


def _metric_like(metric: Any) -> Any:
    """A metric that counts for itself; functions and names hold no state."""
    return LiveObjects().clone(metric) if isinstance(metric, keras.metrics.Metric) else metric


def _exclude_like(model: keras.Model, optimizer: Any, variables: Mapping[int, Any]) -> None:
    """Exclude the variables from weight decay that the original's optimizer leaves out, which no configuration says."""
    old, new = (getattr(o, "inner_optimizer", o) for o in (model.optimizer, optimizer))
    left_out = [v for v in model.weights if not old._use_weight_decay(v)] if old.weight_decay else []
    if left_out:
        new.exclude_from_weight_decay(var_list=[variables[id(v)] for v in left_out if id(v) in variables])
