"""The loss of a class of models that computes its own."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import keras

from keras_filterprune.checks import check_returned
from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.compiled import output_structure, own_steps
from keras_filterprune.graph.keras_view import first_line
from keras_filterprune.graph.types import ModelView
from keras_filterprune.probe.data import Samples
from keras_filterprune.probe.execute import Executor
from keras_filterprune.probe.inputs import Inputs, inputs_and_labels
from keras_filterprune.probe.labels import as_tensor


class OwnLoss:
    """`compute_loss()` of the model as the user knows it, given the outputs of a graph of its layers.

    Args:
        view: the model.
        data: samples, of which the first 2 048 are used; with labels and weights, or without where it needs none.
        purpose: what needs it, for messages.

    Attributes:
        inputs: the samples.
    """

    def __init__(self, view: ModelView, data: Any, purpose: str):
        self._model, self._view, data = view.given, view, Samples.of(data)
        labelled = data.read(view)[0].labels is not None
        if labelled:
            self.inputs, self._labels, self._weights = inputs_and_labels(data, view, purpose)
        else:
            self.inputs, self._labels, self._weights = Inputs(data.read(view), view), None, None
        self._name = f"{type(self._model).__name__}.compute_loss()"

    def begin(self, outputs: list[Any], samples: slice) -> None:
        """Compute it once on numbers, when Keras makes variables; `CalibrationDataError` where that fails."""
        try:
            value = self._compute(outputs, samples)
        # Whatever the user's code raises.
        except Exception as error:
            raise CalibrationDataError(
                f"{self._name} fails on calibration data, given x, y and y_pred alone: {first_line(error)}"
            ) from error
        check_returned(tuple(value.shape) == (), self._name, "return a scalar", value)

    def __call__(self, outputs: list[Any], samples: slice) -> Any:
        """The loss of outputs of some of the samples, a scalar tensor."""
        # Keras notes losses in variables.
        with keras.StatelessScope():
            return self._compute(outputs, samples)

    def _compute(self, outputs: list[Any], samples: slice) -> Any:
        def rows(arrays: Any) -> Any:
            return keras.tree.map_structure(lambda a: a if a is None else as_tensor(a[samples]), arrays)

        x = self.inputs[samples]
        structure = keras.tree.map_structure(lambda tensor: 0, output_structure(self._view.model))
        given = {
            "x": x[0] if len(x) == 1 else x,
            "y": rows(self._labels),
            "y_pred": keras.tree.pack_sequence_as(structure, outputs),
            "sample_weight": rows(self._weights),
            "training": False,
        }
        taken = inspect.signature(self._model.compute_loss).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            given = {key: value for key, value in given.items() if key in taken}
        return self._model.compute_loss(**given)


def warn_of_other_loss(view: ModelView, inputs: Inputs, loss: str) -> None:
    """Warn of what training looks at besides a loss, which is named in words."""
    if steps := own_steps(view.given, "train_step"):
        warnings.warn(
            f"{steps} is not looked at: gradients are those of {loss}. A compute_loss() of the class's own is.",
            stacklevel=2,
        )
    Executor(view).run(inputs[slice(0, 2)])
    layers = {call.path: call.op for call in view.calls if isinstance(call.op, keras.layers.Layer)}
    added = [path for path, layer in layers.items() if len(layer.losses) > _regularized(layer)]
    if added:
        warnings.warn(
            f"what {', '.join(map(repr, added))} add to the loss is not looked at: gradients are those of {loss}.",
            stacklevel=2,
        )


def _regularized(layer: keras.layers.Layer) -> int:
    return sum(getattr(weight, "regularizer", None) is not None for weight in layer.trainable_weights)
