"""Filters that are masked while a network trains."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_flag, check_option
from keras_filterprune.errors import UnsupportedLayerError
from keras_filterprune.handlers.registry import register_handler
from keras_filterprune.training.base import TrainingWrapper, Transparent

# How a gate becomes a factor while it is trained.
GATES = ("straight", "gumbel", "sigmoid")
# The logit of a gate of 1, at which they start on average: it is open with a probability of 98 %.
LOGIT = 4.0
_REACHED = "reached"


@keras.saving.register_keras_serializable(package="keras_filterprune")
class FilterPruning(TrainingWrapper):
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
        # Shares of what the whole network costs: what the masks of the model leave, and what its budget is.
        self.reached: tuple[float, float] | None = None
        super().__init__(layer, "_masked", **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.mask = self.add_weight((input_shape[-1],), "ones", trainable=bool(self.gates), name="mask")
        if self.soft:
            self.slope = self.add_weight((), "ones", trainable=False, name="slope")
            self.noise = self.add_weight((input_shape[-1],), "zeros", trainable=False, name="noise")

    @property
    def soft(self) -> bool:
        """Whether gates are something else in training than at inference."""
        return self.gates in ("gumbel", "sigmoid")

    @property
    def open(self) -> Any:
        """Boolean tensor of shape (channels,): which channels the layer sees."""
        return self.mask.value > 0

    def call(self, inputs: Any, training: bool | None = None, **kwargs) -> Any:
        mask = keras.ops.cast(self.open, self.mask.dtype)
        if self.soft and training:
            mask = self._relaxed()
        elif self.gates:
            mask = self.mask.value + keras.ops.stop_gradient(mask - self.mask.value)
        return self.layer(inputs * keras.ops.cast(mask, inputs.dtype), **kwargs)

    def _relaxed(self) -> Any:
        logits = LOGIT * self.mask.value + self.noise.value
        soft = keras.ops.sigmoid(self.slope.value * logits)
        if self.gates == "sigmoid":
            return soft
        return soft + keras.ops.stop_gradient(keras.ops.cast(logits > 0, soft.dtype) - soft)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.reached is not None:
            store[_REACHED] = np.array(self.reached)

    def load_own_variables(self, store: Any) -> None:
        names = list(store.keys())
        found = {name: store[name] for name in names}
        reached = found.pop(_REACHED, None)
        # Files say whether their masks are those that the training was to end with.
        self.reached = None if reached is None else tuple(np.array(reached).tolist())
        super().load_own_variables(found)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"gates": self.gates}


register_handler(FilterPruning)(Transparent)
