"""How the network's outputs react to its layers: the one file that differentiates."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.types import Call, ModelView
from keras_filterprune.probe.execute import Executor
from keras_filterprune.progress import track

BATCH = 128
# Samples that sensitivities are averaged over.
SAMPLES = 512


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
        for path, gradient in gradients(view, batch, layers, objective).items():
            found = keras.ops.convert_to_numpy(keras.ops.cast(gradient, "float32")).astype(np.float64)
            total[path] = total.get(path, 0.0) + np.square(found).reshape(-1, found.shape[-1]).sum(axis=0)
    return {path: value / count for path, value in total.items()}


def gradients(
    view: ModelView, inputs: list[Any], layers: Collection[str], objective: Callable[[list[Any]], Any]
) -> dict[str, Any]:
    """Gradient of `objective(outputs)` with respect to the first output of every layer, in inference mode."""

    def run(at_layer: Callable[[str, Any], Any]) -> Any:
        seen: set[str] = set()

        def apply(call: Call, args: tuple, kwargs: dict) -> Any:
            y = call.op(*args, **kwargs)
            if call.path not in layers or call.path in seen:
                return y
            seen.add(call.path)
            return at_layer(call.path, y)

        return objective(Executor(view, apply, check=True).run(inputs))

    return _BACKENDS[keras.backend.backend()](run)


def _tensorflow(run: Callable) -> dict[str, Any]:
    tf = importlib.import_module("tensorflow")
    outputs: dict[str, Any] = {}
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def watch(path: str, y: Any) -> Any:
            tape.watch(y)
            outputs[path] = y
            return y

        value = run(watch)
    return tape.gradient(value, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _jax(run: Callable) -> dict[str, Any]:
    jax = importlib.import_module("jax")
    zeros: dict[str, Any] = {}

    def note(path: str, y: Any) -> Any:
        zeros[path] = keras.ops.zeros_like(y)
        return y

    run(note)
    return jax.grad(lambda shifts: run(lambda path, y: y + shifts[path]))(zeros)


def _torch(run: Callable) -> dict[str, Any]:
    torch = importlib.import_module("torch")
    outputs: dict[str, Any] = {}

    def watch(path: str, y: Any) -> Any:
        outputs[path] = y if y.requires_grad else y.requires_grad_()
        return y

    with torch.enable_grad():
        value = run(watch)
        found = torch.autograd.grad(value, list(outputs.values()), allow_unused=True)
    return {
        path: keras.ops.zeros_like(y) if gradient is None else gradient
        for (path, y), gradient in zip(outputs.items(), found, strict=True)
    }


_BACKENDS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
