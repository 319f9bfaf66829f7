"""Penalties that leave weights, or whole filters, near zero: for `kernel_regularizer=`, or on a whole model at once."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from typing import Any

import keras

from keras_filterprune.analysis import analyze
from keras_filterprune.checks import check_integer, check_names, check_number, check_option, wrong
from keras_filterprune.errors import UnknownNameError, UnsupportedModelError
from keras_filterprune.graph.keras_view import named_weights
from keras_filterprune.graph.types import ChannelGraph
from keras_filterprune.rebuild.clone import Cloner
from keras_filterprune.training.base import unwrapped
from keras_filterprune.training.bridgeout import check_norm


class Penalty(keras.regularizers.Regularizer):
    """A regularizer whose strength can change while a network trains.

    Args:
        strength: of the penalty, not negative.
    """

    def __init__(self, strength: float):
        self._strength = float(check_number("strength", strength, least=0))
        # Compiled training steps never look at a Python number again.
        self._variable = keras.Variable(self._strength, trainable=False, name="strength")

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = value
        self._variable.assign(value)

    def times_strength(self, total: Any) -> Any:
        """The penalty, in the dtype of `total`."""
        return keras.ops.cast(self._variable.value, total.dtype) * total


@keras.saving.register_keras_serializable(package="keras_filterprune")
class BridgePenalty(Penalty):
    """strength * sum |w|^q, the penalty that `BatchBridgeout` stands for on average (Frank and Friedman 1993).

    With q=1 on the scales of batch normalization it is network slimming (Liu et al. 2017).

    Args:
        q: the norm, above 0; 2 is weight decay, 1 the lasso (1.5).
        strength: of the penalty, not negative (1e-4).

    Raises:
        InvalidValueError: an argument is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layer = keras.layers.Conv2D(8, 3, kernel_regularizer=kfp.regularizers.BridgePenalty(q=1.5, strength=1e-4))
    """

    def __init__(self, q: float = 1.5, strength: float = 1e-4):
        super().__init__(strength)
        self.q = check_norm(q)

    def __call__(self, x: Any) -> Any:
        # Without the small number the gradient at 0 is infinite for q < 1.
        return self.times_strength(keras.ops.sum((keras.ops.abs(x) + 1e-12) ** self.q))

    def get_config(self) -> dict[str, Any]:
        return {"q": self.q, "strength": self.strength}


@keras.saving.register_keras_serializable(package="keras_filterprune")
class GroupLasso(Penalty):
    """strength * sum_j sqrt(d) ||w_j||_2 over the filters w_j of d weights: whole filters go to zero (Wen et al. 2016).

    Args:
        strength: of the penalty, not negative (1e-4).
        axis: along which the kernel's filters are numbered: -1 (default), -2 for transposed convolutions.

    Raises:
        InvalidValueError: an argument is out of range.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layer = keras.layers.Conv2D(8, 3, kernel_regularizer=kfp.regularizers.GroupLasso(1e-4))
    """

    def __init__(self, strength: float = 1e-4, axis: int = -1):
        super().__init__(strength)
        self.axis = check_integer("axis", axis, "the axis of the filters", least=-5, most=4)

    def __call__(self, x: Any) -> Any:
        others = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        weights = math.prod(x.shape[axis] for axis in others)
        # Without the small number the gradient of a filter of zeros is not a number.
        norms = keras.ops.sqrt(keras.ops.sum(keras.ops.square(x), axis=others) + 1e-12)
        return self.times_strength(math.sqrt(weights) * keras.ops.sum(norms))

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "axis": self.axis}


def apply_penalty(
    model: keras.Model, penalty: Penalty, weights: str = "kernel", *, include: str | Iterable[str] | None = None
) -> keras.Model:
    """An equal model in which the filters that can be removed are penalised; the original is not touched.

    Args:
        model: a built functional or Sequential model, with training-time wrappers perhaps.
        penalty: `BridgePenalty` or `GroupLasso`, which takes its axis from the layer. It takes the place of a
            regularizer that is there.
        weights: "kernel"; or "scale" for the scales of normalization (with `BridgePenalty(q=1)`: network slimming,
            Liu et al. 2017). Where normalization follows, kernels can shrink together without any effect: there,
            scales are what to penalise.
        include: names or globs of layers (None: all that own a filter that can be removed).

    Returns:
        A model of the same kind, with the weights, and compiled like the original if that was.

    Raises:
        InvalidValueError: penalty is none of ours.
        UnknownNameError: weights is neither of the two, or no layer matches `include`.
        UnsupportedModelError: there is no filter that can be removed.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Conv2D(2, 1)]
        >>> penalised = kfp.apply_penalty(keras.Sequential(layers), kfp.regularizers.GroupLasso(1e-4))
        >>> penalised.layers[0].kernel_regularizer.strength
        0.0001
    """
    if not isinstance(penalty, Penalty):
        raise wrong("penalty", penalty, "a BridgePenalty or a GroupLasso")
    check_option("weights", weights, ("kernel", "scale"))
    graph = analyze(model)
    patterns = ("*",) if include is None else check_names("include", include)
    ops = {call.path: unwrapped(call.op) for call in graph.view.calls if call.inputs}
    axes = {
        member.layer: (member.weight, member.axis)
        for group in graph.groups
        for member in group.members
        if (member.role == "filter" if weights == "kernel" else member.weight == "gamma")
        and any(fnmatch.fnmatch(member.layer, pattern) for pattern in patterns)
        # One regularizer for several kernels, as attention has, does not know along which axis theirs lie; those of
        # recurrent layers are their cells'.
        and _regularizer(member.weight) in vars(ops[member.layer])
    }
    if not axes:
        raise (UnsupportedModelError if include is None else UnknownNameError)(
            f"model '{model.name}' has no {weights} of a filter that can be removed in layers {', '.join(patterns)}. "
            "analyze(model) lists them."
        )
    return _Penalised(graph, penalty, axes).result(graph.model)


def _regularizer(weight: str) -> str:
    """The attribute of a layer that holds the regularizer of a weight."""
    return weight.removesuffix("_kernel") + "_regularizer"


class _Penalised(Cloner):
    """Clones a model with a penalty on some weights, {layer path: (weight, axis of the filters)}."""

    def __init__(self, graph: ChannelGraph, penalty: Penalty, axes: dict[str, tuple[str, int]]):
        super().__init__(graph.view)
        self._penalty = penalty.get_config()
        self._kind = type(penalty)
        self._axes = {id(call.op): axes[call.path] for call in graph.view.calls if call.path in axes}
        self._penalised: list[tuple[Any, str, Penalty]] = []

    def _clone(self, op: Any) -> Any:
        twin = super()._clone(op)
        if id(op) in self._axes:
            weight, axis = self._axes[id(op)]
            along = {"axis": axis} if "axis" in self._penalty else {}
            penalty = self._kind.from_config(self._penalty | along)
            self._penalised.append((unwrapped(twin), weight, penalty))
        return twin

    def write(self) -> None:
        # The clones were given what the originals hold.
        for layer, weight, penalty in self._penalised:
            setattr(layer, _regularizer(weight), penalty)
            named_weights(layer)[weight].regularizer = penalty
