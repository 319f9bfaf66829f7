"""How well outputs do, by any metric on labels of any kind: one number, and what single samples say of it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import shown, unknown_name
from keras_filterprune.errors import CalibrationDataError, InvalidValueError
from keras_filterprune.graph.compiled import output_keys, own_steps, per_output
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.accuracy import accuracy_of, flat, minus_error
from keras_filterprune.probe.inputs import Inputs, calibration_inputs, inputs_and_labels
from keras_filterprune.probe.labels import as_tensor, check_labels, labels_by_output, name_of, refused_labels
from keras_filterprune.probe.losses import CompiledLoss, has_loss

# What has a name of its own here; all others are names of Keras.
NAMES = ("auto", "accuracy", "error", "loss")
_EXPECTED = f"one of {', '.join(NAMES)}, a metric or loss of Keras, its name, or a function"
# Metrics of Keras of which less is better.
_ERRORS = (
    keras.metrics.MeanSquaredError,
    keras.metrics.RootMeanSquaredError,
    keras.metrics.MeanAbsoluteError,
    keras.metrics.MeanAbsolutePercentageError,
    keras.metrics.MeanSquaredLogarithmicError,
    keras.metrics.LogCoshError,
    keras.metrics.Hinge,
    keras.metrics.SquaredHinge,
    keras.metrics.CategoricalHinge,
    keras.metrics.KLDivergence,
    keras.metrics.Poisson,
    keras.metrics.BinaryCrossentropy,
    keras.metrics.CategoricalCrossentropy,
    keras.metrics.SparseCategoricalCrossentropy,
    keras.metrics.FalsePositives,
    keras.metrics.FalseNegatives,
)
# These count values, and compare nothing.
_COUNTERS = (keras.metrics.Mean, keras.metrics.Sum)
# Parts of the samples that are left out in turn, where a metric is no mean over samples.
_LEFT_OUT = 20

# function(labels, outputs) -> one number, or one per sample, higher = better
Function = Callable[[Any, list[np.ndarray]], Any]


class Score:
    """A metric for the labels at hand. It can be pickled wherever its function can.

    Args:
        name: of the metric.
        function: of labels, as `score_of` gives them, and outputs.
        labelled: it compares outputs with labels (True), not with the outputs of the whole network.
    """

    def __init__(self, name: str, function: Function, labelled: bool = True):
        self.name, self.labelled = name, labelled
        self._function = function

    def check(self, labels: Any, outputs: list[np.ndarray]) -> None:
        """Raise `CalibrationDataError` unless the whole network's outputs have a value."""
        value = self.mean(labels, outputs)
        if not np.isfinite(value):
            raise CalibrationDataError(f"'{self.name}' is {value} for the whole network: nothing compares with it.")

    def mean(self, labels: Any, outputs: list[np.ndarray]) -> float:
        """The metric, higher = better."""
        return float(np.mean(self._called(labels, outputs)))

    def values(self, labels: Any, outputs: list[np.ndarray]) -> np.ndarray:
        """Numbers whose mean is the metric, and whose scatter says how sure it is, float64 of shape (k,).

        One per sample. Where a metric is no mean over samples, the jackknife's pseudo-values of 20 parts.
        """
        found = self._called(labels, outputs)
        if found.ndim:
            return found
        parts = np.arange(len(outputs[0])) % min(_LEFT_OUT, len(outputs[0]))
        kept = [parts != part for part in range(parts.max() + 1)]
        without = np.array([self._called(_rows(labels, rows), _rows(outputs, rows)) for rows in kept])
        # Their mean is the metric's estimate without bias; the metric itself is wanted.
        return found + (len(kept) - 1) * (without.mean() - without)

    def _called(self, labels: Any, outputs: list[np.ndarray]) -> np.ndarray:
        found = np.asarray(self._function(labels, outputs), np.float64)
        if found.shape not in ((), (len(outputs[0]),)):
            raise InvalidValueError(
                f"metric '{self.name}' is to return one number, or one number per sample, shape ({len(outputs[0])},). "
                f"Received: shape {found.shape}."
            )
        return found


def _rows(arrays: Any, rows: np.ndarray) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[rows], arrays)


def check_metric(name: str, metric: Any) -> Any:
    """`metric`, or an error that says what an argument of that name takes."""
    by_output = isinstance(metric, dict | list | tuple)
    given = [metric] if not by_output else list(metric.values() if isinstance(metric, dict) else metric)
    if not any(entry is not None for entry in given):
        raise unknown_name(name, metric, _EXPECTED, NAMES)
    for entry in given:
        named = isinstance(entry, str) and entry in (("accuracy",) if by_output else NAMES)
        if not named and (entry is not None or not by_output):
            _thing(name, entry)
    return metric


def needs_labels(metric: Any) -> bool:
    """Whether a metric compares outputs with labels."""
    return not isinstance(metric, str) or metric != "error"


def measured(view: ModelView, data: Any, metric: Any, most: int) -> tuple[Score, Inputs, Any]:
    """A metric for a model and data, the samples, and their labels as the metric wants them.

    Args:
        view: the model.
        data: calibration data, of which the first samples are used.
        metric: see `score_of`; or a `Score`, for labels that fit it.
        most: samples.

    Raises:
        CalibrationDataError: there is no data, or labels are missing or do not fit.
    """
    name = metric.name if isinstance(metric, Score) else metric_name(check_metric("metric", metric))
    if data is None:
        raise CalibrationDataError(f"measure='{name}' needs samples to measure on: pass data=.")
    if not (metric.labelled if isinstance(metric, Score) else needs_labels(metric)):
        inputs, labels = calibration_inputs(data, view, most), None
    else:
        inputs, labels, _ = inputs_and_labels(data, view, f"'{name}'", most)
    score, labels = (metric, labels) if isinstance(metric, Score) else score_of(metric, view, labels, len(inputs))
    return score, inputs, labels


def score_of(metric: Any, view: ModelView, labels: Any, count: int) -> tuple[Score, Any]:
    """A metric for a model and labels, and the labels as it wants them.

    Args:
        metric: "auto", "accuracy", "error", "loss", a metric or loss of Keras or its name, a function; or several by
            output, in a list or dict.
        view: the model.
        labels: as the data gives them, None for "error".
        count: number of samples.

    Raises:
        CalibrationDataError: the labels do not fit.
    """
    if metric == "error":
        return Score("error", minus_error, labelled=False), None
    if isinstance(metric, str) and metric == "auto":
        return _sensible(view, labels, count)
    if _is_own(metric):
        return Score(name_of(metric), _Own(metric)), labels
    found = labels_by_output(view, labels, count, f"'{metric_name(metric)}'")
    if isinstance(metric, str) and metric == "loss":
        return Score("loss", _Loss(_compiled_loss(view, found))), found
    functions = []
    kinds = zip(output_keys(view.model), _each(view, metric), found, view.model.outputs, strict=True)
    for number, ((key, _), one, own, output) in enumerate(kinds):
        if one is not None and own is not None:
            functions.append((number, _of_one(one, own, tuple(output.shape), key)))
    if not functions:
        raise CalibrationDataError(f"'{metric_name(metric)}' is of outputs that have no labels.")
    return Score(metric_name(metric), _ByOutput(functions)), found


def _sensible(view: ModelView, labels: Any, count: int) -> tuple[Score, Any]:
    """Accuracy of classes, else the compiled loss, else the squared error of numbers."""
    try:
        return score_of("accuracy", view, labels, count)
    except CalibrationDataError:
        if has_loss(view):
            return score_of("loss", view, labels, count)
        with contextlib.suppress(CalibrationDataError):
            return score_of("mse", view, labels, count)
        raise


def _each(view: ModelView, metric: Any) -> list[Any]:
    outputs = len(view.model.outputs)
    known = {name for pair in output_keys(view.model) for name in pair}
    wrong_names = isinstance(metric, dict) and not set(metric) <= known
    if wrong_names or (isinstance(metric, list | tuple) and len(metric) != outputs):
        raise InvalidValueError(
            f"metrics by output are one for each of {[key for key, _ in output_keys(view.model)]}. Received: "
            f"{shown(metric)}."
        )
    return per_output(view.model, metric)


def metric_name(metric: Any) -> str:
    """A metric, or several by output, in words."""
    if isinstance(metric, dict):
        return ", ".join(f"{key} {metric_name(one)}" for key, one in metric.items() if one is not None)
    if isinstance(metric, list | tuple):
        return ", ".join(metric_name(one) for one in metric if one is not None)
    return name_of(metric)


def _is_own(metric: Any) -> bool:
    """Whether it is a function that is nobody's but the user's: it gets labels as they are."""
    name = getattr(metric, "__name__", "")
    of_keras = any(getattr(home, name, None) is metric for home in (keras.losses, keras.metrics))
    return callable(metric) and not of_keras and not isinstance(metric, keras.metrics.Metric | keras.losses.Loss)


def _thing(name: str, metric: Any) -> Any:
    """What a name of Keras stands for; objects and functions as they are."""
    found = metric
    if isinstance(metric, str):
        try:
            found = _by_name(metric)
        except TypeError as error:
            raise InvalidValueError(
                f"{name} is the name of a metric with settings: pass an object instead, MeanIoU(num_classes=21) say. "
                f"Received: {name}={metric!r}."
            ) from error
    if isinstance(found, str) or not callable(found) or isinstance(found, type) or type(found) in _COUNTERS:
        raise unknown_name(name, metric, _EXPECTED, (*NAMES, *_keras_names()))
    return found


def _by_name(name: str) -> Any:
    for home in (keras.metrics, keras.losses):
        with contextlib.suppress(ValueError):
            return home.get(name)
    return name


def _keras_names() -> list[str]:
    return [name for name, value in vars(keras.metrics).items() if callable(value) and name.islower()]


def _of_one(metric: Any, labels: np.ndarray, shape: tuple[int | None, ...], key: str) -> Callable[[Any, Any], Any]:
    """function(labels, output) of one output."""
    if isinstance(metric, str) and metric == "accuracy":
        return accuracy_of(labels, shape, key)
    thing = _thing("metric", metric)
    if _is_own(thing):
        return _OwnOfOne(thing)
    name = metric_name(metric)
    check_labels(thing, labels, shape, key, name)
    return _Keras(thing, name)


def _compiled_loss(view: ModelView, labels: list[np.ndarray | None]) -> CompiledLoss:
    if not has_loss(view):
        raise CalibrationDataError(
            f"'loss' is the one a model is compiled with, and '{view.name}' is not: compile() it."
        )
    if steps := own_steps(view.given, "train_step", "compute_loss"):
        warnings.warn(f"metric 'loss' is the compiled one: {steps} is not looked at.", stacklevel=2)
    loss = CompiledLoss(view.model)
    loss.check(labels)
    return loss


class _ByOutput:
    """Mean over outputs."""

    def __init__(self, functions: Sequence[tuple[int, Callable[[Any, Any], Any]]]):
        self._functions = functions

    def __call__(self, labels: list[Any], outputs: list[np.ndarray]) -> Any:
        found = [np.asarray(function(labels[n], outputs[n]), np.float64) for n, function in self._functions]
        whole = all(value.shape == found[0].shape for value in found)
        return sum(found if whole else map(np.mean, found)) / len(found)


class _Own:
    """A function of one's own, of labels as the data gives them and flat outputs."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        self._function = function

    def __call__(self, labels: Any, outputs: list[np.ndarray]) -> Any:
        rows = [flat(output) for output in outputs]
        return self._function(labels, rows[0] if len(rows) == 1 else rows)


class _OwnOfOne(_Own):
    """The same, of a single output."""

    def __call__(self, labels: Any, outputs: Any) -> Any:
        return super().__call__(labels, [outputs])


class _Keras:
    """A metric, a loss or a function of Keras, with the sign that makes more better."""

    def __init__(self, thing: Any, name: str):
        self._thing, self._name = thing, name
        function = getattr(keras.losses, getattr(thing, "__name__", ""), None) is thing
        self._sign = -1.0 if function or isinstance(thing, (keras.losses.Loss, *_ERRORS)) else 1.0

    def __call__(self, labels: np.ndarray, outputs: np.ndarray) -> Any:
        with refused_labels(f"'{self._name}'", [labels]):
            y, z = as_tensor(labels), as_tensor(outputs)
            if isinstance(self._thing, keras.metrics.Metric):
                self._thing.reset_state()
                self._thing.update_state(y, z)
                # Some give a number for every class.
                return self._sign * float(np.mean(keras.ops.convert_to_numpy(self._thing.result())))
            found = keras.ops.convert_to_numpy(self._thing(y, z))
        return self._sign * (found.reshape(len(found), -1).mean(axis=1) if found.ndim else float(found))


class _Loss:
    """Minus the compiled loss."""

    def __init__(self, loss: CompiledLoss):
        self._loss = loss

    def __call__(self, labels: list[Any], outputs: list[np.ndarray]) -> float:
        return -self._loss.value(labels, list(map(as_tensor, outputs)))
