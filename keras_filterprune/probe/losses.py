"""The loss of outputs: what the model is compiled with, or else the cross-entropy of class scores."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.compiled import (
    compile_arguments,
    output_keys,
    output_structure,
    own_steps,
    per_output,
)
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import ModelView
from keras_filterprune.handlers.activation import is_activation, named
from keras_filterprune.handlers.registry import keras_name
from keras_filterprune.probe.inputs import check_class_scores, inputs_and_labels, labelled_inputs
from keras_filterprune.probe.labels import as_tensor, check_labels, labels_by_output, name_of, refused_labels
from keras_filterprune.probe.own_loss import OwnLoss, warn_of_other_loss

_PURPOSE = "a gradient of the loss"


class CompiledLoss:
    """The loss of all outputs that a model is compiled with, as Keras adds it up; not what its layers add to that.

    Args:
        model: compiled with a loss.
    """

    def __init__(self, model: keras.Model):
        arguments = compile_arguments(model)
        self._losses, self._weights = arguments["loss"], arguments["loss_weights"]
        self._keys = output_keys(model)
        self._structure = keras.tree.map_structure(lambda tensor: 0, output_structure(model))
        self._shapes = [tuple(output.shape) for output in model.outputs]
        self._by_output = per_output(model, self._losses)
        # Made where it computes: it does not travel to other processes.
        self._model: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_model": None}

    @property
    def name(self) -> str:
        return " + ".join(dict.fromkeys(name_of(loss) for loss in self._by_output if loss is not None))

    def check(self, labels: list[np.ndarray | None]) -> None:
        """Raise `CalibrationDataError` where labels of the outputs do not fit the losses."""
        for (key, _), loss, found, shape in zip(self._keys, self._by_output, labels, self._shapes, strict=True):
            if loss is None:
                continue
            if found is None:
                raise CalibrationDataError(f"output '{key}' has the loss '{name_of(loss)}' and no labels.")
            check_labels(loss, found, shape, key)

    def begin(self, labels: list[np.ndarray | None], outputs: list[Any], weights: list[Any]) -> None:
        """Compute it once on numbers, when Keras makes variables; `CalibrationDataError` where that fails."""
        self._model = self._stand_in()
        with refused_labels(f"the compiled loss '{self.name}'", labels):
            value = float(keras.ops.convert_to_numpy(self._compute(labels, outputs, weights)))
        if not np.isfinite(value):
            raise CalibrationDataError(f"the compiled loss '{self.name}' is {value} on the first samples.")

    def value(self, labels: list[np.ndarray | None], outputs: list[Any]) -> float:
        """The loss of outputs, a number."""
        weights: list[Any] = [None] * len(outputs)
        if self._model is None:
            self.begin(labels, outputs, weights)
        return float(keras.ops.convert_to_numpy(self(labels, outputs, weights)))

    def __call__(self, labels: list[np.ndarray | None], outputs: list[Any], weights: list[Any]) -> Any:
        """A scalar tensor.

        Args:
            labels: of every output, (samples, ...).
            outputs: tensors (samples, ...).
            weights: of the samples of every output, or None.
        """
        # Keras notes the loss of every output in a variable.
        with keras.StatelessScope():
            return self._compute(labels, outputs, weights)

    def _compute(self, labels: list[Any], outputs: list[Any], weights: list[Any]) -> Any:
        def packed(flat: list[Any]) -> Any:
            return keras.tree.pack_sequence_as(self._structure, flat)

        labels, weights = ([a if a is None else as_tensor(a) for a in arrays] for arrays in (labels, weights))
        given = None if all(weight is None for weight in weights) else packed(weights)
        return self._model.compute_loss(None, packed(labels), packed(outputs), given)

    def _stand_in(self) -> keras.Model:
        """A model of nothing but the outputs. Its layers have names, so that those of later layers do not change."""
        inputs = [keras.Input(shape[1:], name=f"output_{number}") for number, shape in enumerate(self._shapes)]
        outputs = [keras.layers.Identity(name=f"same_{number}")(x) for number, x in enumerate(inputs)]
        model = keras.Model(inputs, keras.tree.pack_sequence_as(self._structure, outputs), name="outputs")
        model.output_names = [name for _, name in self._keys]
        model.compile(None, loss=self._losses, loss_weights=self._weights)
        return model


def has_loss(view: ModelView) -> bool:
    """Whether a model is compiled with a loss."""
    return view.model.compiled and view.model.loss is not None


class Objective:
    """The loss on labelled samples: the model's own `compute_loss()`; or the one that it is compiled with; or else the
    mean cross-entropy of class scores.

    Args:
        view: the model.
        data: labelled samples, of which the first 2 048 are used, with weights perhaps.

    Attributes:
        inputs: the samples.

    Raises:
        CalibrationDataError: labels are missing, or do not fit the loss.
    """

    def __init__(self, view: ModelView, data: Any):
        self._view, self._own, self._compiled, self._logits = view, None, None, False
        if own_steps(view.given, "compute_loss"):
            self._own = OwnLoss(view, data, _PURPOSE)
            self.inputs = self._own.inputs
            return
        if not has_loss(view):
            self.inputs, self._classes = labelled_inputs(data, view, _PURPOSE)
            check_class_scores(view, _PURPOSE)
            warn_of_other_loss(view, self.inputs, "the cross-entropy of class scores")
            return
        self.inputs, labels, weights = inputs_and_labels(data, view, _PURPOSE)
        self._compiled = CompiledLoss(view.model)
        self._labels = labels_by_output(view, labels, len(self.inputs), _PURPOSE)
        self._weights = per_output(view.model, weights)
        for weight in self._weights:
            _check_weights(weight, len(self.inputs))
        self._compiled.check(self._labels)
        warn_of_other_loss(view, self.inputs, f"the compiled loss '{self._compiled.name}'")

    def begin(self, outputs: list[Any], samples: slice) -> None:
        """Look at outputs of the first samples, before anything is differentiated."""
        if self._own is not None:
            self._own.begin(outputs, samples)
        elif self._compiled is None:
            self._logits = _are_logits(self._view, keras.ops.convert_to_numpy(outputs[0]))
        else:
            self._compiled.begin(_rows(self._labels, samples), outputs, _rows(self._weights, samples))

    def __call__(self, outputs: list[Any], samples: slice) -> Any:
        """The loss of outputs of some of the samples, a scalar tensor."""
        if self._own is not None:
            return self._own(outputs, samples)
        if self._compiled is None:
            return cross_entropy(outputs[0], self._classes[samples], self._logits)
        return self._compiled(_rows(self._labels, samples), outputs, _rows(self._weights, samples))


def _rows(arrays: list[np.ndarray | None], samples: slice) -> list[np.ndarray | None]:
    return [None if array is None else array[samples] for array in arrays]


def _check_weights(weights: Any, count: int) -> None:
    if weights is None:
        return
    if not isinstance(weights, np.ndarray) or weights.shape[:1] != (count,) or weights.dtype.kind not in "fiub":
        raise CalibrationDataError(
            f"weights of samples are a number for each of {count}. Received: {np.shape(weights)} of "
            f"{getattr(weights, 'dtype', type(weights).__name__)}."
        )
    if not np.isfinite(weights.astype(float)).all():
        raise CalibrationDataError("weights of samples are finite. Received: NaN or infinite values.")


def _are_logits(view: ModelView, scores: np.ndarray) -> bool:
    """Whether class scores are no probabilities."""
    if scores.shape[1] > 1:
        return scores.min() < 0 or not np.allclose(scores.astype(float).sum(axis=1), 1, atol=1e-2)
    # One logit can lie in [0, 1] for all samples: the activation tells.
    call = view.calls[view.outputs[0].call]
    function = getattr(call.op, "activation", None)
    while call.inputs and named(function) == "linear" and not is_activation(call.op) and not named_weights(call.op):
        call = view.calls[call.inputs[0].call]
        function = getattr(call.op, "activation", None)
    return named(function) != "sigmoid" and keras_name(call.op) != "Sigmoid"


def cross_entropy(scores: Any, labels: np.ndarray, logits: bool) -> Any:
    """Mean cross-entropy of class scores.

    Args:
        scores: tensor of shape (samples, classes), or (samples, 1) for two classes.
        labels: class numbers, integers of shape (samples,).
        logits: scores are logits, not probabilities.
    """
    scores = keras.ops.cast(scores, "float32")
    if scores.shape[1] == 1:
        target = keras.ops.convert_to_tensor(labels[:, None], "float32")
        return keras.ops.mean(keras.losses.binary_crossentropy(target, scores, from_logits=logits))
    target = keras.ops.convert_to_tensor(labels, "int32")
    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(target, scores, from_logits=logits))
