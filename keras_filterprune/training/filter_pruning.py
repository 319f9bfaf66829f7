"""Filters that are masked while a network trains."""

from __future__ import annotations

from typing import Any

import keras

from keras_filterprune.checks import check_flag, check_option
from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.handlers.registry import register_handler
from keras_filterprune.training.base import TrainingWrapper, Transparent
from keras_filterprune.training.gate import GATES, Gate


@keras.saving.register_keras_serializable(package="keras_filterprune")
class FilterPruning(Gate, TrainingWrapper):
    """Masks channels of a layer's input, so that the filters that make them are as good as gone.

    Where all readers of a filter mask its channel, the network computes what it will compute without the filter,
    whatever lies between: batch normalization, residual sums, concatenations. `apply_filter_pruning` wraps all readers
    of a model, `PruningSchedule` sets their masks. Gates g are masks that are trained: at inference, a channel is open
    where its gate is above 0. In training,

    - "straight": so it is, and a gate's gradient is that of a factor (straight-through);
    - "gumbel": it is open where 4 g + n > 0, n being logistic noise, and so with probability sigmoid(4 g); the gradient
      is that of sigmoid(s (4 g + n)) (Gumbel-softmax over two logits, as in Lin et al. 2023);
    - "sigmoid": it is multiplied by sigmoid(4 s g) (Larson et al. 2023).

    `BudgetGates` draws the noise and raises the slope s.

    Args:
        layer: a layer that reads channels on the last axis of its one input.
        gates: train the mask (False), in one of these ways; True is "straight". `BudgetGates` steers it.
        **kwargs: of `keras.layers.Layer`; the name is the layer's with "_masked" behind it by default.

    Raises:
        UnsupportedLayerError: this is no layer, or one whose input is masked already.
        UnknownNameError: gates is none of these.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> kfp.layers.FilterPruning(keras.layers.Dense(10, name="head")).name
        'head_masked'
    """

    def __init__(self, layer: keras.layers.Layer, gates: bool | str = False, **kwargs):
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, FilterPruning):
            raise UnsupportedLayerError(
                f"FilterPruning expects a layer whose input is not masked yet. Received: {layer!r}."
            )
        self.gates = check_option("gates", gates, GATES) if isinstance(gates, str) else check_flag("gates", gates)
        super().__init__(layer, "_masked", **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.add_mask(input_shape[-1])

    def call(self, inputs: Any, training: bool | None = None, **kwargs) -> Any:
        return self.layer(inputs * keras.ops.cast(self.factor(training), inputs.dtype), **kwargs)


register_handler(FilterPruning)(Transparent)
