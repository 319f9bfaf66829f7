"""Run a flat model view call by call, so that a caller can look at, or stand in for, any single operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import named_weights, substitute
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.handlers.base import Resize
from keras_filterprune.handlers.registry import handler_for


def compute(call: Call, args: tuple, kwargs: dict) -> Any:
    """What a call computes by itself."""
    return call.op(*args, **kwargs)


class Executor:
    """Evaluates the calls of a view in order, in inference mode, and forgets tensors after their last reader.

    Args:
        view: the flat view of a model.
        apply: `apply(call, args, kwargs)` returns the outputs of one call, in the call's own structure (`compute`).
        check: raise `CalibrationDataError` at the first operation that gives NaN (False).
    """

    def __init__(self, view: ModelView, apply: Callable[[Call, tuple, dict], Any] = compute, check: bool = False):
        self._view = view
        self._apply = apply
        self._check = check
        self._values: dict[TensorRef, Any] = {}
        self._readers = Counter({ref: len(numbers) for ref, numbers in view.readers.items()})

    def feed(self, inputs: list[Any]) -> None:
        """Set the flat model inputs."""
        self._values.update(zip(self._view.inputs, inputs, strict=True))

    def step(self, number: int) -> list[Any]:
        """Evaluate call `number` and return its flat outputs."""
        call = self._view.calls[number]
        args, kwargs = substitute((call.args, call.kwargs), self._values)
        outputs = keras.tree.flatten(self._apply(call, args, inference(call, kwargs)))
        if self._check and any(_has_nan(value) for value in outputs):
            raise CalibrationDataError(
                f"'{call.path}' ({type(call.op).__name__}) gives NaN on the calibration data: nothing can be measured "
                "behind it. Check that the data is scaled as in training."
            )
        for ref in call.inputs:
            self._readers[ref] -= 1
            if not self._readers[ref]:
                del self._values[ref]
        for index, value in enumerate(outputs):
            if self._readers[TensorRef(number, index)]:
                self._values[TensorRef(number, index)] = value
        return outputs

    def value(self, ref: TensorRef) -> Any | None:
        """A tensor that has been computed and still has readers, else None."""
        return self._values.get(ref)

    def override(self, number: int, outputs: list[Any]) -> None:
        """Let later calls see these values in place of the outputs of call `number`."""
        for index, value in enumerate(outputs):
            if TensorRef(number, index) in self._values:
                self._values[TensorRef(number, index)] = value

    def run(self, inputs: list[Any]) -> list[Any]:
        """Evaluate the whole view; returns the flat model outputs."""
        self.feed(inputs)
        for number, call in enumerate(self._view.calls):
            if call.inputs:
                self.step(number)
        return self.outputs()

    def outputs(self) -> list[Any]:
        """The flat model outputs, once every call has been evaluated."""
        return [self._values[ref] for ref in self._view.outputs]


def _has_nan(value: Any) -> bool:
    floats = "float" in keras.backend.standardize_dtype(value.dtype)
    return floats and bool(keras.ops.any(keras.ops.isnan(value)))


def inference(call: Call, kwargs: dict) -> dict:
    """Call arguments with `training=False` for every layer, for those that it holds inside as well."""
    return kwargs | {"training": False} if isinstance(call.op, keras.layers.Layer) else kwargs


def random_inputs(view: ModelView, seed: int = 0, batch: int = 2) -> list[Any]:
    """Flat random model inputs: normal floats, ones and zeros for integers and booleans."""
    generator = np.random.default_rng(seed)
    arrays = []
    for ref in view.inputs:
        call = view.calls[ref.call]
        shape = tuple(batch if n is None else n for n in call.output_shapes[0])
        dtype = keras.backend.standardize_dtype(call.op.dtype)
        drawn = generator.normal if "float" in dtype else partial(generator.integers, 0, 2)
        arrays.append(keras.ops.convert_to_tensor(drawn(size=shape), dtype))
    return arrays


# {layer path: [(variable, value that stands in for it)]}
Values = Mapping[str, list[tuple[Any, Any]]]


def masked_weights(kept: Kept) -> dict[str, list[tuple[Any, Any]]]:
    """Weights with zeros where a layer reads a removed channel, for every layer that reads one."""
    graph, alive = kept.graph, kept.alive
    layers = {call.path: call.op for call in graph.view.calls if call.inputs}
    masked: dict[str, list[tuple[Any, Any]]] = {}
    for bind in graph.binds:
        if bind.role == "input" and not alive[bind.ids].all():
            variable = named_weights(layers[bind.layer])[bind.weight]
            shape = [1] * len(variable.shape)
            shape[bind.axis] = -1
            mask = keras.ops.convert_to_tensor(alive[bind.ids].reshape(shape), variable.dtype)
            masked.setdefault(bind.layer, []).append((variable, variable.value * mask))
    return masked


def masked_apply(kept: Kept, values: Values) -> Callable[[Call, tuple, dict], Any]:
    """What an `Executor` of `kept.graph.view` needs to run without the channels that do not stay.

    The model's variables are never written: `values` stand in for them in a stateless scope. Statistics over channels
    are taken over those that stay.
    """
    resizes = {
        id(call): Resize(call, inputs, outputs, kept.alive)
        for call, (inputs, outputs) in zip(kept.graph.view.calls, kept.graph.tensors, strict=True)
    }

    def apply(call: Call, args: tuple, kwargs: dict) -> Any:
        with keras.StatelessScope(state_mapping=values.get(call.path, [])):
            return handler_for(call.op).masked_call(call.op, args, kwargs, resizes[id(call)])

    return apply
