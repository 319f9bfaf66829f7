"""How a Keras model's inputs and outputs are called in the exported file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras

from keras_filterprune.errors import ExportError, UnsupportedModelError


@dataclass(frozen=True)
class InputPort:
    """One model input.

    Attributes:
        name: what the user calls it: the key of a dict input, else the name given to `keras.Input`.
        key: what the file's signature calls it.
        shape: shape of one sample, without the batch axis.
        dtype: Keras' dtype name, for example `"float32"`.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: str


def input_structure(model: keras.Model) -> Any:
    """Return the model's input tensors nested the way its call expects them.

    Args:
        model: a built functional or Sequential model.

    Returns:
        A `KerasTensor`, or lists, tuples and dicts of them.

    Raises:
        UnsupportedModelError: the model is subclassed or was never built.
    """
    if not getattr(model, "inputs", None):
        raise UnsupportedModelError(
            f"export_tflite needs a built functional or Sequential keras.Model. Received: {_describe(model)}. "
            "Build a Sequential by starting it with keras.Input(shape); wrap a subclassed model as "
            "keras.Model(x, subclassed(x)) with x = keras.Input(shape)."
        )
    # Sequential takes a bare tensor, and its `input` only exists once the model is used inside another one.
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def input_ports(model: keras.Model) -> tuple[InputPort, ...]:
    """List the model's inputs in the order in which Keras flattens them.

    Args:
        model: a built functional or Sequential model, computing in float32.

    Returns:
        One port per input.

    Raises:
        UnsupportedModelError: the model is subclassed or was never built.
        ExportError: an input has an open dimension besides the batch, or no numeric dtype.
    """
    structure = input_structure(model)
    paths, tensors = zip(*keras.tree.flatten_with_path(structure), strict=True)
    names = []
    for index, (path, tensor) in enumerate(zip(paths, tensors, strict=True)):
        name = str(path[0]) if isinstance(structure, dict) and len(path) == 1 else tensor.name
        # Keras numbers unnamed inputs across the whole process, which would make the file depend on its history.
        names.append(f"input_{index}" if name.startswith("keras_tensor") else name)
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.dtype in ("string", "bfloat16"):
            raise ExportError(
                f"an input has a dtype that NumPy and TFLite share, such as 'float32' or 'int32'. Received: "
                f"dtype={tensor.dtype!r} of input {name!r} of {_describe(model)}. Convert the values outside of the "
                "model."
            )
        if None in tensor.shape[1:]:
            raise ExportError(
                f"a .tflite file needs fixed sizes, but input {name!r} of {_describe(model)} has "
                f"shape={tuple(tensor.shape)}. Fix the size: call the model on keras.Input(...) with "
                "every dimension given, and export keras.Model(x, model(x))."
            )
    keys = _file_keys(names, "input")
    return tuple(
        InputPort(name, key, tuple(tensor.shape[1:]), tensor.dtype)
        for name, key, tensor in zip(names, keys, tensors, strict=True)
    )


def output_structure(model: keras.Model) -> Any:
    """Return the model's output tensors nested the way its call gives them."""
    return model.outputs[0] if isinstance(model, keras.Sequential) else model.output


def output_keys(outputs: Any) -> list[str]:
    """Name each tensor of an output structure: `output_0`, `output_1` for lists, the joined keys for dicts.

    Args:
        outputs: a tensor, or lists, tuples and dicts of tensors.

    Returns:
        One unique name per tensor, in the order of `keras.tree.flatten`.
    """
    paths = [path for path, _ in keras.tree.flatten_with_path(outputs)]
    return _file_keys(["_".join(map(str, path)) or "0" for path in paths], "output")


def output_layers(model: keras.Model) -> dict[str, str]:
    """Name the layer that computes each output.

    Args:
        model: a built functional or Sequential model.

    Returns:
        `{the output's name in the file: name of the layer}`.
    """
    if isinstance(model, keras.Sequential):
        return {output_keys(model.outputs[0])[0]: model.layers[-1].name}
    return dict(zip(output_keys(model.output), model.output_names, strict=True))


def _file_keys(names: Iterable[str], prefix: str) -> list[str]:
    """TensorFlow rewrites signature names that are no ASCII identifiers; doing it first keeps the names known."""
    keys: list[str] = []
    for name in names:
        key = re.sub(r"\W", "_", name, flags=re.ASCII)
        key = key if key[:1].isalpha() else f"{prefix}_{key}"
        while key in keys:
            key += "_"
        keys.append(key)
    return keys


def _describe(model: Any) -> str:
    return f"{type(model).__name__} {getattr(model, 'name', model)!r}"
