"""How the network's outputs and its loss react to its layers and weights: the one file that differentiates."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import MissingPackageError
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import Call, ChannelGraph, ModelView
from keras_filterprune.handlers.activation import is_activation, named
from keras_filterprune.handlers.registry import keras_name
from keras_filterprune.probe.data import check_class_scores, labelled_inputs
from keras_filterprune.probe.execute import Executor
from keras_filterprune.progress import track

BATCH = 128
# Samples that sensitivities are averaged over.
SAMPLES = 512

# {what: tensor}
Tensors = dict[Any, Any]


def output_sensitivity(
    view: ModelView, inputs: list[Any], layers: Collection[str], progress: bool
) -> dict[str, np.ndarray]:
    """How far an error in a layer's output moves the network's outputs, to first order.

    The expected squared change of the outputs (in units of their standard deviation) per unit of error variance in one
    channel, alike at all positions: E sum_positions (d<v, z>/dy)^2 over random v ~ N(0, I).

    Args:
        view: the model.
        inputs: flat model inputs, tensors of shape (samples, ...), of which the first 512 are used.
        layers: paths of layers with one output, channels last; each is looked at in its first call.
        progress: show a progress bar.

    Returns:
        {layer: float64 of shape (channels,)}.
    """
    generator = np.random.default_rng(0)
    count = min(len(inputs[0]), SAMPLES)
    total: dict[str, np.ndarray] = {}

    def objective(outputs: list[Any]) -> Any:
        value = 0.0
        for output in outputs:
            z = keras.ops.cast(output, "float32")
            v = keras.ops.convert_to_tensor(generator.normal(size=z.shape).astype(np.float32))
            value = value + keras.ops.sum(v * z) / (keras.ops.stop_gradient(keras.ops.std(z)) + 1e-12)
        return value

    starts = range(0, count, BATCH)
    for start in track(starts, "differentiating", len(starts), progress):
        batch = [x[start : min(start + BATCH, count)] for x in inputs]
        for path, gradient in output_gradients(view, batch, layers, objective).items():
            found = _array(gradient)
            total[path] = total.get(path, 0.0) + np.square(found).reshape(-1, found.shape[-1]).sum(axis=0)
    return {path: value / count for path, value in total.items()}


def output_gradients(
    view: ModelView, inputs: list[Any], layers: Collection[str], objective: Callable[[list[Any]], Any]
) -> Tensors:
    """Gradient of `objective(outputs)` with respect to the first output of every layer, in inference mode."""

    def run(at_layer: Callable[[str, Any], Any]) -> list[Any]:
        seen: set[str] = set()

        def apply(call: Call, args: tuple, kwargs: dict) -> Any:
            y = call.op(*args, **kwargs)
            if call.path not in layers or call.path in seen:
                return y
            seen.add(call.path)
            return at_layer(call.path, y)

        return Executor(view, apply, check=True).run(inputs)

    zeros: Tensors = {}

    def note(path: str, y: Any) -> Any:
        zeros[path] = keras.ops.zeros_like(y)
        return y

    run(note)
    # The gradient of what a layer gives is that of a shift which is added to it.
    return gradients(lambda shifts: objective(run(lambda path, y: y + shifts[path])), zeros)


def weight_gradients(
    view: ModelView, data: Any, weights: Collection[tuple[str, str]], progress: bool
) -> Iterator[dict[tuple[str, str], np.ndarray]]:
    """Gradients of the mean cross-entropy of every batch of 128 with respect to weights.

    Args:
        view: a classifier.
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

    return _loss_gradients(view, data, outputs, lambda: {k: v.value for k, v in variables.items()}, progress)


def gate_gradients(graph: ChannelGraph, data: Any, progress: bool) -> Iterator[np.ndarray]:
    """Gradients of the mean cross-entropy of every batch with respect to a gate on each unit, all of them 1.

    A unit's gate multiplies its channels wherever a layer with weights reads them: closed, it removes the unit.
    Arguments as in `weight_gradients`.

    Yields:
        float64 of shape (units,), batch by batch; 0 for units that nothing reads.
    """
    readers = {bind.layer for bind in graph.binds if bind.role == "input"}
    read = {
        call.path: (inputs[0].axis, inputs[0].ids)
        for call, (inputs, _) in zip(graph.view.calls, graph.tensors, strict=True)
        if call.path in readers and inputs[0].axis is not None
    }

    def outputs(gates: Tensors, inputs: list[Any]) -> list[Any]:
        def gated(call: Call, args: tuple, kwargs: dict) -> Any:
            if call.path in read:
                shape = [1] * len(args[0].shape)
                shape[read[call.path][0]] = -1
                args = (args[0] * keras.ops.cast(keras.ops.reshape(gates[call.path], shape), args[0].dtype), *args[1:])
            return call.op(*args, **kwargs)

        return Executor(graph.view, gated, check=True).run(inputs)

    def ones() -> Tensors:
        return {path: keras.ops.ones(len(ids)) for path, (_, ids) in read.items()}

    units = graph.unit_of_id.max(initial=-1) + 1
    for found in _loss_gradients(graph.view, data, outputs, ones, progress):
        total = np.zeros(units)
        for path, gradient in found.items():
            total += np.bincount(graph.unit_of_id[read[path][1]], gradient, units)
        yield total


def _loss_gradients(
    view: ModelView,
    data: Any,
    outputs: Callable[[Tensors, list[Any]], list[Any]],
    at: Callable[[], Tensors],
    progress: bool,
) -> Iterator[dict[Any, np.ndarray]]:
    """Gradients of the loss with respect to the tensors that `outputs` takes, at what `at` says, batch by batch."""
    inputs, labels = labelled_inputs(data, view, "a gradient of the loss")
    check_class_scores(view, "a gradient of the loss")
    first = outputs(at(), [x[:BATCH] for x in inputs])[0]
    logits = _are_logits(view, keras.ops.convert_to_numpy(first))
    starts = range(0, len(labels), BATCH)
    for start in track(starts, "differentiating", len(starts), progress):
        batch, own = [x[start : start + BATCH] for x in inputs], labels[start : start + BATCH]

        def loss(values: Tensors, batch: list[Any] = batch, own: np.ndarray = own) -> Any:
            return cross_entropy(outputs(values, batch)[0], own, logits)

        yield {key: _array(value) for key, value in gradients(loss, at()).items()}


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
        found = torch.autograd.grad(function(at), list(at.values()), allow_unused=True)
    return {k: torch.zeros_like(at[k]) if gradient is None else gradient for k, gradient in zip(at, found, strict=True)}


_BACKENDS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
