"""The layers that stand in opened models for what composite layers hold themselves: weights, and constants.

Saved files name them; they load after `import keras_filterprune`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.base import Handler, Resize
from keras_filterprune.handlers.einsum import EinsumDense
from keras_filterprune.handlers.registry import register_handler


@keras.saving.register_keras_serializable(package="keras_filterprune")
class Weight(keras.layers.Layer):
    """A weight as a tensor of a graph: a scale, a position embedding, a class token.

    Args:
        shape: of the weight.
        weight_dtype: of the weight ("float32").
        regularizer, constraint: as of any weight (None).

    Call arguments: any tensor of the graph, whose values make no difference: layers need something to be called on.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        weight_dtype: str = "float32",
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.shape, self.weight_dtype = tuple(shape), weight_dtype
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def build(self, input_shape: Any) -> None:
        self.value = self.add_weight(
            shape=self.shape,
            dtype=self.weight_dtype,
            initializer="zeros",
            regularizer=self.regularizer,
            constraint=self.constraint,
            name="value",
        )

    def call(self, anchor: Any) -> Any:
        return keras.ops.convert_to_tensor(self.value)

    def compute_output_spec(self, anchor: Any) -> keras.KerasTensor:
        dtype = self.compute_dtype if "float" in self.weight_dtype else self.weight_dtype
        return keras.KerasTensor(self.shape, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"shape": list(self.shape), "weight_dtype": self.weight_dtype} | _rules(self)


@keras.saving.register_keras_serializable(package="keras_filterprune")
class WeightedSum(keras.layers.Layer):
    """`ops.einsum` of a tensor and a weight, in any order of axes: the experts of a mixture, side by side.

    Args:
        equation: "th,ehm->etm", say; the weight comes second.
        shape: of the weight.
        regularizer, constraint: as of any weight (None).

    Call arguments: the tensor.
    """

    bias_axes = activation = None

    def __init__(
        self, equation: str, shape: tuple[int, ...], regularizer: Any = None, constraint: Any = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.equation, self.shape = equation, tuple(shape)
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(
            shape=self.shape,
            initializer="zeros",
            regularizer=self.regularizer,
            constraint=self.constraint,
            name="kernel",
        )

    def call(self, x: Any) -> Any:
        return keras.ops.einsum(self.equation, x, self.kernel)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"equation": self.equation, "shape": list(self.shape)} | _rules(self)


@keras.saving.register_keras_serializable(package="keras_filterprune")
class Constant(keras.layers.Layer):
    """A constant as a tensor of a graph.

    Args:
        values: nested lists of numbers.
        values_dtype: of the tensor.

    Call arguments: any tensor of the graph, whose values make no difference.
    """

    def __init__(self, values: Any, values_dtype: str, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.values_dtype = values_dtype
        self._array = np.asarray(values).astype("float32" if values_dtype == "bfloat16" else values_dtype)

    def call(self, anchor: Any) -> Any:
        return keras.ops.convert_to_tensor(self._array, self.values_dtype)

    def compute_output_spec(self, anchor: Any) -> keras.KerasTensor:
        return keras.KerasTensor(self._array.shape, dtype=self.values_dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"values": self._array.tolist(), "values_dtype": self.values_dtype}


@keras.saving.register_keras_serializable(package="keras_filterprune")
class AddedLoss(keras.layers.Layer):
    """Gives its input, and adds losses that are computed elsewhere in the graph.

    Args:
        always: in inference as well, not in training alone (True).

    Call arguments: the tensor, and the losses.
    """

    def __init__(self, always: bool = True, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.always = always

    def call(self, x: Any, *losses: Any, training: bool | None = None) -> Any:
        if self.always or training:
            for loss in losses:
                self.add_loss(loss)
        return x

    def compute_output_spec(self, x: Any, *losses: Any, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"always": self.always}


@keras.saving.register_keras_serializable(package="keras_filterprune")
class PerSample(keras.layers.Layer):
    """One copy of a tensor for every sample of the batch.

    Call arguments: a tensor of shape (1, ...), and any tensor with the batch as its first axis.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)

    def call(self, x: Any, anchor: Any) -> Any:
        return keras.ops.broadcast_to(x, (keras.ops.shape(anchor)[0], *x.shape[1:]))

    def compute_output_spec(self, x: Any, anchor: Any) -> keras.KerasTensor:
        return keras.KerasTensor((anchor.shape[0], *x.shape[1:]), dtype=x.dtype)


def _rules(layer: Any) -> dict[str, Any]:
    return {
        "regularizer": keras.regularizers.serialize(layer.regularizer) if layer.regularizer else None,
        "constraint": keras.constraints.serialize(layer.constraint) if layer.constraint else None,
    }


@register_handler(Weight)
class WeightHandler(Handler):
    """Channels on the last axis that has several, or on that where they meet others: heads of a bias of positions."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        shape = call.op.shape
        axis = t.lay(call.path, [*(axis for axis in reversed(range(len(shape))) if shape[axis] > 1), None])
        if axis is None:
            t.constant(call.path, "value")
            return [Tensor(shape)]
        ids = t.fresh(shape[axis], (call.path, "value"))
        t.laid(call.path, axis, ids)
        t.bind(call.path, "value", axis, ids)
        return [Tensor(shape, axis, ids)]

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        return config | {"shape": list(r.shape(r.outputs[0]))}


@register_handler(WeightedSum)
class WeightedSumHandler(EinsumDense):
    """Like the layer of Keras, which wants the batch first."""

    def resize(self, config: dict[str, Any], r: Resize) -> dict[str, Any]:
        shape = list(r.call.op.shape)
        for bind in r.binds:
            shape[bind.axis] = int(r.alive[bind.ids].sum())
        return config | {"shape": shape}


@register_handler(Constant)
class ConstantHandler(Handler):
    """No channels: whatever has some meets untracked ones."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        return [Tensor(call.output_shapes[0])]


@register_handler(PerSample)
class PerSampleHandler(Handler):
    """Copies along the batch keep the channels."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        x, shape = inputs[0], call.output_shapes[0]
        return [Tensor(shape, x.axis, x.ids) if x.axis else Tensor(shape)]


@register_handler(AddedLoss)
class AddedLossHandler(Handler):
    """What passes through keeps its channels; a loss of fewer is a smaller one."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        return [Tensor(inputs[0].shape, inputs[0].axis, inputs[0].ids)]
