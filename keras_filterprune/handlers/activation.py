"""Activations, dropout and noise, and element-wise merges: operations that keep every channel in its place."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor, TensorRef
from keras_filterprune.handlers.base import Handler, Resize, describe, give_up, untracked
from keras_filterprune.handlers.functions import ELEMENTWISE, activation_name, is_elementwise
from keras_filterprune.handlers.registry import (
    Opaque,
    handler_for,
    keras_class,
    keras_name,
    linear_of,
    register_handler,
    register_keras_names,
)

L = keras.layers


def pin_mixing_activation(call: Call, ids: np.ndarray, t: Tracer) -> None:
    """Pin the channels of a call whose activation does not act on one number at a time."""
    pin_mixing(call, getattr(call.op, "activation", None), ids, t)


def pin_mixing(call: Call, activation: Any, ids: np.ndarray, t: Tracer) -> None:
    """Pin the channels of a call that go through such an activation, a function or a layer."""
    if activation is None:
        return
    if isinstance(activation, keras.layers.Layer):
        name, elementwise = type(activation).__name__, type(handler_for(activation)) is Elementwise
    else:
        name = getattr(activation, "__name__", type(activation).__name__)
        elementwise = is_elementwise(activation, call.output_shapes[0], getattr(call.op, "compute_dtype", "float32"))
    if not elementwise:
        t.pin(ids, f"goes through activation '{name}' of {describe(call)}, not known to be element-wise")


def named(activation: Any) -> str | None:
    """Name of an activation of Keras that a function computes, "linear" for None; None for layers and all others."""
    return None if isinstance(activation, keras.layers.Layer) else activation_name(activation)


def own_activation(op: Any) -> Any:
    """The function in which an operation ends, as an argument of its own; None for none, and where that is unknown."""
    linear = linear_of(op)
    if linear is not None:
        return linear.activation
    return getattr(op, "activation", None) if keras_class(op) is not None else None


def is_activation(op: Any) -> bool:
    """Whether an operation ends in a non-linear function of one number at a time."""
    if isinstance(op, L.Layer):
        return named(own_activation(op)) != "linear" or keras_class(op) in (L.ReLU, L.LeakyReLU, L.ELU, L.PReLU)
    return keras_name(op).lower() in {name.replace("_", "") for name in ELEMENTWISE}


def is_relu(op: Any) -> bool:
    """Whether an operation is max(x, 0) and nothing else."""
    return rectifier(op) == "relu"


def rectifier(op: Any) -> str | None:
    """Name of an operation that is relu or relu6 and nothing else, None for others."""
    if keras_class(op) is L.ReLU:
        # Layers may be registered like ReLU for their channels alone, and lack what it is configured by.
        limits = tuple(getattr(op, name, op) for name in ("max_value", "negative_slope", "threshold"))
        return {(None, 0, 0): "relu", (6, 0, 0): "relu6"}.get(limits)
    if keras_class(op) is L.Activation:
        name = named(getattr(op, "activation", None))
        return name if name in ("relu", "relu6") else None
    return {"Relu": "relu", "Relu6": "relu6"}.get(keras_name(op))


class Elementwise(Handler):
    """Numpy broadcasting of any number of tensors and constants: aligned channels are tied.

    Also the handler to register for a layer of one's own that looks at one number at a time.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> class Halve(keras.layers.Layer):
        ...     def call(self, x): return x / 2
        >>> _ = kfp.register_handler(Halve)(kfp.handlers.Elementwise)
    """

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        shape = call.output_shapes[0] if call.output_shapes else ()
        # Each with the axis on which its channels lie after broadcasting.
        placed = [(x, x.axis + len(shape) - len(x.shape)) for x in inputs if x.axis is not None]
        # A single channel that is broadcast over many is tied to none of them.
        placed = [(x, axis) for x, axis in placed if shape and shape[axis] == len(x.ids)]
        if len({axis for _, axis in placed}) > 1:
            # What stays anyhow stands in nobody's way: the features of an input, beside the heads of scores.
            placed = [(x, axis) for x, axis in placed if not t.fixed(x.ids)] or placed[:1]
        if all(t.fixed(x.ids) for x, _ in placed) and (made := _made_by_constants(call, inputs, t)) is not None:
            return [made]
        tracked, axes = [x for x, _ in placed], {axis for _, axis in placed}
        if not axes:
            return untracked(call)
        if len(axes) > 1:
            return give_up(call, inputs, t, "meets channels of another axis in")
        (axis,) = axes
        for x in inputs:
            if x not in tracked and _size_at(x.shape, shape, axis) not in (1, None):
                t.pin_tensors(tracked, f"meets channels that are not tracked in {describe(call)}")
        if keras_name(call.op) == "Add" and any(_mistaken_for_bias(v, shape, axis) for v in _constants(call)):
            t.pin_tensors(tracked, f"meets a constant that Keras would take for a bias in {describe(call)}")
        t.tie(*(x.ids for x in tracked))
        return [Tensor(shape, axis, tracked[0].ids)]

    def rewrite(self, args: tuple, kwargs: dict, r: Resize) -> tuple[tuple, dict]:
        """Constant arrays with one value per channel lose the removed ones."""
        out = r.outputs[0]
        if out.axis is None:
            return args, kwargs
        axis, behind = out.axis, len(out.shape) - out.axis

        def cut(value: Any) -> Any:
            if isinstance(value, keras.KerasTensor | TensorRef) or not hasattr(value, "shape"):
                return value
            if _size_at(value.shape, out.shape, axis) in (1, None):
                return value
            return np.compress(r.kept(out), keras.ops.convert_to_numpy(value), axis=len(value.shape) - behind)

        return keras.tree.map_structure(cut, (args, kwargs))


def _made_by_constants(call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> Tensor | None:
    """Channels that a constant makes follow whatever they are tied to later: zeros or slopes for every head, say."""
    constants, shape = _constants(call), call.output_shapes[0] if call.output_shapes else ()
    axes = [
        axis
        for axis in range(1, len(shape))
        if all(_size_at(x.shape, shape, axis) in (1, None) for x in inputs)
        and any(_size_at(value.shape, shape, axis) not in (1, None) for value in constants)
    ]
    axis = t.lay(call.path, [*axes, None])
    if axis is None or (width := shape[axis]) is None:
        return None
    ids = t.fresh(width, (call.path, "constant"))
    t.laid(call.path, axis, ids)
    return Tensor(shape, axis, ids)


def _constants(call: Call) -> list[Any]:
    return [v for v in keras.tree.flatten((call.args, call.kwargs)) if hasattr(v, "shape")]


def _mistaken_for_bias(value: Any, shape: tuple, axis: int) -> bool:
    """Whether Keras could add a constant along the wrong axis.

    Its TensorFlow `add` takes any constant with one long dimension for a bias as soon as that dimension is as long as
    the channels are, wherever it stands: pruning to that very width would change the result.
    """
    return sum(n > 1 for n in value.shape) == 1 and _size_at(value.shape, shape, axis) in (1, None)


def _size_at(shape: tuple, out_shape: tuple, axis: int) -> int | None:
    """Size of the dimension that broadcasts to output axis `axis`, None where there is none."""
    axis += len(shape) - len(out_shape)
    return shape[axis] if axis >= 0 else None


register_handler(
    L.ReLU, L.LeakyReLU, L.ELU, L.Identity,
    L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.AlphaDropout,
    L.GaussianDropout, L.GaussianNoise, L.ActivityRegularization,
    L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum,
)(Elementwise)  # fmt: skip

# Names of keras.ops operations, and of private layers in keras.applications (StochasticDepth, CustomScaleLayer).
register_keras_names(
    *"""
        Abs Absolute Add Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh BitwiseAnd BitwiseNot BitwiseOr
        Cast Cbrt Ceil Celu Clip Copysign Cos Cosh Deg2rad Divide DivideNoNan Elu Equal Erf Erfinv Exp Exp2
        Expm1 Fix Floor FloorDivide Fmax Fmin Gelu Greater GreaterEqual HardShrink HardSigmoid HardSilu
        HardSwish HardTanh Heaviside Hypot Identity Isclose Isfinite Isinf Isnan LeakyRelu Less LessEqual Log
        Log10 Log1p Log2 LogSigmoid Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Maximum
        Minimum Mod Multiply NanToNum Negative NotEqual OnesLike Positive Power Rad2deg Real Reciprocal Relu
        Relu6 Round Rsqrt Selu Sigmoid Sign Silu Sin Sinc Sinh SoftShrink Softplus Softsign SparsePlus
        SparseSigmoid Sqrt Square Squareplus StopGradient Subtract Tan Tanh TanhShrink Threshold TrueDivide
        Trunc Where ZerosLike StochasticDepth CustomScaleLayer
    """.split()
)(Elementwise)


@register_handler(L.Activation)
class Activation(Elementwise):
    """`Activation(name)`: element-wise unless the function mixes channels."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        (out,) = super().trace(call, inputs, t)
        if out.tracked:
            pin_mixing_activation(call, out.ids, t)
        return [out]


@register_handler(L.Lambda)
class Lambda(Opaque):
    """A function that nobody can look into: where it treats every number alike, its shape follows."""

    sized = True

    def resize(self, config: dict, r: Resize) -> dict:
        out = r.outputs[0]
        fixed = isinstance(config.get("output_shape"), list | tuple)
        return config | {"output_shape": r.shape(out)[1:]} if fixed and out.tracked else config


@register_handler(L.Softmax)
class SoftmaxLayer(Handler):
    """Softmax over an axis without tracked channels keeps them in place; over the channels it mixes them."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, *masks = inputs
        axes = np.atleast_1d(call.op.axis if call.op.axis is not None else np.arange(len(x.shape)))
        if x.axis in [a % len(x.shape) for a in axes]:
            return give_up(call, inputs, t, "is normalised over channels by")
        t.pin_tensors(masks, f"masks {describe(call)}")
        masks += [Tensor(np.shape(value)) for value in _constants(call)]
        if x.axis is not None and any(_size_at(mask.shape, x.shape, x.axis) not in (1, None) for mask in masks):
            t.pin(x.ids, f"is masked on its own in {describe(call)}")
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]


register_keras_names("Softmax", "LogSoftmax")(SoftmaxLayer)


@register_handler(L.PReLU)
class PReLU(Handler):
    """One slope per position and channel; axes listed in `shared_axes` share it."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x = inputs[0]
        if x.axis is None or x.axis in (call.op.shared_axes or ()):
            t.constant(call.path, "alpha")
        else:
            t.bind(call.path, "alpha", x.axis - 1, x.ids)
        return [Tensor(call.output_shapes[0], x.axis, x.ids)]


@register_handler(L.Rescaling)
class Rescaling(Elementwise):
    """`x * scale + offset`; either may hold one value per channel in its configuration."""

    sized = True

    def resize(self, config: dict, r: Resize) -> dict:
        out = r.outputs[0]
        for key in ("scale", "offset"):
            value = np.asarray(getattr(r.call.op, key))
            if out.axis is not None and _size_at(value.shape, out.shape, out.axis) not in (1, None):
                config[key] = np.compress(r.kept(out), value, out.axis - len(out.shape) + value.ndim).tolist()
        return config
