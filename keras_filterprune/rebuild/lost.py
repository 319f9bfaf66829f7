"""What a class of model can do that a plain functional model cannot."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.graph.compiled import STEPS, own_steps

# What every model and layer may define, and a graph of layers stands for.
_COMPUTES = frozenset(
    "call build get_config from_config compute_output_shape compute_output_spec compute_mask get_build_config "
    "build_from_config add_loss".split()
)
_MOST = 5


def lost_with(model: Any) -> list[str]:
    """Sentences on what the class of a model adds to a graph of layers, which the result does not have."""
    kind, steps = type(model), own_steps(model)
    own = {name for parent in kind.__mro__ if _is_users(parent) for name in vars(parent) if not name.startswith("_")}
    methods = sorted(name for name in own - _COMPUTES - {*STEPS} if callable(getattr(kind, name)))
    methods += ["preprocessor"] if getattr(model, "preprocessor", None) is not None else []
    notes = []
    if steps:
        notes.append(f"The result is a plain model: {steps} is not part of it.")
    if methods:
        more = ", ..." if len(methods) > _MOST else ""
        notes.append(f"{kind.__name__} also has {', '.join(methods[:_MOST])}{more}: use them with the original class.")
    return notes


def _is_users(kind: type) -> bool:
    return issubclass(kind, keras.Model) and not kind.__module__.startswith("keras.")
