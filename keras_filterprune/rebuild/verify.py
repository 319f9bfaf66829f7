"""Prove the surgery: the rebuilt model computes what the original computes with the removed channels disconnected."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import SurgeryError
from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.keras_view import packed
from keras_filterprune.graph.types import Call, ModelView, Tensor, TensorRef
from keras_filterprune.handlers.base import describe
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.probe.execute import Executor, MaskedWeights, masked_apply, random_inputs
from keras_filterprune.probe.memory import held_at_once
from keras_filterprune.progress import track
from keras_filterprune.rebuild.state import random_states

# Largest difference relative to the largest value of a tensor; half precision rounds at 2^-11 and 2^-8.
_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
_DEFAULT_TOLERANCE = 1e-4


def verify(rebuilt: Rebuilt, seed: int = 0, progress: bool = False) -> float:
    """Compare every operation of the rebuilt model with the masked original, on one random batch.

    The masked original is the original network with the consumers' weights of removed channels set to zero (and with
    statistics over channels taken over the remaining ones). Both run side by side, call by call. Each operation of the
    clone is given the surviving channels of the original's tensors and must give the surviving channels of the
    original's output: rounding does not add up over hundreds of layers, and by induction the whole models agree. That
    the clone is wired like the original is checked by calling it as a whole. The original's variables are never
    written: masked values stand in for them in a stateless scope.

    Args:
        rebuilt: the smaller model next to the original.
        seed: seed of the random batch.
        progress: show a progress bar (False).

    Returns:
        The largest difference seen, relative to the largest absolute value of the tensor it occurred in.

    Raises:
        SurgeryError: a tensor differs by more than 1e-4 (2e-2 in float16, 1e-1 in bfloat16); it is named.
    """
    view, resizes, alive = rebuilt.graph.view, rebuilt.resizes, rebuilt.kept.alive
    original, smaller, survivors = _Masked(rebuilt.kept), rebuilt.smaller_view(), _Survivors()

    def twin(call: Call, args: tuple, kwargs: dict) -> Any:
        return rebuilt.twins[id(call.op)](*args, **kwargs)

    def clone(call: Call, args: tuple, kwargs: dict) -> Any:
        # What a call draws and remembers is forgotten: both sides start from one state, and keep it.
        with keras.StatelessScope():
            return twin(call, args, kwargs)

    inputs = random_inputs(view, seed)
    left, right = Executor(view, original), Executor(smaller, clone)
    left.feed(inputs)
    right.feed(inputs)
    worst = 0.0
    for number, r in track(resizes.items(), "verifying", len(resizes), progress):
        surviving = []
        for index, (expected, received) in enumerate(zip(left.step(number), right.step(number), strict=True)):
            # An output that nobody reads is not traced.
            if TensorRef(number, index) in view.readers:
                expected = survivors.of(expected, r.outputs[index], alive)
                worst = max(worst, _compare(r.call, expected, received, original.draws))
            surviving.append(expected)
        right.override(number, surviving)
    inputs = random_inputs(view, seed, held_at_once(view, 2))
    with keras.StatelessScope():
        expected = Executor(smaller, twin).run(inputs)
    compare_outputs(view, rebuilt.model, inputs, expected)
    return worst


class _Masked:
    """Applies the calls of the masked original, and knows whether the last one was random."""

    def __init__(self, kept: Kept):
        self._kept = kept
        self._values = MaskedWeights(kept)
        self._apply = masked_apply(kept, self._values)

    def __call__(self, call: Call, args: tuple, kwargs: dict) -> Any:
        self._last = call, args, kwargs
        return self._apply(call, args, kwargs)

    def draws(self) -> bool:
        """Whether the last call gives something else with its random generators in another state."""
        call, args, kwargs = self._last
        values = {call.path: [*self._values.get(call.path, ()), *_shifted(call.op)]}
        shifted = masked_apply(self._kept, values)(call, args, kwargs)
        return not _alike(self._apply(call, args, kwargs), shifted)


class _Survivors(keras.layers.Layer):
    """The channels of a tensor that stay: a layer, because it is layers that hand on which steps in time are masked."""

    def __init__(self) -> None:
        super().__init__(autocast=False, name="survivors")
        self.supports_masking = True

    def of(self, value: Any, tensor: Tensor, alive: np.ndarray) -> Any:
        """A tensor of its own, for attention takes the mask off what it reads."""
        if tensor.tracked and not alive[tensor.ids].all():
            return self(value, stays=np.flatnonzero(alive[tensor.ids]), axis=tensor.axis)
        return self(value) if "float" in keras.backend.standardize_dtype(value.dtype) else value

    def call(self, value: Any, stays: np.ndarray | None = None, axis: int = 0) -> Any:
        return keras.ops.copy(value) if stays is None else keras.ops.take(value, stays, axis=axis)


def _compare(call: Call, expected: Any, received: Any, draws: Callable[[], bool]) -> float:
    """Relative difference of one output; raises where it is too large for another reason than chance."""
    tolerance = _tolerance(expected)
    expected, received = _array(expected), _array(received)
    if expected.shape != received.shape:
        raise SurgeryError(
            f"surgery failed at {describe(call)}: expected an output of shape {expected.shape}, the rebuilt model "
            f"gives {received.shape}. The handler of {type(call.op).__name__} is wrong; exclude it and report it."
        )
    difference = _relative(expected, received)
    if difference <= tolerance:
        return difference
    if draws():
        return 0.0
    if np.isinf(difference):
        raise SurgeryError(
            f"surgery cannot be verified at {describe(call)}: rebuilt model and masked original are not finite in the "
            f"same places. Values that large are chance; where the model is sound, exclude this layer."
        )
    raise SurgeryError(
        f"surgery failed at {describe(call)}: the rebuilt model differs from the masked original by "
        f"{difference:.1e} of the largest value (tolerance {tolerance:.0e}). The handler of "
        f"{type(call.op).__name__} is wrong; exclude this layer and report it."
    )


def compare_outputs(
    view: ModelView, model: keras.Model, inputs: list[Any], expected: list[Any], tolerance: float | None = None
) -> float:
    """Call a model as a whole; its outputs are to be the expected ones.

    Args:
        view: of the original model, whose outputs it names.
        model: the rebuilt one.
        inputs: flat inputs.
        expected: flat outputs.
        tolerance: of the difference, relative to the largest absolute value of an output (None: 1e-4, 2e-2 in float16,
            1e-1 in bfloat16).

    Returns:
        The largest relative difference; outputs that are random do not count.

    Raises:
        SurgeryError: an output differs by more than the tolerance.
    """
    outputs, worst = call_whole(model, inputs), 0.0
    for index, (name, value, wanted) in enumerate(zip(view.output_names, outputs, expected, strict=True)):
        difference = _relative(_array(wanted), _array(value))
        if not difference <= (_tolerance(value) if tolerance is None else tolerance):
            if not _alike(value, call_whole(model, inputs, _shifted(model))[index]):
                continue
            raise SurgeryError(
                f"surgery failed: output '{name}' of model '{model.name}' differs from the original's, by "
                f"{difference:.1e} of its largest value: the copy is wired differently, or a layer of it holds what is "
                "neither one of its weights nor in its get_config()."
            )
        worst = max(worst, difference)
    return worst


def compare_models(view: ModelView, model: keras.Model, twin: keras.Model, tolerance: float | None = None) -> float:
    """Compare the outputs of a model and its copy on a random batch; see `compare_outputs`."""
    inputs = random_inputs(view, batch=held_at_once(view, 2))
    return compare_outputs(view, twin, inputs, call_whole(model, inputs), tolerance)


def call_whole(model: keras.Model, inputs: list[Any], state: Sequence[tuple[Any, Any]] = ()) -> list[Any]:
    """Flat outputs of a model in inference mode, whose state stays what it is.

    Args:
        model: a functional or Sequential model.
        inputs: flat inputs.
        state: values that stand in for those of variables.
    """
    with keras.StatelessScope(state_mapping=state):
        return keras.tree.flatten(model(packed(model, inputs), training=False))


def _shifted(layer: Any) -> list[tuple[Any, Any]]:
    """Other states of the random generators of a layer."""
    return [(state, state.value + 1) for state in random_states(layer)]


def _alike(left: Any, right: Any) -> bool:
    return all(
        _relative(_array(a), _array(b)) <= _tolerance(a)
        for a, b in zip(keras.tree.flatten(left), keras.tree.flatten(right), strict=True)
    )


def rounding(view: ModelView) -> float:
    """The tolerance of the coarsest dtype in which a layer of a model computes."""
    dtypes = {getattr(call.op, "compute_dtype", "float32") for call in view.calls}
    return max(_TOLERANCE.get(dtype, _DEFAULT_TOLERANCE) for dtype in dtypes)


def _tolerance(value: Any) -> float:
    return _TOLERANCE.get(keras.backend.standardize_dtype(value.dtype), _DEFAULT_TOLERANCE)


def _array(x: Any) -> np.ndarray:
    array = keras.ops.convert_to_numpy(x)
    if array.dtype.kind == "O":
        # Words are the same or not: as numbers, equal words are equal.
        return np.vectorize(_number, otypes=[float])(array)
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _number(word: Any) -> float:
    return float(zlib.crc32(str(word).encode("utf-8", "backslashreplace")))


def _relative(expected: np.ndarray, received: np.ndarray) -> float:
    scale = _largest(expected)
    if not np.isfinite(scale):
        # Infinities and NaNs (log of zero, say) must agree in place; the rest is compared.
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(received)):
            return float("inf")
        expected, received = expected[finite], received[finite]
        scale = _largest(expected)
    difference = _largest(expected - received)
    if not np.isfinite(difference):
        return float("inf")
    return difference / scale if scale else difference


def _largest(values: np.ndarray) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(np.maximum(-values.min(), values.max())) if values.size else 0.0
