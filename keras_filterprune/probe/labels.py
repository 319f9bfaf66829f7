"""Labels as losses and metrics take them: whose output they are, of which shape, and which numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.compiled import output_keys
from keras_filterprune.graph.keras_view import first_line
from keras_filterprune.graph.types import ModelView

# Losses and metrics of Keras that take class numbers, shares in [0, 1], class numbers perhaps, and labels of some other
# form. All others take numbers of the outputs' shape.
_CLASSES = {
    "sparsecategoricalcrossentropy",
    "categoricalgeneralizedcrossentropy",
    "sparsecategoricalaccuracy",
    "sparsetopkcategoricalaccuracy",
}
_SHARES = {
    "binarycrossentropy",
    "binaryfocalcrossentropy",
    "categoricalcrossentropy",
    "categoricalfocalcrossentropy",
    "auc",
    "precision",
    "recall",
}
_REGIONS = {"iou", "meaniou"}
_OTHERS = {"ctc", "circle", "binaryiou", "onehotiou", "onehotmeaniou"}


def labels_by_output(view: ModelView, labels: Any, count: int, purpose: str) -> list[np.ndarray | None]:
    """Labels of every output of a model, None for an output without.

    Args:
        view: the model.
        labels: as the data gives them: an array, a list of them, or a dict by the outputs' names.
        count: number of samples.
        purpose: what needs them, for messages.

    Raises:
        CalibrationDataError: they are those of other outputs, or not numbers, a row for every sample.
    """
    keys = output_keys(view.model)
    if isinstance(labels, dict):
        found = [labels.get(key, labels.get(name)) for key, name in keys]
        if not set(labels) <= {name for pair in keys for name in pair} or all(array is None for array in found):
            raise CalibrationDataError(
                f"{purpose} expects labels by the names of outputs, {[key for key, _ in keys]}. Received: "
                f"{sorted(map(str, labels))}."
            )
    else:
        found = list(labels) if isinstance(labels, list | tuple) else [labels]
        if len(found) != len(keys):
            raise CalibrationDataError(
                f"{purpose} expects an array of labels for each of {[key for key, _ in keys]}. Received: {len(found)} "
                "arrays."
            )
    for (key, _), array in zip(keys, found, strict=True):
        if array is not None:
            _check_numbers(array, count, f"{purpose} expects", key)
    return found


def _check_numbers(labels: Any, count: int, expects: str, output: str) -> None:
    if not isinstance(labels, np.ndarray) or labels.shape[:1] != (count,):
        shapes = keras.tree.map_structure(np.shape, labels)
        raise CalibrationDataError(
            f"{expects} a row of labels for each of {count} samples at output '{output}'. Received: shape {shapes}."
        )
    if labels.dtype.kind not in "fiub":
        raise CalibrationDataError(f"{expects} labels that are numbers at output '{output}'. Received: {labels.dtype}.")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise CalibrationDataError(f"{expects} finite labels at output '{output}'. Received: NaN or infinite values.")


def check_labels(
    what: Any, labels: np.ndarray, shape: tuple[int | None, ...], output: str, called: str | None = None
) -> None:
    """Refuse labels that do not fit a loss or metric of Keras; what others take is found out by calling them.

    Args:
        what: a loss or metric: a function, or an object.
        labels: (samples, ...), finite.
        shape: of the output, None where it is open.
        output: its name.
        called: what the loss or metric is called (None: its own name).

    Raises:
        CalibrationDataError: they do not fit.
    """
    name, settings = _keras_name(what)
    if name is None or name in _OTHERS:
        return
    expects = f"'{called or name_of(what)}' at output '{output}' expects"
    if name in _REGIONS:
        if settings["sparse_y_true"]:
            _check_range(labels, settings["num_classes"], settings, expects)
    elif name in _CLASSES:
        _check_classes(labels, shape, settings, expects)
    elif not any(fits(labels.shape, wanted) for wanted in (shape, (*shape, 1), *[shape[:-1]] * (shape[-1] == 1))):
        raise CalibrationDataError(f"{expects} labels of shape {_shown(shape)}. Received: shape {labels.shape}.")
    elif name in _SHARES and labels.size and not 0 <= labels.min() <= labels.max() <= 1:
        raise CalibrationDataError(f"{expects} labels from 0 to 1. Received: {labels.min():g} to {labels.max():g}.")


def _check_classes(labels: np.ndarray, shape: tuple[int | None, ...], settings: dict[str, Any], expects: str) -> None:
    axis = (settings.get("axis") or -1) % len(shape)
    one, classes = (*shape[:axis], 1, *shape[axis + 1 :]), shape[axis]
    without = shape[:axis] + shape[axis + 1 :]
    if not fits(labels.shape, one) and not fits(labels.shape, without):
        raise CalibrationDataError(
            f"{expects} class numbers of shape {_shown(without)}, not one-hot. Received: shape {labels.shape}."
        )
    _check_range(labels, classes, settings, expects)


def _check_range(labels: np.ndarray, classes: int | None, settings: dict[str, Any], expects: str) -> None:
    if (labels != np.round(labels)).any():
        raise CalibrationDataError(f"{expects} class numbers, which are whole. Received: fractions ({labels.dtype}).")
    known = labels[labels != settings["ignore_class"]] if settings.get("ignore_class") is not None else labels
    if classes is not None and known.size and not 0 <= known.min() <= known.max() < classes:
        raise CalibrationDataError(
            f"{expects} class numbers from 0 to {classes - 1}. Received: {known.min():g} to {known.max():g}."
        )


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether an array has a shape, any number of samples, and where it is None."""
    pairs = zip(shape[1:], wanted[1:], strict=False)
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in pairs)


def _shown(shape: tuple[int | None, ...]) -> str:
    sizes = ["any" if size is None else str(size) for size in shape[1:]]
    return f"(samples, {', '.join(sizes)})" if sizes else "(samples,)"


@contextlib.contextmanager
def refused_labels(what: str, labels: list[np.ndarray | None]) -> Iterator[None]:
    """`CalibrationDataError` for whatever a loss or a metric says to labels that it does not take."""
    try:
        yield
    except Exception as error:
        shapes = [None if array is None else array.shape for array in labels]
        raise CalibrationDataError(
            f"{what} refuses the labels, of shape {', '.join(map(str, shapes))}: {first_line(error)}"
        ) from error


def as_tensor(array: np.ndarray) -> Any:
    """As `fit` hands labels over: fractions in Keras' precision."""
    return keras.ops.convert_to_tensor(array, keras.config.floatx() if array.dtype.kind == "f" else None)


def name_of(what: Any) -> str:
    """A loss or metric in a word."""
    if isinstance(what, str):
        return what
    if isinstance(what, functools.partial):
        return name_of(what.func)
    return str(getattr(what, "name", None) or getattr(what, "__name__", type(what).__name__))


def _keras_name(what: Any) -> tuple[str | None, dict[str, Any]]:
    """A name in lower case of what is Keras' own, else None; and its settings."""
    settings: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        what = keras.losses.get(what) if isinstance(what, str) else what
    while isinstance(what, functools.partial):
        what, settings = what.func, what.keywords | settings
    named = what if hasattr(what, "__name__") else type(what)
    known = any(getattr(home, named.__name__, None) is named for home in (keras.losses, keras.metrics))
    if known and named is not what:
        settings = what.get_config()
    return named.__name__.replace("_", "").lower() if known else None, settings
