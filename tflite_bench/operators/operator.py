"""One operator of a `.tflite` file, described well enough to build and time it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from tflite_bench.checks import wrong
from tflite_bench.errors import BenchError

_WINDOW = ("kernel", "strides", "padding", "activation")
_ELEMENTWISE = "RELU RELU6 LOGISTIC TANH HARD_SWISH LEAKY_RELU ELU GELU SOFTMAX".split()
# The fields that say something about an operator of that kind; the others keep their defaults, so that equal
# operators are equal objects.
FIELDS_OF_KIND: dict[str, tuple[str, ...]] = {
    "CONV_2D": (*_WINDOW, "filters", "dilation", "groups"),
    "DEPTHWISE_CONV_2D": (*_WINDOW, "filters", "dilation"),
    "TRANSPOSE_CONV": (*_WINDOW, "filters"),
    "FULLY_CONNECTED": ("filters", "activation"),
    "ADD": ("second", "activation"),
    "MUL": ("second", "activation"),
    "MEAN": (),
    "MAX_POOL_2D": _WINDOW,
    "AVERAGE_POOL_2D": _WINDOW,
    "PAD": ("filters", "kernel"),
    "CONCATENATION": ("filters",),
    "RESIZE_BILINEAR": ("strides",),
    "RESIZE_NEAREST_NEIGHBOR": ("strides",),
    **dict.fromkeys(_ELEMENTWISE, ()),
}
_CHOICES = {
    "kind": tuple(FIELDS_OF_KIND),
    "padding": ("same", "valid"),
    "second": (None, "gate", "constant", "row"),
    "activation": (None, "relu", "relu6"),
    "data_type": ("float32", "int8"),
}


@dataclass(frozen=True)
class Operator:
    """One operator of batch 1.

    Args:
        kind: TFLite's name: CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV, FULLY_CONNECTED, ADD, MUL, MEAN (over space),
            MAX_POOL_2D, AVERAGE_POOL_2D, PAD, CONCATENATION, RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR, RELU, RELU6,
            LOGISTIC, TANH, HARD_SWISH, LEAKY_RELU, ELU, GELU or SOFTMAX.
        channels: channels of its (first) input.
        size: height and width of its input, (1, 1) for FULLY_CONNECTED; () is the same as (1, 1).
        filters: channels of its output (None: `channels`). PAD adds the difference as channels of zeros;
            CONCATENATION takes it from its second input.
        kernel: height and width of the window of convolutions and pools; for PAD the rows and columns that it adds
            in all, half of them (rounded down) in front.
        strides: steps of the window (rows, columns); the factor of TRANSPOSE_CONV and RESIZE_*.
        dilation: distance between rows and columns of the kernel.
        padding: "same" or "valid".
        groups: groups of a CONV_2D.
        second: what ADD and MUL take beside their input: None another input of the same shape, "gate" an input of
            shape (1, 1, channels) as in squeeze-and-excite, "constant" a stored vector of `channels` values, "row"
            stored values for every column and channel.
        activation: None, "relu" or "relu6", computed by the operator itself.
        data_type: "float32" or "int8" (weights per channel, int32 bias).

    Raises:
        BenchError: a field is out of range, does not fit the others, or means nothing for this kind.

    Example:
        >>> Operator("CONV_2D", 16, (32, 32), filters=32, kernel=(3, 3), strides=(2, 2)).output_shape
        (1, 16, 16, 32)
    """

    kind: str
    channels: int
    size: tuple[int, int] = (1, 1)
    filters: int = None  # type: ignore[assignment]  # As many as channels, once it is made.
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "same"
    groups: int = 1
    second: str | None = None
    activation: str | None = None
    data_type: str = "float32"

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise self._wrong(field, f"one of {', '.join(map(str, choices))}")
        if self.filters is None:
            object.__setattr__(self, "filters", self.channels)
        if self.size in ((), []):
            object.__setattr__(self, "size", (1, 1))
        for field in ("channels", "filters", "groups"):
            (number,) = self._integers(field, (getattr(self, field),), "an integer")
            object.__setattr__(self, field, number)
        for field in ("size", "kernel", "strides", "dilation"):
            pair = getattr(self, field)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise self._wrong(field, "a pair (rows, columns)")
            object.__setattr__(self, field, self._integers(field, pair, "a pair of integers"))
        self._check_unused_fields()
        self._check_channels()
        if min(self.output_size) < 1:
            window = tuple((kernel - 1) * step + 1 for kernel, step in zip(self.kernel, self.dilation, strict=True))
            raise self._wrong("size", f"at least the dilated kernel, {window}, because of padding='valid'")

    def __str__(self) -> str:
        shapes = ("x".join(map(str, shape)) for shape in ((*self.size, self.channels), self.output_shape[1:]))
        return f"{self.kind} {self.data_type} {' -> '.join(shapes)}"

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        if self.kind in ("MEAN", "FULLY_CONNECTED"):
            return 1, 1
        rows, columns = (self._output_length(axis) for axis in (0, 1))
        return rows, columns

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output with its batch dimension; (1, filters) where no space is left."""
        space = () if self.kind in ("MEAN", "FULLY_CONNECTED") else self.output_size
        return (1, *space, self.filters)

    def _output_length(self, axis: int) -> int:
        length, kernel, stride = self.size[axis], self.kernel[axis], self.strides[axis]
        if self.kind == "PAD":
            return length + kernel
        if self.kind in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
            return length * stride
        if self.kind == "TRANSPOSE_CONV":
            return length * stride + (max(kernel - stride, 0) if self.padding == "valid" else 0)
        if self.padding == "valid":
            length -= (kernel - 1) * self.dilation[axis]
        return -(-length // stride)

    def _integers(self, field: str, values: Sequence[Any], expected: str) -> tuple[int, ...]:
        smallest = 0 if (self.kind, field) == ("PAD", "kernel") else 1
        for value in values:
            if not isinstance(value, Integral) or isinstance(value, bool) or value < smallest:
                raise self._wrong(field, f"{expected} of at least {smallest}")
        return tuple(map(int, values))

    def _check_unused_fields(self) -> None:
        for field in ("filters", "kernel", "strides", "dilation", "padding", "groups", "second", "activation"):
            default = self.channels if field == "filters" else getattr(type(self), field)
            if field not in FIELDS_OF_KIND[self.kind] and getattr(self, field) != default:
                raise self._wrong(field, f"{default!r}, as always for this kind; leave it out")
        if self.kind == "FULLY_CONNECTED" and self.size != (1, 1):
            raise self._wrong("size", "(1, 1): flatten the input into channels")

    def _check_channels(self) -> None:
        if self.channels % self.groups or self.filters % self.groups:
            raise self._wrong("groups", f"a divisor of channels={self.channels} and filters={self.filters}")
        if self.kind == "DEPTHWISE_CONV_2D" and self.filters % self.channels:
            raise self._wrong("filters", f"a multiple of channels={self.channels}")
        if self.kind == "PAD" and self.filters < self.channels:
            raise self._wrong("filters", f"at least channels={self.channels}, PAD only adds")
        if self.kind == "CONCATENATION" and self.filters <= self.channels:
            raise self._wrong("filters", f"more than channels={self.channels}, the second input has the difference")

    def _wrong(self, field: str, expected: str) -> BenchError:
        return BenchError(f"Operator {self.kind}: {wrong(field, getattr(self, field), expected)}")
