"""Builds the tf_keras model that a description describes, and proves that it computes the same."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_filterprune.errors import UnsupportedModelError
from keras_filterprune.graph.types import Call
from keras_filterprune.probe.execute import Executor
from keras_filterprune.tfmot.description import Description, LayerSpec, sampled

# Largest difference relative to a tensor's largest value.
_TOLERANCE = 1e-5
# Arguments with another name in tf_keras.
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
# Functions with another name in tf_keras.
_FUNCTIONS = {"silu": "swish"}
# Functions that tf_keras lacks, or means another one by (hard_sigmoid), as layers one after another; True: times what
# went in.
_COMPOSED = {
    "relu6": ([("ReLU", {"max_value": 6.0})], False),
    "leaky_relu": ([("LeakyReLU", {"alpha": 0.2})], False),
    "hard_sigmoid": (
        [("Rescaling", {"scale": 1.0, "offset": 3.0}), ("ReLU", {"max_value": 6.0}), ("Rescaling", {"scale": 1 / 6})],
        False,
    ),
}
_COMPOSED["hard_silu"] = _COMPOSED["hard_swish"] = (_COMPOSED["hard_sigmoid"][0], True)


def build_twin(description: Description, name: str) -> Any:
    """The `tf_keras.Model` with the same layers, names and weights; nested models are dissolved.

    Raises:
        UnsupportedModelError: tf_keras lacks a layer or one of its options, or a layer computes something else there.
    """
    import tf_keras

    layers: dict[int, _Layer] = {}

    def apply(call: Call, args: tuple, kwargs: dict) -> Any:
        if id(call.op) not in layers:
            layers[id(call.op)] = _Layer(call.op)
        return layers[id(call.op)](*args, **kwargs)

    view = description.view
    inputs = [
        tf_keras.Input(batch_shape=view.calls[ref.call].op.shape, dtype=view.calls[ref.call].op.dtype, name=path)
        for ref in view.inputs
        for path in [view.calls[ref.call].path]
    ]
    outputs = Executor(view, apply).run(inputs)
    for layer in layers.values():
        layer.set_weights()
    twin = tf_keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=name)
    _compare_calls(description, apply)
    check_outputs(description, twin)
    return twin


def check_outputs(description: Description, twin: Any) -> None:
    """Raise `UnsupportedModelError` unless the whole model computes the same."""
    batch = description.batch
    found = twin(batch if len(batch) > 1 else batch[0], training=False)
    found = found if isinstance(found, list) else [found]
    for number, (a, b) in enumerate(zip(description.outputs, found, strict=True)):
        difference = _difference(a, np.asarray(b))
        if not difference <= _TOLERANCE:
            raise UnsupportedModelError(
                f"output {number} of model '{twin.name}' differs in tf_keras by {difference:.2g} of its largest value, "
                f"expected at most {_TOLERANCE:g}, although every layer alone agrees."
            )


class _Layer:
    """One layer of the twin, and what makes up its activation where tf_keras has no such function."""

    def __init__(self, spec: LayerSpec):
        import tf_keras

        self._spec = spec
        kind = getattr(tf_keras.layers, spec.kind, None)
        if kind is None:
            raise UnsupportedModelError(
                f"layer '{spec.name}' is a {spec.kind}, which tf_keras does not have. Replace it by other layers."
            )
        config = _known_options(spec, kind)
        pieces: Sequence[tuple[str, dict[str, Any]]] = ()
        self._product = None
        for key in [key for key in config if key.endswith("activation")]:
            recurrent = "recurrent_activation" in config or spec.kind == "SimpleRNN"
            if config[key] in _COMPOSED and not recurrent:
                pieces, product = _COMPOSED[config[key]]
                self._product = tf_keras.layers.Multiply(name=f"{spec.name}_{config[key]}") if product else None
                config[key] = "linear"
            else:
                config[key] = self._function(key, config[key])
        self._layer = self._made(kind, config)
        self._pieces = [
            getattr(tf_keras.layers, piece)(**options, name=f"{spec.name}_activation_{number}")
            for number, (piece, options) in enumerate(pieces)
        ]

    def _function(self, key: str, function: Any) -> Any:
        import tf_keras

        try:
            if function in _COMPOSED:
                raise ValueError(function)
            return tf_keras.activations.get(_FUNCTIONS.get(function, function))
        except (ValueError, TypeError) as error:
            raise UnsupportedModelError(
                f"layer '{self._spec.name}' ({self._spec.kind}) has {key}={function!r}, for which tf_keras has no "
                "equal function. Use another one."
            ) from error

    def _made(self, kind: Any, config: dict[str, Any]) -> Any:
        try:
            return kind.from_config(config | {"name": self._spec.name, "dtype": "float32"})
        except (TypeError, ValueError) as error:
            raise UnsupportedModelError(
                f"layer '{self._spec.name}' ({self._spec.kind}) cannot be built in tf_keras: {error}"
            ) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x = y = self._layer(*args, **kwargs)
        for piece in self._pieces:
            y = piece(y)
        return y if self._product is None else self._product([x, y])

    def set_weights(self) -> None:
        shapes = [w.shape for w in self._spec.weights], [tuple(w.shape) for w in self._layer.weights]
        if shapes[0] != shapes[1]:
            raise UnsupportedModelError(
                f"layer '{self._spec.name}' ({self._spec.kind}) has weights of shapes {shapes[0]}, and {shapes[1]} in "
                "tf_keras. Replace it by other layers."
            )
        self._layer.set_weights(self._spec.weights)
        if hasattr(self._layer, "finalize_state"):
            self._layer.finalize_state()


def _known_options(spec: LayerSpec, kind: Any) -> dict[str, Any]:
    """The configuration in tf_keras' words; an option it does not know has to be off or at its default."""
    known = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters} | {"trainable"}
    config = {}
    for key, value in spec.config.items():
        name = _RENAMED.get((spec.kind, key), key)
        if name in known:
            config[name] = value
        elif value not in (None, False, "channels_last") and value != spec.defaults.get(key):
            raise UnsupportedModelError(
                f"layer '{spec.name}' ({spec.kind}) has {key}={value!r}, an option that tf_keras does not know. Use "
                "its default, or other layers."
            )
    return config


def _compare_calls(description: Description, apply: Any) -> None:
    """Raise `UnsupportedModelError` that names the first call with other outputs."""
    import tensorflow as tf

    executor = Executor(description.view, apply)
    executor.feed([tf.constant(x) for x in description.batch])
    for number, call in enumerate(description.view.calls):
        if not call.inputs:
            continue
        difference = _difference(description.values[number], sampled(executor.step(number)))
        if not difference <= _TOLERANCE:
            raise UnsupportedModelError(
                f"layer '{call.path}' ({call.op.kind}) is the first that computes something else in tf_keras: its "
                f"outputs differ by {difference:.2g} of their largest value, expected at most {_TOLERANCE:g}. Replace "
                "it by other layers."
            )


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(expected - found).max(initial=0.0) / (np.abs(expected).max(initial=0.0) or 1.0))
