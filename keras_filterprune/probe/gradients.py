"""How the network's outputs and its loss react to its layers and weights: the one file that differentiates."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import CalibrationDataError, MissingPackageError
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Bind, Call, ChannelGraph, ModelView
from keras_filterprune.handlers.base import volume
from keras_filterprune.probe.execute import Executor, compute
from keras_filterprune.probe.inputs import Inputs
from keras_filterprune.probe.losses import Objective
from keras_filterprune.probe.masks import factor_of, joined, mask_of, masked
from keras_filterprune.probe.memory import all_values, at_once
from keras_filterprune.progress import track

# Samples in a batch whose mean loss is differentiated.
BATCH = 128
# Most samples that sensitivities are averaged over, and most values of all their activations together. To the power of
# 1/4, those of 16 samples differ from those of hundreds by 1 % (ResNet-20, MobileNetV2), and between layers by factors.
_SAMPLES, _VALUES = 512, 2**27

# {what: tensor}
Tensors = dict[Any, Any]


def output_sensitivity(
    view: ModelView, inputs: Inputs, layers: Collection[str], progress: bool
) -> dict[str, np.ndarray]:
    """How far an error in a layer's output moves the network's outputs, to first order.

    The expected squared change of the outputs (in units of their standard deviation) per unit of error variance in one
    channel, alike at all positions: E sum_positions (d<v, z>/dy)^2 over random v ~ N(0, I).

    Args:
        view: the model.
        inputs: its samples, of which 512 are used, at equal distances; fewer where they have many activations.
        layers: paths of layers with one output, channels last; each is looked at in its first call.
        progress: show a progress bar.

    Returns:
        {layer: float64 of shape (channels,)}, of shape (1,) where no output has a gradient: class numbers, words.

    Raises:
        CalibrationDataError: outputs or their gradients are not finite.
    """
    generator = np.random.default_rng(0)
    inputs = inputs.spread(min(_SAMPLES, max(8, _VALUES // all_values(view, inputs.values))))
    deviations = _deviations(view, inputs)
    if all(deviation is None for deviation in deviations):
        return {path: np.ones(1) for path in layers}
    # Gradients of small outputs would be more than half precision holds; a power of 2 changes no digit.
    scale = 2.0 ** math.floor(math.log2(min(deviation for deviation in deviations if deviation is not None)))
    first = {call.path: call for call in reversed(view.calls)}
    total = {path: np.zeros(volume(first[path].output_shapes[0][-1:])) for path in layers}

    def objective(sums: Tensors, part: slice) -> Any:
        def probed(call: Call, args: tuple, kwargs: dict) -> Any:
            y = compute(call, args, kwargs)
            return _probed(y, sums[call.path]) if call.path in sums and call is first[call.path] else y

        value = 0.0
        for output, deviation in zip(Executor(view, probed).run(inputs[part]), deviations, strict=True):
            if deviation is None:
                continue
            z, mask = keras.ops.cast(output, "float32"), mask_of(output)
            v = keras.ops.convert_to_tensor(generator.normal(size=z.shape).astype(np.float32))
            v = v if mask is None else v * factor_of(v, mask)
            value = value + keras.ops.sum(v * z) / (deviation / scale)
        return value

    parts = inputs.differentiable()
    for part in track(parts, "differentiating", len(parts), progress):
        zeros = {path: keras.ops.zeros(len(value)) for path, value in total.items()}
        for path, found in gradients(partial(objective, part=part), zeros).items():
            total[path] += _array(found)
    for path, value in total.items():
        _check_finite(f"what '{path}' does to the outputs", value)
    return {path: value / len(inputs) / scale**2 for path, value in total.items()}


def _deviations(view: ModelView, inputs: Inputs) -> list[float | None]:
    """Standard deviation of every output over the samples; None of class numbers, words."""
    found: list[list[np.ndarray | None]] = []
    for part in inputs.slices():
        outputs = Executor(view, check=True).run(inputs[part])
        found.append([_array(z) if "float" in keras.backend.standardize_dtype(z.dtype) else None for z in outputs])
    whole = [None if z[0] is None else np.concatenate(z) for z in zip(*found, strict=True)]
    for z in whole:
        _check_finite("an output", np.zeros(()) if z is None else z)
    return [None if z is None else float(np.std(z)) + 1e-12 for z in whole]


def _check_finite(what: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
        raise CalibrationDataError(
            f"{what} is no finite number on the calibration data. Prune the network without the operations behind its "
            "scores, a logarithm of 0 say, or by a method that looks at layers alone ('cap')."
        )


def _probed(y: Any, sums: Any) -> Any:
    """`y` itself; the gradient with respect to `sums` (channels,) is that of `y`, squared and summed over the rest."""

    @keras.ops.custom_gradient
    def same(y: Any, sums: Any) -> Any:
        # PyTorch hands over what the function was called with, and the gradient by its name.
        def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, Any]:
            upstream = arguments[0] if upstream is None else upstream
            squares = keras.ops.square(keras.ops.cast(upstream, "float32"))
            return upstream, keras.ops.sum(squares, axis=list(range(len(squares.shape) - 1)))

        return keras.ops.copy(y), gradient

    return same(y, sums)


def weight_gradients(
    view: ModelView, data: Any, weights: Collection[tuple[str, str]], progress: bool
) -> Iterator[dict[tuple[str, str], np.ndarray]]:
    """Gradients of the loss of every batch of 128 with respect to weights; `Objective` says of which loss.

    Args:
        view: the model.
        data: labelled samples, of which the first 2 048 are used.
        weights: (layer path, weight name) of each.
        progress: show a progress bar.

    Yields:
        {(layer path, weight name): float64, shaped like the weight}, batch by batch.
    """
    layers = {call.path: call.op for call in view.calls if call.inputs}
    variables = {key: named_weights(layers[key[0]])[key[1]] for key in weights}

    def outputs(values: Tensors, inputs: list[Any]) -> list[Any]:
        with keras.StatelessScope(state_mapping=[(variables[key], value) for key, value in values.items()]):
            return Executor(view, check=True).run(inputs)

    return loss_gradients(view, data, outputs, lambda _: {k: v.value for k, v in variables.items()}, progress)


def gate_gradients(graph: ChannelGraph, data: Any, progress: bool) -> Iterator[np.ndarray]:
    """Gradients of the loss of every batch with respect to a gate on each unit, all of them 1.

    A unit's gate multiplies its channels wherever a layer with weights reads them, and so what these are multiplied by:
    closed, it removes the unit.
    Arguments as in `weight_gradients`.

    Yields:
        float64 of shape (units,), batch by batch; 0 for units that nothing reads.
    """
    layers = {call.path: call.op for call in graph.view.calls if call.inputs}
    read = {n: bind for n, bind in enumerate(graph.binds) if bind.role == "input"}

    def gated(bind: Bind, gate: Any) -> tuple[Any, Any]:
        variable = named_weights(layers[bind.layer])[bind.weight]
        shape = [1] * len(variable.shape)
        shape[bind.axis] = -1
        return variable, variable.value * keras.ops.cast(keras.ops.reshape(gate, shape), variable.dtype)

    def outputs(gates: Tensors, inputs: list[Any]) -> list[Any]:
        with keras.StatelessScope(state_mapping=[gated(read[n], gate) for n, gate in gates.items()]):
            return Executor(graph.view, check=True).run(inputs)

    def ones(_: int) -> Tensors:
        return {n: keras.ops.ones(len(bind.ids)) for n, bind in read.items()}

    units = graph.unit_of_id.max(initial=-1) + 1
    for found in loss_gradients(graph.view, data, outputs, ones, progress):
        total = np.zeros(units)
        for n, gradient in found.items():
            total += np.bincount(graph.unit_of_id[read[n].ids], gradient, units)
        yield total


def loss_gradients(
    view: ModelView,
    data: Any,
    outputs: Callable[[Tensors, list[Any]], list[Any]],
    at: Callable[[int], Tensors],
    progress: bool,
    join: Callable[[list[np.ndarray]], Any] = sum,
) -> Iterator[dict[Any, np.ndarray]]:
    """Gradients of the loss with respect to the tensors that `outputs` takes, batch by batch.

    Args:
        at: gives these tensors for so many samples.
        join: makes the gradients of the parts of a batch one.
    """
    loss = Objective(view, data)
    inputs = loss.inputs
    # Outputs of a whole batch are held together.
    shapes = [view.calls[ref.call].output_shapes[ref.index] for ref in view.outputs]
    size = min(BATCH, at_once(sum(volume(shape[1:]) for shape in shapes)))
    parts = [inputs.differentiable(slice(start, start + size)) for start in range(0, len(inputs), size)]
    loss.begin(outputs(at(_count(parts[0][0])), inputs[parts[0][0]]), parts[0][0])

    def computed(x: Tensors, part: slice) -> list[Any]:
        return outputs(x, inputs[part])

    def alone(x: Tensors, part: slice) -> Any:
        return loss(computed(x, part), part)

    for batch in track(parts, "differentiating", len(parts), progress):
        if len(batch) == 1:
            found = gradients(partial(alone, part=batch[0]), at(_count(batch[0])))
            yield {key: _array(value) for key, value in found.items()}
        else:
            yield _joint_gradients(loss, computed, batch, at, join)


def _count(part: slice) -> int:
    return part.stop - part.start


def _joint_gradients(
    loss: Objective,
    outputs: Callable[[Tensors, slice], list[Any]],
    parts: list[slice],
    at: Callable[[int], Tensors],
    join: Callable[[list[np.ndarray]], np.ndarray],
) -> dict[Any, np.ndarray]:
    """Gradients of the loss of a batch whose outputs are computed part by part: a loss need not be a mean of parts'."""
    computed = (outputs(at(_count(part)), part) for part in parts)
    found = [joined(z) for z in zip(*computed, strict=True)]
    masks = [mask_of(z) for z in found]
    floats = {n: z for n, z in enumerate(found) if "float" in keras.backend.standardize_dtype(z.dtype)}
    whole = slice(parts[0].start, parts[-1].stop)
    pulls = gradients(lambda x: loss([masked(x.get(n, z), masks[n]) for n, z in enumerate(found)], whole), floats)
    total: dict[Any, list[np.ndarray]] = {}
    for part in parts:

        def pulled(x: Tensors, part: slice = part) -> Any:
            found, rows = outputs(x, part), slice(part.start - whole.start, part.stop - whole.start)
            return sum(keras.ops.sum(keras.ops.cast(found[n] * pull[rows], "float32")) for n, pull in pulls.items())

        for key, value in gradients(pulled, at(_count(part))).items():
            total.setdefault(key, []).append(_array(value))
    return {key: join(values) for key, values in total.items()}


def _array(x: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype(np.float64)


def gradients(function: Callable[[Tensors], Any], at: Tensors) -> Tensors:
    """Gradient of a scalar function of tensors with respect to each of them.

    Raises:
        MissingPackageError: Keras runs on a backend that only infers.
    """
    backend = keras.config.backend()
    if backend not in _BACKENDS:
        raise MissingPackageError(
            f"gradients need Keras on {', '.join(_BACKENDS)}, and it runs on {backend} here, which only infers. "
            "Set KERAS_BACKEND, or choose a method that needs no data: list_methods() says which."
        )
    return _BACKENDS[backend](function, at)


def _tensorflow(function: Callable[[Tensors], Any], at: Tensors) -> Tensors:
    tf = importlib.import_module("tensorflow")
    at = {key: tf.convert_to_tensor(value) for key, value in at.items()}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(at.values()))
        value = function(at)
    found = tape.gradient(value, list(at.values()), unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return dict(zip(at, found, strict=True))


def _jax(function: Callable[[Tensors], Any], at: Tensors) -> Tensors:
    return importlib.import_module("jax").grad(function)(at)


def _torch(function: Callable[[Tensors], Any], at: Tensors) -> Tensors:
    torch = importlib.import_module("torch")
    at = {key: value.detach().clone().requires_grad_() for key, value in at.items()}
    with torch.enable_grad():
        value = function(at)
    found = [None] * len(at)
    if torch.is_tensor(value) and value.requires_grad:
        found = torch.autograd.grad(value, list(at.values()), allow_unused=True)
    return {k: torch.zeros_like(at[k]) if gradient is None else gradient for k, gradient in zip(at, found, strict=True)}


_BACKENDS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}


def can_differentiate() -> bool:
    """Whether Keras runs on a backend that gives gradients."""
    return keras.config.backend() in _BACKENDS
