"""What a model becomes on a phone: the operators of its LiteRT file, with widths that follow the kept counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.cost.widths import Widths
from keras_filterprune.graph.types import Call, ChannelGraph, Tensor
from keras_filterprune.handlers.activation import named, own_activation, rectifier
from keras_filterprune.handlers.registry import explained, keras_class, keras_name

L = keras.layers
# What a `tflite_bench.Operator` is unless it says otherwise.
DEFAULTS: dict[str, Any] = {
    "size": (1, 1), "kernel": (1, 1), "strides": (1, 1), "dilation": (1, 1), "padding": "same", "groups": 1,
}  # fmt: skip
# Operators that multiply every output channel with every input channel, and all that compute channels by the tile.
PRODUCTS = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
STEPPED = (*PRODUCTS, "DEPTHWISE_CONV_2D")
# With fewer channels, LiteRT would apply a value per channel pixel by pixel: the exporter stores one per column.
NARROW = 16
# Free: they move no data, or are gone at inference.
_FREE = (
    L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.AlphaDropout, L.GaussianDropout,
    L.GaussianNoise, L.ActivityRegularization, L.Identity, L.Flatten, L.Reshape,
)  # fmt: skip
# Operators that an activation becomes where it is not part of the operator before it.
_ACTIVATIONS = {
    "linear": (),
    "relu": ("RELU",),
    "relu6": ("RELU6",),
    "sigmoid": ("LOGISTIC",),
    "tanh": ("TANH",),
    "elu": ("ELU",),
    "gelu": ("GELU",),
    "silu": ("LOGISTIC", "MUL"),
    "swish": ("LOGISTIC", "MUL"),
    "hard_silu": ("HARD_SWISH",),
    "hard_swish": ("HARD_SWISH",),
    "leaky_relu": ("LEAKY_RELU",),
    "softmax": ("SOFTMAX",),
}


@dataclass(frozen=True)
class Operator:
    """One operator of a model.

    Attributes:
        layer: path of the layer it comes from.
        channels, filters: numbers of the widths of its input and output, see `Widths`.
        fields: what else a `tflite_bench.Operator` says of it: kind, size, kernel, strides ...; and "folds", the data
            type in which XNNPACK makes it part of the operator before it.
    """

    layer: str
    channels: int
    filters: int
    fields: tuple[tuple[str, Any], ...]


def list_operators(graph: ChannelGraph) -> tuple[list[Operator], Widths, dict[str, str]]:
    """Operators of a model's float32 LiteRT file, in order, as they are run.

    Batch normalization is part of the convolution before it; a ReLU of the convolution, sum or product before it.
    Zeros around the input of a convolution are part of it, in the file or at the latest in XNNPACK.

    Args:
        graph: the channel graph of a model of images, channels last.

    Returns:
        The operators, the widths they refer to, and {layer: class name} of what has no operator here.
    """
    lister = _Lister(graph)
    operators = [operator for number in range(len(graph.view.calls)) for operator in lister.operators(number)]
    return operators, lister.widths, lister.unknown


class _Lister:
    """Goes through the calls of one model and remembers which of them an earlier operator has taken in."""

    def __init__(self, graph: ChannelGraph):
        self._calls, self._tensors = graph.view.calls, graph.tensors
        self.widths = Widths(graph)
        self.unknown: dict[str, str] = {}
        self._fused: set[int] = set()
        self._unpadded: dict[int, Tensor] = {}
        self.only_reader = graph.view.only_reader

    def operators(self, number: int) -> Iterator[Operator]:
        """Operators of one call, none where it is part of another one's."""
        call = self._calls[number]
        kind = keras_class(call.op)
        if number in self._fused or not call.inputs or kind in _FREE:
            return
        make = _MAKERS.get(kind) or _BY_NAME.get(keras_name(call.op))
        sizes = [len(shape) for shape in (*call.input_shapes, *call.output_shapes) if shape]
        if make is None or not set(sizes) <= {2, 4}:
            self.unknown[call.path] = type(call.op).__name__
            return
        with explained():
            yield from make(self, number, call)

    def one(self, number: int, kind: str, channels: Tensor, filters: Tensor, **fields: Any) -> Operator:
        """An operator of a call, with the size of its input and without what is as by default."""
        size = {} if len(channels.shape) == 2 else {"size": tuple(channels.shape[1:3])}
        given = {"kind": kind} | size | {name: value for name, value in fields.items() if value is not None}
        width, out = self.widths.number(channels), self.widths.number(filters)
        return Operator(self._calls[number].path, width, out, tuple(given.items()))

    def inputs(self, number: int) -> tuple[Tensor, ...]:
        return self._tensors[number][0]

    def output(self, number: int) -> Tensor:
        return self._tensors[number][1][0]

    def padded(self, number: int) -> bool:
        """Whether a call of zero padding becomes padding="same" of the convolution behind it, which adds as much."""
        after, pad = self.only_reader(number), self._calls[number]
        if after is None or keras_class(self._calls[after].op) not in (L.Conv2D, L.DepthwiseConv2D):
            return False
        op, sides = self._calls[after].op, []
        for n, k, step, apart in zip(
            pad.input_shapes[0][1:3], op.kernel_size, op.strides, op.dilation_rate, strict=True
        ):
            if n is None:
                return False
            total = max((-(-n // step) - 1) * step + (k - 1) * apart + 1 - n, 0)
            sides.append((total // 2, total - total // 2))
        if op.padding != "valid" or tuple(map(tuple, pad.op.padding)) != tuple(sides):
            return False
        self._unpadded[after] = self.inputs(number)[0]
        return True

    def folds(self, number: int) -> bool:
        """Whether XNNPACK makes zero padding part of the convolution behind it."""
        after = self.only_reader(number)
        if after is None:
            return False
        op = self._calls[after].op
        if keras_class(op) not in (L.Conv2D, L.DepthwiseConv2D, L.SeparableConv2D):
            return False
        return op.padding == "valid" or set(op.strides) == {1}

    def windowed(self, number: int, kind: str, **fields: Any) -> Operator:
        """A convolution with a window, the padding before it included where that is as by `padded`."""
        op = self._calls[number].op
        fields |= {"kernel": tuple(op.kernel_size), "strides": tuple(op.strides), "dilation": tuple(op.dilation_rate)}
        if number in self._unpadded:
            return self.one(number, kind, self._unpadded[number], self.output(number), padding="same", **fields)
        return self.one(number, kind, self.inputs(number)[0], self.output(number), padding=op.padding, **fields)

    def folded(self, number: int) -> int:
        """The call that a convolution ends in: what scales and shifts its channels behind it is part of its weights."""
        after = self.only_reader(number)
        while after is not None and _is_affine(self._calls[after]):
            self._fused.add(after)
            number, after = after, self.only_reader(after)
        return number

    def rectified(self, number: int) -> str | None:
        """The ReLU behind a call, which becomes part of its operator."""
        after = self.only_reader(number)
        if after is None:
            return None
        found = rectifier(self._calls[after].op)
        if found is not None:
            self._fused.add(after)
        return found

    def activated(self, number: int, operator: Operator) -> Iterator[Operator]:
        """An operator with the activation of its own layer, or a ReLU behind it."""
        name = _activation_name(own_activation(self._calls[number].op))
        fused = {"relu": "relu", "relu6": "relu6", "hard_sigmoid": "relu6"}.get(name)
        if name == "linear":
            fused = self.rectified(self.folded(number))
        yield operator if fused is None else _with(operator, activation=fused)
        if name == "hard_sigmoid":
            # relu6(x + 3) / 6, the sum of which is part of the bias.
            y = self.output(number)
            yield self.one(number, "MUL", y, y, second=_stored(y))
        elif fused is None:
            yield from self.alone(number, name)

    def alone(self, number: int, name: str) -> Iterator[Operator]:
        """The operators of an activation that stands alone."""
        if name not in _ACTIVATIONS:
            self.unknown[self._calls[number].path] = name
            return
        y = self.output(number)
        for kind in _ACTIVATIONS[name]:
            # In int8, x * sigmoid(x) is one look into a table.
            yield self.one(number, kind, y, y, folds="int8" if kind == "MUL" else None)


def _with(operator: Operator, **fields: Any) -> Operator:
    return Operator(operator.layer, operator.channels, operator.filters, (*operator.fields, *fields.items()))


def _is_affine(call: Call) -> bool:
    if keras_class(call.op) is L.BatchNormalization:
        return call.op.axis in (-1, len(call.input_shapes[0]) - 1)
    return keras_name(call.op) in ("Add", "Subtract", "Multiply", "TrueDivide") and len(call.inputs) == 1


def _activation_name(activation: Any) -> str:
    """Name of an activation, be it a function or a layer."""
    if not isinstance(activation, keras.Layer):
        name = named(activation)
        return str(getattr(activation, "__name__", type(activation).__name__)) if name is None else name
    known: dict[type | None, str] = {L.LeakyReLU: "leaky_relu", L.ELU: "elu", L.Softmax: "softmax"}
    return rectifier(activation) or known.get(keras_class(activation), type(activation).__name__)


def _convolution(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    groups, channels = call.op.groups, lister.inputs(number)[0].last
    if groups == channels > 1:
        # A group per channel is a depthwise convolution; its groups become fewer when channels go.
        yield from lister.activated(number, lister.windowed(number, "DEPTHWISE_CONV_2D"))
    else:
        yield from lister.activated(number, lister.windowed(number, "CONV_2D", groups=groups))


def _depthwise(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    yield from lister.activated(number, lister.windowed(number, "DEPTHWISE_CONV_2D"))


def _separable(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    x, y, multiplier = lister.inputs(number)[0], lister.output(number), call.op.depth_multiplier
    shape = (*y.shape[:3], x.shape[3] * multiplier)
    between = Tensor(shape, 3, np.repeat(x.ids, multiplier)) if x.tracked else Tensor(shape)
    fields = {"kernel": tuple(call.op.kernel_size), "strides": tuple(call.op.strides), "padding": call.op.padding}
    yield lister.one(number, "DEPTHWISE_CONV_2D", x, between, dilation=tuple(call.op.dilation_rate), **fields)
    yield from lister.activated(number, lister.one(number, "CONV_2D", between, y, padding="valid"))


def _transposed(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    if set(call.op.dilation_rate) != {1}:
        lister.unknown[call.path] = "Conv2DTranspose with dilation"
        return
    fields = {"kernel": tuple(call.op.kernel_size), "strides": tuple(call.op.strides), "padding": call.op.padding}
    x, y = lister.inputs(number)[0], lister.output(number)
    yield from lister.activated(number, lister.one(number, "TRANSPOSE_CONV", x, y, **fields))


def _dense(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    x, y = lister.inputs(number)[0], lister.output(number)
    if set(x.shape[1:-1]) <= {1}:
        x, y = (Tensor((t.shape[0], t.shape[-1]), None if t.axis is None else 1, t.ids) for t in (x, y))
    # On a map it is a convolution of one pixel.
    kind = "FULLY_CONNECTED" if len(x.shape) == 2 else "CONV_2D"
    yield from lister.activated(number, lister.one(number, kind, x, y))


def _normalization(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    y = lister.output(number)
    yield lister.one(number, "MUL", y, y, second="constant")
    yield lister.one(number, "ADD", y, y, second="constant", activation=lister.rectified(number))


def _padding(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    if not lister.padded(number) and not lister.folds(number):
        added = tuple(map(sum, call.op.padding))
        yield lister.one(number, "PAD", lister.inputs(number)[0], lister.output(number), kernel=added)


def _pooling(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    kind = "MAX_POOL_2D" if keras_class(call.op) is L.MaxPooling2D else "AVERAGE_POOL_2D"
    window = {"kernel": tuple(call.op.pool_size), "strides": tuple(call.op.strides), "padding": call.op.padding}
    x, y = lister.inputs(number)[0], lister.output(number)
    yield lister.one(number, kind, x, y, **window, activation=lister.rectified(number))


def _mean(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    yield lister.one(number, "MEAN", lister.inputs(number)[0], lister.output(number))


def _merge(kind: str):
    def make(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
        y, shapes = lister.output(number), [x.shape for x in lister.inputs(number)]
        gate = len(y.shape) == 4 and (1, 1) in [tuple(shape[1:3]) for shape in shapes] and len(set(shapes)) == 2
        second = "constant" if len(shapes) == 1 else "gate" if gate else None
        for _ in range(len(shapes) - 2):
            yield lister.one(number, kind, y, y, second=second)
        yield lister.one(number, kind, y, y, second=second, activation=lister.rectified(number))

    return make


def _concatenation(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    yield lister.one(number, "CONCATENATION", lister.inputs(number)[0], lister.output(number))


def _upsampling(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    if call.op.interpolation == "bilinear":
        x, y = lister.inputs(number)[0], lister.output(number)
        yield lister.one(number, "RESIZE_BILINEAR", x, y, strides=tuple(call.op.size))
    else:
        lister.unknown[call.path] = f"UpSampling2D by {call.op.interpolation}"


def _activation(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    own = call.op.activation if keras_class(call.op) is L.Activation else call.op
    yield from lister.alone(number, rectifier(call.op) or _activation_name(own))


def _scaling(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    y = lister.output(number)
    if np.any(np.asarray(call.op.scale) != 1):
        yield lister.one(number, "MUL", y, y, second=_stored(y))
    if np.any(np.asarray(call.op.offset) != 0):
        yield lister.one(number, "ADD", y, y, second=_stored(y))


def _normalized(lister: _Lister, number: int, call: Call) -> Iterator[Operator]:
    y = lister.output(number)
    for kind in ("ADD", "MUL"):
        yield lister.one(number, kind, y, y, second=_stored(y))


def _stored(y: Tensor) -> str:
    """How LiteRT applies a stored value per image, or per channel of one: by rows where there are few channels."""
    return "row" if len(y.shape) == 4 and set(y.shape[1:3]) != {1} and y.last < NARROW else "constant"


_MAKERS = {
    L.DepthwiseConv2D: _depthwise,
    L.SeparableConv2D: _separable,
    L.Conv2DTranspose: _transposed,
    L.Conv2D: _convolution,
    L.Dense: _dense,
    L.BatchNormalization: _normalization,
    L.ZeroPadding2D: _padding,
    L.MaxPooling2D: _pooling,
    L.AveragePooling2D: _pooling,
    L.GlobalAveragePooling2D: _mean,
    L.Add: _merge("ADD"),
    L.Multiply: _merge("MUL"),
    L.Concatenate: _concatenation,
    L.UpSampling2D: _upsampling,
    **dict.fromkeys((L.ReLU, L.LeakyReLU, L.ELU, L.Softmax, L.Activation), _activation),
    L.Rescaling: _scaling,
    L.Normalization: _normalized,
}
_BY_NAME = {"Add": _merge("ADD"), "Multiply": _merge("MUL"), "Relu": _activation, "Relu6": _activation}
