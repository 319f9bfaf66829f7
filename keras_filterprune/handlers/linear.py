"""What a layer multiplies: the value that handlers return of every layer that computes sums over its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.graph.keras_view import named_weights


@dataclass(frozen=True)
class Window:
    """How a convolution goes over its input; one number per spatial axis, as Keras' layers have them.

    Attributes:
        kernel_size, strides, dilation_rate: tuples of integers.
        padding: "valid", "same" or "causal".

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> window = kfp.handlers.Window((3, 3), strides=(1, 1), padding="valid", dilation_rate=(1, 1))
        >>> y = window.over(keras.ops.conv, keras.ops.ones((1, 8, 8, 3)), keras.ops.ones((3, 3, 3, 4)))
        >>> tuple(y.shape)
        (1, 6, 6, 4)
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    dilation_rate: tuple[int, ...]

    def over(self, convolve: Callable[..., Any], x: Any, *kernels: Any) -> Any:
        """One of the convolutions of `keras.ops` with this window."""
        padding = self.padding
        if padding == "causal":
            x = keras.ops.pad(x, [(0, 0), ((self.kernel_size[0] - 1) * self.dilation_rate[0], 0), (0, 0)])
            padding = "valid"
        return convolve(x, *kernels, strides=self.strides, padding=padding, dilation_rate=self.dilation_rate)


@dataclass(frozen=True, eq=False)
class Linear:
    """What a layer multiplies: its outputs are activation(product(x, *kernels) + bias).

    At one position this is a matrix product: a row of the input, of shape (taps * channels,), times a kernel of shape
    (taps * channels, outputs). Where rows lie is told by `window`: None, at every position of the input on its own (a
    dense layer); else the window around an output position. With a depthwise kernel, the window is that kernel's, and
    rows are what comes out behind it; in a transposed convolution they are input positions, each of which is spread
    over a window of outputs.

    Attributes:
        op: the layer; it need not be built before its weights are asked for.
        product: `f(x, *kernels)` of float32 tensors, the sums before bias and activation, on an input (samples,
            *positions, channels) of any number of channels; None where they depend on more than the input (recurrent).
        kernel: name of the weight that is summed over channels ("kernel"); None for a depthwise layer.
        depthwise: name of a weight (*window, channels, multiplier) that comes first in `product`; a handler binds its
            axis of channels as "channel" where a `kernel` follows (None).
        bias: name of a weight (outputs,) that is added; the layer may lack it ("bias").
        activation: function of the sums (None).
        channels, filters: axes of `kernel` that read channels and number outputs (-2, -1); the others are its window.
        window: see above (None).
        groups: blocks of channels that do not meet (1).
        transposed: whether the layer is a transposed convolution (False).

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 5))
        >>> kfp.handlers.Linear(layer, keras.ops.matmul, activation=layer.activation).matrix.shape
        (1, 5, 3)
    """

    op: Any
    product: Callable[..., Any] | None
    kernel: str | None = "kernel"
    depthwise: str | None = None
    bias: str = "bias"
    activation: Callable[[Any], Any] | None = None
    channels: int = -2
    filters: int = -1
    window: Window | None = None
    groups: int = 1
    transposed: bool = False

    def __call__(self, x: Any) -> Any:
        """What the layer makes of `x` before bias and activation, in float32."""
        if self.product is None:
            raise UnsupportedLayerError(f"what layer '{self.op.name}' multiplies depends on more than its input.")
        kernels = (keras.ops.cast(self.weights[name].value, "float32") for name in self.kernels)
        return self.product(keras.ops.cast(x, "float32"), *kernels)

    @property
    def weights(self) -> dict[str, keras.Variable]:
        """The weights of the layer by their names."""
        return named_weights(self.op)

    def weight(self, name: str) -> keras.Variable | None:
        """A weight of the layer by its name, None where it has none."""
        return self.weights.get(name)

    @property
    def summed(self) -> keras.Variable:
        """The weight that is summed over channels; a depthwise layer has none."""
        if self.kernel is None:
            raise UnsupportedLayerError(f"layer '{self.op.name}' sums over no channels: its kernel is depthwise.")
        return self.weights[self.kernel]

    @property
    def kernels(self) -> dict[str, tuple[int, int]]:
        """{kernel: its axes of channels and filters}, in the order in which `product` takes them."""
        axes = {self.depthwise: (-2, -1), self.kernel: (self.channels, self.filters)}
        return {name: pair for name, pair in axes.items() if name is not None}

    @property
    def matrix(self) -> np.ndarray | None:
        """The kernel in float64, (taps, channels, outputs); None where not every output is a sum over all channels.

        A transposed convolution has one tap, and an output for every filter at every position of its window.
        """
        return None if self.kernel is None or self.groups > 1 else self.slices

    @property
    def slices(self) -> np.ndarray:
        """The kernel like `matrix`, with the channels of one group: (taps, channels / groups, outputs)."""
        return self.arranged.astype(np.float64)

    @property
    def arranged(self) -> np.ndarray:
        """`slices` in the kernel's own precision, not to be written."""
        kernel = keras.ops.convert_to_numpy(self.summed.value)
        channels = kernel.shape[self.channels]
        kernel = kernel.transpose(self._order(kernel.ndim))
        return kernel.reshape(1, channels, -1) if self.transposed else kernel.reshape(-1, channels, kernel.shape[-1])

    def stored(self, matrix: np.ndarray) -> np.ndarray:
        """What `matrix` reads, as the layer stores it: as many values, in that order."""
        shape = self.summed.shape
        order = self._order(len(shape))
        return matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def assign(self, matrix: np.ndarray) -> None:
        """Write what `matrix` reads."""
        self.summed.assign(self.stored(matrix))

    def read(self, ids: np.ndarray) -> np.ndarray:
        """What stands in the columns of a row, given what stands in the channels of the input."""
        return ids if self.depthwise is None else np.repeat(ids, self.weights[self.depthwise].shape[-1])

    def _order(self, rank: int) -> list[int]:
        """Axes of the kernel in the order of `matrix`."""
        channels, filters = self.channels % rank, self.filters % rank
        window = [axis for axis in range(rank) if axis not in (channels, filters)]
        return [channels, *window, filters] if self.transposed else [*window, channels, filters]
