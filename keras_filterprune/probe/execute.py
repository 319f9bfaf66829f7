"""Run a flat model view call by call, so that a caller can look at, or stand in for, any single operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import named_weights, substitute
from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.handlers.base import Resize
from keras_filterprune.handlers.registry import handler_for
from keras_filterprune.probe.inputs import Inputs
from keras_filterprune.probe.masks import carried, joined, makes_masks
from keras_filterprune.probe.quicker import computed
from keras_filterprune.progress import track


def compute(call: Call, args: tuple, kwargs: dict) -> Any:
    """What a call computes by itself."""
    return computed(call.op, args, kwargs)


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
        self._masks = apply is not compute and makes_masks(view)
        self._values: dict[TensorRef, Any] = {}
        self._readers = Counter({ref: len(numbers) for ref, numbers in view.readers.items()})

    def feed(self, inputs: list[Any]) -> None:
        """Set the flat model inputs."""
        self._values.update(zip(self._view.inputs, inputs, strict=True))

    def another(self, apply: Callable[[Call, tuple, dict], Any]) -> Executor:
        """An executor of the same view that applies calls in another way."""
        return Executor(self._view, apply, self._check)

    def join(self, others: Sequence[Executor]) -> None:
        """Put the samples of others that have come as far as this one behind its own."""
        everyone = [self, *others] if self._values else others
        self._readers = everyone[-1]._readers
        self._values = {
            ref: joined([executor._values[ref] for executor in everyone])
            if self._per_sample(ref)
            else everyone[-1]._values[ref]
            for ref in everyone[-1]._values
        }

    def _per_sample(self, ref: TensorRef) -> bool:
        """Whether the first axis of a tensor is the batch; that of a weight is not."""
        first, *_ = self._view.calls[ref.call].output_shapes[ref.index]
        return first is None or self._view.calls[self._view.inputs[0].call].output_shapes[0][0] is not None

    def step(self, number: int) -> list[Any]:
        """Evaluate call `number` and return its flat outputs."""
        call = self._view.calls[number]
        args, kwargs = substitute((call.args, call.kwargs), self._values)
        outputs = keras.tree.flatten(self._apply(call, args, inference(call, kwargs)))
        if self._masks:
            outputs = carried(call.op, args, outputs)
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


def watched(
    view: ModelView,
    inputs: Inputs,
    what: str,
    progress: bool,
    look: Callable[[Call, tuple, slice], None] = lambda call, args, samples: None,
) -> Iterator[tuple[int, list[Any]]]:
    """Run the network on all samples, as many at once as fit into memory; yields (call number, its flat outputs).

    Args:
        view: the model.
        inputs: its samples.
        what: the label of the progress bar.
        progress: show it.
        look: `look(call, args, samples)` is called before each call, with the numbers of the samples.

    Raises:
        CalibrationDataError: an operation gives NaN.
    """
    numbers = [number for number, call in enumerate(view.calls) if call.inputs]
    steps = [(samples, number) for samples in inputs.slices() for number in numbers]
    for samples, number in track(steps, what, len(steps), progress):
        if number == numbers[0]:

            def apply(call: Call, args: tuple, kwargs: dict, samples: slice = samples) -> Any:
                look(call, args, samples)
                return compute(call, args, kwargs)

            executor = Executor(view, apply, check=True)
            executor.feed(inputs[samples])
        yield number, executor.step(number)


def _has_nan(value: Any) -> bool:
    if "float" not in keras.backend.standardize_dtype(value.dtype):
        return False
    # Where a value is NaN the sum is, which is quick to see, and seldom elsewhere.
    return bool(keras.ops.isnan(keras.ops.sum(value))) and bool(keras.ops.any(keras.ops.isnan(value)))


def inference(call: Call, kwargs: dict) -> dict:
    """Call arguments with `training=False` for every layer, for those that it holds inside as well."""
    return kwargs | {"training": False} if isinstance(call.op, keras.layers.Layer) else kwargs


def random_inputs(view: ModelView, seed: int = 0, batch: int = 2) -> list[Any]:
    """Flat random model inputs: normal floats; entries of the vocabulary that looks them up, else ones and zeros."""
    generator = np.random.default_rng(seed)
    arrays = []
    for ref in view.inputs:
        call = view.calls[ref.call]
        shape = tuple(batch if n is None else n for n in call.output_shapes[0])
        dtype = keras.backend.standardize_dtype(call.op.dtype)
        if "float" in dtype:
            values = generator.normal(size=shape)
        else:
            entries = _vocabulary(view, ref) or ("0", "1")
            values = generator.choice(np.array(entries, object if dtype == "string" else dtype), shape)
        arrays.append(keras.ops.convert_to_tensor(values, dtype))
    return arrays


def _vocabulary(view: ModelView, ref: TensorRef) -> list[Any]:
    """What the layers that read a tensor know of such values."""
    readers = (call.op for call in view.calls if ref in call.inputs and hasattr(call.op, "get_vocabulary"))
    return [entry for op in readers for entry in op.get_vocabulary(include_special_tokens=False)]


# {layer path: [(variable, value that stands in for it)]}
Values = Mapping[str, list[tuple[Any, Any]]]


class MaskedWeights(Values):
    """Weights with zeros where a layer reads a removed channel, for every layer that reads one.

    They are made when they are asked for; `dict` of it holds all of them.
    """

    def __init__(self, kept: Kept):
        self._masks: dict[str, list[tuple[Any, Any]]] = {}
        layers = {call.path: call.op for call in kept.graph.view.calls if call.inputs}
        for bind in kept.graph.binds:
            if bind.role == "input" and not (stays := kept.alive[bind.ids]).all():
                variable = named_weights(layers[bind.layer])[bind.weight]
                shape = [1] * len(variable.shape)
                shape[bind.axis] = -1
                mask = keras.ops.convert_to_tensor(stays.reshape(shape), variable.dtype)
                self._masks.setdefault(bind.layer, []).append((variable, mask))

    def __getitem__(self, path: str) -> list[tuple[Any, Any]]:
        return [(variable, variable.value * mask) for variable, mask in self._masks[path]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)


def masked_apply(kept: Kept, values: Values) -> Callable[[Call, tuple, dict], Any]:
    """What an `Executor` of `kept.graph.view` needs to run without the channels that do not stay.

    The model's variables are never written: `values` stand in for them in a stateless scope. Statistics over channels
    are taken over those that stay.
    """
    resizes = {
        id(call): Resize(call, inputs, outputs, kept.alive, kept.graph.binds_of.get(call.path, ()))
        for call, (inputs, outputs) in zip(kept.graph.view.calls, kept.graph.tensors, strict=True)
    }

    def apply(call: Call, args: tuple, kwargs: dict) -> Any:
        with keras.StatelessScope(state_mapping=values.get(call.path, [])):
            return handler_for(call.op).masked_call(call.op, args, kwargs, resizes[id(call)])

    return apply
