"""`tf.reshape(x, shape)` in a `call()` that is looked at: what TensorFlow would compute, `keras.ops` compute.

TensorFlow asks those who have registered before it refuses an argument that is no tensor of its own; it has
`tf.__internal__.dispatch` for libraries such as Keras. What has no counterpart here, as `tf.random` and
`tf.while_loop`, is refused as ever.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_filterprune.opening.errors import CannotOpenError

_listening: list[bool] = []


@contextlib.contextmanager
def tensorflow_calls() -> Iterator[None]:
    """Functions of TensorFlow take symbolic tensors inside."""
    if keras.backend.backend() == "tensorflow":
        _register()
    _listening.append(True)
    try:
        yield
    finally:
        _listening.pop()


@functools.cache
def _register() -> None:
    """Make the counterparts known to TensorFlow, which cannot forget them again."""
    import tensorflow as tf

    # Some version of TensorFlow may lack some of them.
    known = {inspect.unwrap(_function(tf, name)): counterpart for name, counterpart in counterparts().items()}

    class Dispatcher(tf.__internal__.dispatch.GlobalOpDispatcher):
        def handle(self, op: Any, args: tuple, kwargs: dict) -> Any:
            counterpart = known.get(inspect.unwrap(op)) if _listening else None
            if counterpart is None or not any(
                isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs))
            ):
                return self.NOT_SUPPORTED
            given = inspect.signature(op).bind(*args, **kwargs)
            given.arguments.pop("name", None)
            return counterpart(*given.args, **given.kwargs)

    Dispatcher().register()


def _function(module: Any, name: str) -> Any:
    """The function of this name, None where there is none."""
    return functools.reduce(lambda found, part: getattr(found, part, None), name.split("."), module)


def counterparts() -> dict[str, Callable[..., Any]]:
    """{name of a function below `tf`: what computes the same of symbolic tensors, given the same arguments}."""
    return {name: getattr(ops, name.rpartition(".")[-1]) for name in _SAME} | _RENAMED | _OWN


# Of one name below `tf` and in `keras.ops`, with the same arguments in the same order.
_SAME = """
    abs add cos divide einsum equal exp expand_dims floor greater greater_equal less less_equal logical_and
    logical_not logical_or math.ceil math.erf math.log math.log1p math.mod math.negative math.reciprocal math.rsqrt
    maximum minimum multiply nn.elu nn.leaky_relu nn.log_softmax nn.relu nn.relu6 nn.selu nn.silu nn.softmax
    nn.softplus nn.softsign norm not_equal ones_like repeat roll round sigmoid sign sin sqrt square squeeze stack
    stop_gradient subtract tan tanh tensordot unstack where zeros_like
""".split()

_RENAMED: dict[str, Callable[..., Any]] = {
    "clip_by_value": ops.clip,
    "concat": ops.concatenate,
    "math.pow": ops.power,
    "nn.bias_add": ops.add,
    "reduce_all": ops.all,
    "reduce_any": ops.any,
    "reduce_logsumexp": ops.logsumexp,
    "reduce_max": ops.max,
    "reduce_mean": ops.mean,
    "reduce_min": ops.min,
    "reduce_prod": ops.prod,
    "math.reduce_std": ops.std,
    "reduce_sum": ops.sum,
    "math.reduce_variance": ops.var,
    "reverse": ops.flip,
    "transpose": ops.transpose,
}


def _integers(values: Any) -> list[int]:
    return [int(n) for n in (values if isinstance(values, list | tuple) else np.asarray(values))]


def _shape(input: Any, out_type: Any = None) -> np.ndarray:
    return np.array(input.shape)


def _cast(x: Any, dtype: Any) -> Any:
    return ops.cast(x, keras.backend.standardize_dtype(dtype))


def _gather(params: Any, indices: Any, validate_indices: Any = None, axis: Any = None, batch_dims: int = 0) -> Any:
    if not batch_dims:
        return ops.take(params, indices, axis or 0)
    if batch_dims == len(params.shape) - 1 == len(indices.shape) - 1:
        return ops.take_along_axis(params, indices, -1)
    raise CannotOpenError("calls tf.gather(batch_dims=...) with other axes than the last one left")


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a, b = (
        ops.transpose(x, (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)) if turned else x
        for x, turned in ((a, transpose_a), (b, transpose_b))
    )
    return ops.matmul(a, b)


def _one_hot(indices: Any, depth: Any, on_value: Any = None, off_value: Any = None, axis: Any = -1) -> Any:
    if (on_value, off_value) != (None, None):
        raise CannotOpenError("calls tf.one_hot() with values of its own")
    return ops.one_hot(indices, int(depth), axis)


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Any:
    value = {"constant_values": constant_values} if mode.upper() == "CONSTANT" else {}
    return ops.pad(tensor, np.asarray(paddings).tolist(), mode.lower(), **value)


def _resize(
    images: Any, size: Any, method: str = "bilinear", preserve_aspect_ratio: bool = False, antialias: bool = False
) -> Any:
    if preserve_aspect_ratio:
        raise CannotOpenError("calls tf.image.resize() with preserve_aspect_ratio")
    return ops.image.resize(images, tuple(_integers(size)), interpolation=method, antialias=antialias)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis)
    return ops.split(value, np.cumsum(_integers(num_or_size_splits))[:-1].tolist(), axis)


def _blocks(x: Any, shape: tuple[int, ...], sides: tuple[int, int]) -> Any:
    """Pixels of a block and channels change places."""
    x = ops.transpose(ops.reshape(x, (-1, *shape)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, *sides, math.prod(shape) // math.prod(sides)))


def _depth_to_space(input: Any, block_size: int) -> Any:
    _, height, width, channels = input.shape
    shape = height, width, block_size, block_size, channels // block_size**2
    return _blocks(input, shape, (height * block_size, width * block_size))


def _space_to_depth(input: Any, block_size: int) -> Any:
    _, height, width, channels = input.shape
    sides = height // block_size, width // block_size
    return _blocks(input, (sides[0], block_size, sides[1], block_size, channels), sides)


_OWN: dict[str, Callable[..., Any]] = {
    "argmax": lambda input, axis=0: ops.argmax(input, axis),
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, _integers(shape)),
    "cast": _cast,
    "convert_to_tensor": lambda value, dtype=None: value if dtype is None else _cast(value, dtype),
    "cumsum": lambda x, axis=0: ops.cumsum(x, axis),
    "gather": _gather,
    "identity": lambda input: input,
    "image.resize": _resize,
    "matmul": _matmul,
    "math.squared_difference": lambda x, y: ops.square(x - y),
    "nn.depth_to_space": _depth_to_space,
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.moments": lambda x, axes, shift=None, keepdims=False: ops.moments(x, axes, keepdims),
    "nn.space_to_depth": _space_to_depth,
    "one_hot": _one_hot,
    "pad": _pad,
    "reshape": lambda tensor, shape: ops.reshape(tensor, _integers(shape)),
    "shape": _shape,
    "split": _split,
    "tile": lambda input, multiples: ops.tile(input, _integers(multiples)),
}
