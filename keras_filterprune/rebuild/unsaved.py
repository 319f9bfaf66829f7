"""Which layers keep Keras from saving a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from keras_filterprune.graph.keras_view import first_line
from keras_filterprune.graph.live import config_error, has_config


def unsaved(result: keras.Model, original: keras.Model) -> list[str]:
    """Sentences on why Keras cannot save a model; [] where it can.

    Args:
        result: a functional or Sequential model.
        original: what it was made of: where Keras saves that, a layer around the one in question has spoken for it.
    """
    if has_config(result):
        return []
    whose = "though it saves the original" if has_config(original) else "nor the original"
    return [
        f"Keras cannot save the result, {whose}: get_config() of layer '{op.name}' ({type(op).__name__}) raises "
        f"{type(error).__name__}: {first_line(error).rstrip('.')}. Let it return the arguments of the constructor; "
        "weights alone are saved by save_weights()."
        for op in _parts(result)
        if (error := config_error(op)) is not None
    ]


def _parts(model: keras.Model) -> Iterator[Any]:
    """The operations of a model with a graph, and of those in it."""
    for op in getattr(model, "operations", model.layers):
        if isinstance(op, keras.Sequential) or hasattr(op, "operations"):
            yield from _parts(op)
        else:
            yield op
