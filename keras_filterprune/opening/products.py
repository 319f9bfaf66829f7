"""Products and convolutions of a tensor and a weight, or a kernel made of weights, that nothing else reads: layers
compute them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection
from typing import Any

import keras

from keras_filterprune.graph.types import Call, ModelView, TensorRef
from keras_filterprune.opening.placeholders import HeldWeight, settings_of
from keras_filterprune.opening.plain_layers import WeightedSum

L = keras.layers
Made = tuple[type, dict[str, Any]]
# By the rank of the kernel.
_CONVOLUTIONS = {
    "Conv": {3: L.Conv1D, 4: L.Conv2D, 5: L.Conv3D},
    "DepthwiseConv": {3: L.DepthwiseConv1D, 4: L.DepthwiseConv2D},
    "ConvTranspose": {3: L.Conv1DTranspose, 4: L.Conv2DTranspose, 5: L.Conv3DTranspose},
}
_LAYERS = {kind for kinds in _CONVOLUTIONS.values() for kind in kinds.values()}


def products(view: ModelView, computed: Collection[int]) -> dict[int, Made]:
    """{number of a call: (class of the layer that does what all do that read what it gives, what it is made with)}.

    Args:
        view: of a trace.
        computed: numbers of calls that give what is made of weights alone; convolutions read kernels like that, other
            products go along with them.
    """
    found: dict[int, Made] = {}
    for number, call in enumerate(view.calls):
        ref, is_weight = TensorRef(number, 0), isinstance(call.op, HeldWeight)
        readers = view.readers.get(ref, ())
        if (is_weight or number in computed) and readers and len(view.calls) not in readers:
            first, *others = (_made(view.calls[n], ref) for n in readers)
            if first is not None and (is_weight or first[0] in _LAYERS) and all(other == first for other in others):
                found[number] = first
    return found


def _made(call: Call, weight: TensorRef) -> Made | None:
    """The layer that does what a call does with a weight; None where none does."""
    if len(call.args) != 2 or not all(isinstance(x, TensorRef) for x in call.args) or len({*call.args}) < 2:
        return None
    second, kernel = call.args[1] == weight, call.input_shapes[call.inputs.index(weight)]
    name = type(call.op).__name__
    if second and name in _CONVOLUTIONS:
        return _convolution(call.op, _CONVOLUTIONS[name].get(len(kernel)), kernel)
    dense = name in ("Matmul", "Dot") or (name == "Tensordot" and _sums_last(call.op.axes, len(call.input_shapes[0])))
    if second and dense and len(kernel) == 2:
        return L.Dense, {"units": kernel[1], "use_bias": False}
    equation = None
    if name == "Matmul" and second:
        equation = _of_matmul(*call.input_shapes)
    elif name == "Einsum":
        equation = _of_einsum(call.op.subscripts.replace(" ", ""), second)
    return None if equation is None else (WeightedSum, {"equation": equation, "shape": kernel})


def _convolution(op: Any, kind: type | None, kernel: tuple) -> Made | None:
    *size, channels, filters = kernel
    settings = settings_of(op) | {"kernel_size": tuple(size), "use_bias": False}
    if kind is None or not settings.keys() >= {"strides", "padding", "data_format", "dilation_rate"}:
        return None
    if type(op).__name__ == "DepthwiseConv":
        return kind, settings | {"depth_multiplier": filters}
    if type(op).__name__ == "ConvTranspose":
        return kind, settings | {"filters": channels}
    return kind, settings | {"filters": filters}


def _sums_last(axes: Any, rank: int) -> bool:
    """Whether a product sums over the last axis of a tensor of this rank, and the first of a weight."""
    if isinstance(axes, int):
        return axes == 1
    left, right = (keras.tree.flatten(part) for part in axes)
    return [n % rank for n in left] == [rank - 1] and right == [0]


def _of_einsum(subscripts: str, second: bool) -> str | None:
    terms = re.split(",|->", subscripts)
    if len(terms) != 3 or "." in subscripts or any(len(set(term)) < len(term) for term in terms):
        return None
    x, kernel, made = terms if second else (terms[1], terms[0], terms[2])
    return f"{x},{kernel}->{made}"


def _of_matmul(x: tuple, kernel: tuple) -> str | None:
    # Matrices side by side, each for its part of the tensor: none of them is repeated.
    if len(kernel) < 2 or len(x) < len(kernel) or x[len(x) - len(kernel) : -2] != kernel[:-2]:
        return None
    *batch, rows, summed, columns = tuple(string.ascii_letters[: len(x) + 1])
    before = "".join(batch[len(x) - len(kernel) :])
    every = "".join(batch)
    return f"{every}{rows}{summed},{before}{summed}{columns}->{every}{rows}{columns}"
