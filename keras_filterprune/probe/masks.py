"""Positions that are padding: the masks that Keras hands along with tensors, read and carried on by public means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.types import ModelView


class _Look(keras.layers.Layer):
    """Gives out the mask of its input."""

    def __init__(self):
        super().__init__(name="look", autocast=False)
        self.supports_masking = True

    def call(self, x: Any, mask: Any = None) -> Any:
        return mask

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return None


class _Carry(keras.layers.Layer):
    """Gives out its input, with a mask."""

    def __init__(self, mask: Any):
        super().__init__(name="masked", autocast=False)
        self.supports_masking = True
        self._mask = mask

    def call(self, x: Any) -> Any:
        return x

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self._mask


_LOOK = _Look()


def makes_masks(view: ModelView) -> bool:
    """Whether a layer of a model says which positions are padding."""
    layers = [call.op for call in view.calls if isinstance(call.op, keras.layers.Layer)]
    base = keras.layers.Layer.compute_mask
    return any(
        isinstance(layer, keras.layers.Masking)
        or getattr(layer, "mask_zero", False)
        or (not type(layer).__module__.startswith("keras.") and type(layer).compute_mask is not base)
        for layer in layers
    )


def mask_of(x: Any) -> Any | None:
    """The mask that goes along with a tensor, booleans of shape (samples, positions); None without."""
    return _LOOK(x)


def masked(x: Any, mask: Any | None) -> Any:
    """The tensor with a mask."""
    return x if mask is None else _Carry(mask)(x)


def carried(op: Any, args: tuple, outputs: list[Any]) -> list[Any]:
    """The outputs of a layer with the masks that it hands on, if something else has computed them in its place."""
    if not isinstance(op, keras.layers.Layer) or not op.supports_masking or not args:
        return outputs
    # What is computed need not be a tensor.
    if not keras.ops.is_tensor(outputs[0]) or mask_of(outputs[0]) is not None:
        return outputs
    before = keras.tree.map_structure(lambda x: mask_of(x) if keras.ops.is_tensor(x) else None, args[0])
    found = keras.tree.flatten(op.compute_mask(args[0], before))
    return [masked(y, mask) for y, mask in zip(outputs, found, strict=False)] + outputs[len(found) :]


def joined(tensors: Sequence[Any]) -> Any:
    """Tensors of several samples each, one behind the other, and their masks."""
    masks = [mask_of(x) for x in tensors]
    whole = keras.ops.concatenate(tensors)
    return whole if masks[0] is None else masked(whole, keras.ops.concatenate(masks))


def factor_of(x: Any, mask: Any) -> Any:
    """1 where a tensor counts and 0 where it is padding, of its rank, in float32."""
    shape = (*mask.shape, *[1] * (len(x.shape) - len(mask.shape)))
    return keras.ops.cast(keras.ops.reshape(mask, shape), "float32")


def mean_over(x: Any, axes: Sequence[int]) -> tuple[Any, float]:
    """Mean over axes, samples among them, of what is no padding; and of how many values."""
    mask, whole = mask_of(x), float(np.prod([x.shape[axis] for axis in axes]))
    if mask is None:
        return keras.ops.mean(x, axis=axes), whole
    factor = factor_of(x, mask)
    share = float(keras.ops.convert_to_numpy(keras.ops.mean(factor)))
    return keras.ops.mean(keras.ops.cast(x, "float32") * factor, axis=axes) / max(share, 1e-12), whole * share
