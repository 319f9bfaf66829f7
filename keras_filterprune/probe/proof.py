"""Prove what handlers of own layers say in `linear`: that a layer computes activation(product + bias), row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.graph.keras_view import first_line, substitute
from keras_filterprune.graph.types import Call, ModelView
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.registry import likeness, linear_of, registered
from keras_filterprune.probe.consumers import draw_places, rows_at
from keras_filterprune.probe.execute import inference

# Half precision rounds far below the factors, biases and activations that are forgotten.
_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
_DEFAULT_TOLERANCE = 1e-3


def prove_linear(view: ModelView) -> None:
    """Compare every layer that is not Keras' own, and of which its handler says what it multiplies, with that.

    On one random sample, with a little noise on what is trained, so that a bias of zeros shows.

    Raises:
        UnsupportedLayerError: a layer computes something else.
    """
    # Shared layers are looked at once, at their first call.
    for call in {id(call.op): call for call in reversed(view.calls) if call.inputs}.values():
        own = isinstance(call.op, keras.layers.Layer) and not type(call.op).__module__.startswith("keras.")
        linear = linear_of(call.op) if own else None
        if linear is not None and linear.product is not None:
            _prove(call, linear)


def _prove(call: Call, linear: Linear) -> None:
    random = np.random.default_rng(0)
    noisy = [
        (v, v.value + keras.ops.convert_to_tensor(random.normal(0, 0.1, v.shape), v.dtype))
        for v in call.op.trainable_variables
        if "float" in keras.backend.standardize_dtype(v.dtype)
    ]
    values = {
        ref: keras.ops.convert_to_tensor(random.normal(size=[1 if n is None else n for n in shape]), "float32")
        for ref, shape in zip(call.inputs, call.input_shapes, strict=True)
    }
    args, kwargs = substitute((call.args, call.kwargs), values)
    x = values[call.inputs[0]]
    with keras.StatelessScope(state_mapping=noisy):
        layer = keras.tree.flatten(call.op(*args, **inference(call, kwargs)))[0]
        _compare(call, "activation(product(x, *kernels) + bias)", lambda: (layer, _said(linear, x)))
        if linear.kernel is not None and linear.groups == 1 and not linear.transposed:
            axes = f"kernel, with axes channels={linear.channels}, filters={linear.filters}"
            _compare(call, f"rows of its input times its {axes}", lambda: _by_rows(call, linear, x))


def _compare(call: Call, what: str, both: Callable[[], tuple[Any, Any]]) -> None:
    """Refuse two tensors that are not the same but for rounding, and what cannot be computed."""
    try:
        same = _close(*both(), _TOLERANCE.get(getattr(call.op, "compute_dtype", "float32"), _DEFAULT_TOLERANCE))
    # Another's code, on any backend.
    except Exception as error:
        raise _wrong(call, what, first_line(error)) from error
    if not same:
        raise _wrong(call, what, "the layer gives something else.")


def _wrong(call: Call, what: str, why: str) -> UnsupportedLayerError:
    like = likeness(call.op)
    claim = "as `linear` says" if like is None else f"as {like.__name__} does"
    remedy = "may leave `linear` out" if like is None else "in place of like= says what it does"
    return UnsupportedLayerError(
        f"layer '{call.path}' ({type(call.op).__name__}), {registered(call.op)}, does not compute {what}, {claim}: "
        f"{why} See kfp.handlers.Linear; a handler of its own {remedy}."
    )


def _said(linear: Linear, x: Any) -> Any:
    """What a handler says that a layer makes of `x`."""
    sums, bias = linear(x), linear.weight(linear.bias)
    sums = sums if bias is None else sums + keras.ops.cast(bias.value, "float32")
    return sums if linear.activation is None else linear.activation(sums)


def _by_rows(call: Call, linear: Linear, x: Any) -> tuple[Any, Any]:
    """The sums at some places by the product, and by rows of the kernel."""
    places = draw_places(call.path, linear, x, x.shape[0])
    rows, kernel = rows_at(linear, x, places), linear.slices
    sums = places.pick(linear(x))
    return sums, rows.reshape(len(rows), -1) @ kernel.reshape(-1, kernel.shape[-1])


def _close(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two tensors are the same but for rounding; what is not finite proves nothing."""
    one, other = (keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in (one, other))
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return one.shape == other.shape
    return bool(np.abs(one - other).max(initial=0.0) <= tolerance * max(np.abs(one).max(initial=0.0), 1e-6))
