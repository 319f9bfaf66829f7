"""What activation functions do, found out by calling them: which known one they are, and whether they mix numbers."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np

# Activations of Keras that look at one number at a time; softmax, glu and the like mix channels.
ELEMENTWISE = frozenset(
    """
        linear relu relu6 leaky_relu elu selu celu gelu silu swish mish softplus softsign sigmoid hard_sigmoid
        hard_silu hard_swish tanh hard_tanh tanh_shrink soft_shrink hard_shrink squareplus exponential
        log_sigmoid sparse_plus sparse_sigmoid threshold
    """.split()
)
# Where known functions bend, and far outside.
_PLACES = np.concatenate([np.linspace(-8, 8, 129), [-1e3, -50.0, -1e-3, 1e-3, 50.0, 1e3]]).astype("float32")
_EXTREMES = 0.0, 1e-6, -1e-6, 1e-3, 40.0, -40.0, 1e4, -1e4
TOLERANCE = {"float16": 1e-2, "bfloat16": 5e-2}
_FOUND: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()


def activation_name(function: Any) -> str | None:
    """Name of the element-wise activation of Keras that a function computes, whatever it is called and made of.

    Args:
        function: takes a tensor; None is "linear".

    Returns:
        The name ("relu" for `tf.nn.relu` and for `lambda x: keras.ops.relu(x)`); None for every other function, such as
        a relu with a slope.
    """
    if function is None:
        return "linear"
    name = getattr(function, "__name__", "")
    return name if _is_known(function) else remembered(function, "name", lambda: _name(function, name))


def is_elementwise(function: Any, shape: tuple[int | None, ...], dtype: str = "float32") -> bool:
    """Whether a function treats every number alike, whatever stands around it and wherever it stands.

    It is called on random tensors of few different numbers, of two sizes: each of them has to become one and the same.

    Args:
        function: takes a tensor.
        shape: of its tensors, channels last; how many channels there are has to make no difference.
        dtype: of its tensors ("float32").
    """
    return _is_known(function) or remembered(
        function, (len(shape), shape[-1], dtype), lambda: _treats_alike(function, len(shape), shape[-1] or 1, dtype)
    )


def _is_known(function: Any) -> bool:
    name = getattr(function, "__name__", "")
    return name in ELEMENTWISE and getattr(keras.activations, name, None) is function


def remembered(function: Any, key: Hashable, find: Callable[[], Any]) -> Any:
    """What `find` gives for a function and a key, found once."""
    try:
        known = _FOUND.setdefault(function, {})
    except TypeError:
        # Neither every callable has a hash nor can every one be referred to weakly.
        known = {}
    if key not in known:
        known[key] = find()
    return known[key]


def _name(function: Any, own: str) -> str | None:
    values = _called(function, _PLACES)
    if values is None or not _treats_alike(function, 2, 5, "float32"):
        return None
    # Its own name first, then short ones: silu and swish are the same, and celu is elu.
    for name in sorted(ELEMENTWISE, key=lambda name: (name != own, len(name), name)):
        known = _called(getattr(keras.activations, name), _PLACES)
        if known is not None and np.allclose(values, known, rtol=1e-5, atol=1e-6):
            return name
    return None


def _treats_alike(function: Any, rank: int, channels: int, dtype: str) -> bool:
    generator = np.random.default_rng(0)
    pool = np.concatenate([_EXTREMES, generator.normal(size=28), 8 * generator.normal(size=28)])
    least, largest = np.full(len(pool), np.inf), np.full(len(pool), -np.inf)
    for last, side, ordinary in ((channels, 3, 0), (max(1, channels - 1), 4, len(_EXTREMES)), (channels, 3, 0)):
        inner = (*[side] * (rank - 2), last)
        which = generator.integers(ordinary, len(pool), (max(2, 512 // int(np.prod(inner))), *inner))
        values, again = (_called(function, pool[which].astype("float32"), dtype) for _ in range(2))
        if values is None or again is None or not np.array_equal(values, again, equal_nan=True):
            return False
        values = np.nan_to_num(values, nan=3e300, posinf=2e300, neginf=-2e300)
        np.minimum.at(least, which, values)
        np.maximum.at(largest, which, values)
    size = np.maximum(np.abs(least), np.abs(largest))
    return bool(np.all(largest - least <= TOLERANCE.get(dtype, 1e-5) * size + 1e-6))


def _called(function: Any, x: np.ndarray, dtype: str = "float32") -> np.ndarray | None:
    """The values of a function, None unless it takes the tensor and gives one of the same shape."""
    # Whatever a function raises, it is none of those that are looked for.
    with contextlib.suppress(Exception), keras.StatelessScope(), warnings.catch_warnings():
        # That softmax of one number is one, say.
        warnings.simplefilter("ignore")
        values = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x, dtype))).astype(np.float64)
        return values if values.shape == x.shape else None
    return None
