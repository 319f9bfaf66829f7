"""Where in the user's code something went wrong, and what to do about it, in a sentence."""

from __future__ import annotations

import traceback
from pathlib import Path

from keras_filterprune.graph.keras_view import first_line
from keras_filterprune.opening.errors import CannotOpenError

_OTHERS = ("keras", "keras_filterprune", "tensorflow", "jax", "torch", "numpy", "optree")
_LONGEST = 160


def where(error: Exception) -> str:
    """Why a `call()` could not run on symbolic tensors: the line, and what was raised there."""
    if isinstance(error, CannotOpenError):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not set(_OTHERS) & set(Path(f.filename).parts)]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    text = first_line(error)
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    if "KerasTensor" in text:
        text += " With keras.ops in its place, it would open."
    if isinstance(error, ValueError) and frames and "einsum(" in (frames[-1].line or ""):
        text += " With lower-case letters and no spaces in its equation, it would open."
    return f"stops in its call(){at}: {type(error).__name__}: {text}"
