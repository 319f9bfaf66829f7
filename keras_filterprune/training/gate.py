"""Masks, and gates: masks that are trained."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_option
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.tracer import Tracer
from keras_filterprune.graph.types import Call, Tensor
from keras_filterprune.handlers.activation import Elementwise
from keras_filterprune.handlers.registry import register_handler

# How a gate becomes a factor while it is trained.
GATES = ("straight", "gumbel", "sigmoid")
# The logit of a gate of 1, at which they start on average: it is open with a probability of 98 %.
LOGIT = 4.0
_REACHED = "reached"


class Gate(keras.layers.Layer):
    """A layer that multiplies by a mask, or by gates, whose kinds `FilterPruning` describes.

    Attributes:
        gates: False for a mask, True for "straight", or one of `GATES`.
        reached: shares of what the whole network costs: what the masks of the model leave, and what its budget is.
    """

    gates: bool | str
    reached: tuple[float, float] | None = None

    def add_mask(self, size: int | None) -> None:
        """Add the weights of so many masks or gates."""
        self.mask = self.add_weight((size,), "ones", trainable=bool(self.gates), name="mask")
        if self.soft:
            self.slope = self.add_weight((), "ones", trainable=False, name="slope")
            self.noise = self.add_weight((size,), "zeros", trainable=False, name="noise")

    @property
    def soft(self) -> bool:
        """Whether gates are something else in training than at inference."""
        return self.gates in ("gumbel", "sigmoid")

    @property
    def open(self) -> Any:
        """Boolean tensor of shape (size,): what is let through at inference."""
        return self.mask.value > 0

    def factor(self, training: bool | None) -> Any:
        """What inputs are multiplied by, of shape (size,)."""
        mask = keras.ops.cast(self.open, self.mask.dtype)
        if self.soft and training:
            return self._relaxed()
        if self.gates:
            return self.mask.value + keras.ops.stop_gradient(mask - self.mask.value)
        return mask

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


@keras.saving.register_keras_serializable(package="keras_filterprune")
class BranchGate(Gate):
    """Multiplies what a branch adds to its shortcut by one gate, so that a closed branch is as good as gone.

    `apply_filter_gates(model, branches=True)` puts one at the end of every residual branch, `BudgetGates` moves them,
    and `strip_wrappers` removes the layers of those that are closed (the sub-network collapse of Larson et al. 2023).

    Args:
        gates: what a gate is in training, "straight" (True), "gumbel" or "sigmoid", see `FilterPruning`.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        UnknownNameError: gates is none of these.

    Example:
        >>> import numpy as np, keras_filterprune as kfp
        >>> gate = kfp.layers.BranchGate()
        >>> float(gate(np.full((1, 2), 3.0))[0, 0])
        3.0
    """

    def __init__(self, gates: bool | str = True, **kwargs):
        self.gates = gates if gates is True else check_option("gates", gates, GATES)
        # Branches keep the type that they have.
        super().__init__(**{"dtype": "float32"} | kwargs | {"autocast": False})
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.add_mask(1)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return inputs * keras.ops.cast(self.factor(training), inputs.dtype)


@register_handler(BranchGate)
class _Gated(Elementwise):
    """One number for all channels."""

    def trace(self, call: Call, inputs: tuple[Tensor, ...], t: Tracer) -> list[Tensor]:
        t.constant(call.path, *named_weights(call.op))
        return super().trace(call, inputs, t)
