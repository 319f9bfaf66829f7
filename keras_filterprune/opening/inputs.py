"""The symbolic inputs of a model, and a batch to prove it on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import wrong
from keras_filterprune.errors import InvalidValueError, UnsupportedModelError
from keras_filterprune.graph.keras_view import NOMINAL_SIZE, NOMINAL_TOKENS
from keras_filterprune.opening.kinds import graph_inputs

_SAMPLES = 3


def specs_of(model: keras.Model, input_spec: Any) -> Any:
    """What a model takes, as `keras.KerasTensor`s with an open batch, in its structure.

    Args:
        model: the model.
        input_spec: shapes, symbolic tensors or a batch of arrays, in the structure of its inputs; None: what it was
            built for.

    Raises:
        UnsupportedModelError: it was not built, and no `input_spec` is given.
    """
    if input_spec is None:
        if graph_inputs(model):
            inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
            return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, dtype=t.dtype, name=t.name), inputs)
        shape = (model.get_build_config() or {}).get("input_shape") if model.built else None
        if shape is None:
            why = "Keras has noted no shapes of inputs" if model.built else "it was not built"
            call = "O" if model.built else "Call it on data once, or o"
            raise UnsupportedModelError(
                f"what model '{model.name}' ({type(model).__name__}) takes is not known: {why}. {call}pen it with its "
                "inputs: kfp.open_model(model, input_spec=(None, 224, 224, 3)), or a batch of data in the place of the "
                "shape."
            )
        input_spec = _shapes(shape)
    specs = _mapped(_spec, input_spec)
    if graph_inputs(model) and len(flat := keras.tree.flatten(specs)) == len(model.inputs):
        pairs = zip(flat, model.inputs, strict=True)
        given = [keras.KerasTensor(spec.shape, dtype=t.dtype, name=t.name) for spec, t in pairs]
        single = isinstance(model, keras.Sequential)
        return given[0] if single else keras.tree.pack_sequence_as(model.input, given)
    names = _names(specs)
    return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, dtype=t.dtype, name=next(names)), specs)


def call_once(model: keras.Model, specs: Any) -> None:
    """Call a model on zeros, as its layers make their weights when they are called."""

    def zeros(spec: Any) -> Any:
        side = NOMINAL_TOKENS if "int" in spec.dtype else NOMINAL_SIZE
        return keras.ops.zeros((1, *(n or side for n in spec.shape[1:])), spec.dtype)

    model(keras.tree.map_structure(zeros, specs))


def check_spec(model: keras.Model, input_spec: Any) -> None:
    """Refuse an `input_spec` that a model with a graph does not take."""
    if input_spec is None:
        return
    wanted, given = (keras.tree.flatten(specs_of(model, spec)) for spec in (None, input_spec))
    fits = len(wanted) == len(given) and all(
        len(a.shape) == len(b.shape) and all(n in (None, m) for n, m in zip(a.shape[1:], b.shape[1:], strict=True))
        for a, b in zip(wanted, given, strict=True)
    )
    if not fits:
        raise wrong("input_spec", input_spec, f"shapes or a batch of what the model takes, {[t.shape for t in wanted]}")


def _names(specs: Any) -> Iterator[str]:
    """A name for every input: its key, or a number."""
    count = len(keras.tree.flatten(specs))
    keys = [str(path[-1]) for path, _ in keras.tree.flatten_with_path(specs)] if isinstance(specs, dict) else []
    return iter(keys or ["input" if n == 1 else f"input_{n}" for n in range(1, count + 1)])


def _shapes(shape: Any) -> Any:
    """Shapes that Keras has noted, without the batch that they were noted for."""
    if _is_shape(shape):
        return (None, *shape[1:])
    return {k: _shapes(v) for k, v in shape.items()} if isinstance(shape, dict) else [_shapes(v) for v in shape]


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(n is None or isinstance(n, int) for n in value)


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(function, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and not _is_shape(value):
        return type(value)(_mapped(function, entry) for entry in value)
    return function(value)


def _spec(value: Any) -> keras.KerasTensor:
    if _is_shape(value) and len(value):
        return keras.KerasTensor(tuple(value), dtype=keras.config.floatx())
    if isinstance(value, keras.InputSpec):
        return keras.KerasTensor(tuple(value.shape), dtype=value.dtype or keras.config.floatx())
    if isinstance(value, keras.KerasTensor):
        return keras.KerasTensor(value.shape, dtype=value.dtype)
    if hasattr(value, "shape") and len(value.shape):
        dtype = keras.backend.standardize_dtype(value.dtype)
        dtype = keras.config.floatx() if dtype == "float64" else dtype
        return keras.KerasTensor((None, *value.shape[1:]), dtype=dtype)
    raise InvalidValueError(
        "input_spec is a shape with the batch first, as (None, 224, 224, 3), a keras.Input, or a batch of arrays, in "
        f"the structure of the model's inputs. Received: {type(value).__name__}."
    )


def optional_inputs(model: keras.Model) -> list[int]:
    """Which of the flat inputs of a model with a graph may be None."""
    made = {id(op.output): op for op in getattr(model, "operations", ()) if isinstance(op, keras.layers.InputLayer)}
    return [n for n, tensor in enumerate(model.inputs) if id(tensor) in made and made[id(tensor)].optional]


def batch_of(input_spec: Any, opened: keras.Model) -> list[Any] | None:
    """The first samples of a batch that was given, as flat tensors; None if none was."""
    flat = keras.tree.flatten(input_spec)
    if not flat or not all(
        hasattr(x, "shape") and not isinstance(x, keras.KerasTensor | keras.InputSpec) for x in flat
    ):
        return None
    return [
        keras.ops.convert_to_tensor(np.asarray(keras.ops.convert_to_numpy(x))[:_SAMPLES], t.dtype)
        for x, t in zip(flat, opened.inputs, strict=True)
    ]
