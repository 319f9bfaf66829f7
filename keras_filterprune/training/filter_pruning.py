"""Filters that are masked while a network trains."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.checks import check_flag
from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.handlers.registry import register_handler
from keras_filterprune.training.base import TrainingWrapper, Transparent


@keras.saving.register_keras_serializable(package="keras_filterprune")
class FilterPruning(TrainingWrapper):
    """Masks channels of a layer's input, so that the filters that make them are as good as gone.

    Where all readers of a filter mask its channel, the network computes what it will compute without the filter,
    whatever lies between: batch normalization, residual sums, concatenations. `apply_filter_pruning` wraps all readers
    of a model, `PruningSchedule` sets their masks. Gates are masks that are trained: a channel is open where its gate
    is above 0, and a gate's gradient is that of a factor (straight-through).

    Args:
        layer: a layer that reads channels on the last axis of its one input.
        gates: train the mask (False); `BudgetGates` steers it.
        **kwargs: of `keras.layers.Layer`; the name is the layer's with "_masked" behind it by default.

    Raises:
        UnsupportedLayerError: this is no layer, or one whose input is masked already.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> kfp.layers.FilterPruning(keras.layers.Dense(10, name="head")).name
        'head_masked'
    """

    def __init__(self, layer: keras.layers.Layer, gates: bool = False, **kwargs):
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, FilterPruning):
            raise UnsupportedLayerError(
                f"FilterPruning expects a layer whose input is not masked yet. Received: {layer!r}."
            )
        self.gates = check_flag("gates", gates)
        super().__init__(layer, "_masked", **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.mask = self.add_weight((input_shape[-1],), "ones", trainable=self.gates, name="mask")

    @property
    def open(self) -> Any:
        """Boolean tensor of shape (channels,): which channels the layer sees."""
        return self.mask.value > 0

    def call(self, inputs: Any, **kwargs) -> Any:
        mask = keras.ops.cast(self.open, self.mask.dtype)
        if self.gates:
            mask = self.mask.value + keras.ops.stop_gradient(mask - self.mask.value)
        return self.layer(inputs * keras.ops.cast(mask, inputs.dtype), **kwargs)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"gates": self.gates}


register_handler(FilterPruning)(Transparent)
