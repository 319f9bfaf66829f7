"""Batch Bridgeout (Khan and Stavness 2020, "Pruning Convolutional Filters using Batch Bridgeout")."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_filterprune.checks import check_callable, check_integer, check_number
from keras_filterprune.errors import InvalidValueError, UnsupportedLayerError, UnsupportedModelError
from keras_filterprune.handlers.registry import known_linear, linear_of, register_handler, taught_by
from keras_filterprune.training.base import TrainingWrapper, Transparent, wrappers_of
from keras_filterprune.training.callback import TrainingCallback

# |W| is raised to norm / 2; without it the gradient of a weight of 0 would be infinite.
_EPSILON = 1e-12


def check_rate(rate: Any) -> float:
    """`rate` as a float in [0, 1), else `InvalidValueError`."""
    return float(check_number("rate", rate, "the probability that a weight is dropped", least=0, below=1))


def check_norm(norm: Any) -> float:
    """`norm` as a positive float, else `InvalidValueError`."""
    return float(check_number("norm", norm, "the q of the L_q penalty", above=0))


@keras.saving.register_keras_serializable(package="keras_filterprune")
class BatchBridgeout(TrainingWrapper):
    """Perturbs the kernel of a layer while it trains, which acts as an L_q penalty and makes filters sparse.

    Every training call draws one mask B ~ Bernoulli(1 - rate) over the elements of the kernel, shared by the batch:
    W + (|W| + 1e-12)^(norm / 2) (B / (1 - rate) - 1) M. Its mean is W and its variance |W|^norm rate / (1 - rate).
    At inference the layer is itself. Rate and norm are weights of the wrapper, which `BridgeoutSchedule` changes; they
    and the state of the generator are saved with the model. Kernels are perturbed in their own dtype, float32 under
    mixed precision.

    Args:
        layer: a convolution (depthwise, separable and transposed ones included) or a `Dense` layer.
        rate: p, the probability that a weight is dropped, in [0, 1) (0.3).
        norm: q, above 0; below 2 it promotes sparsity (1.5).
        target_fraction: perturb, of every filter, the floor(target_fraction * channels) input slices of smallest
            norm (1.0, all of them).
        seed: seed of the masks (None: a new one).
        **kwargs: of `keras.layers.Layer`; the name is the layer's with "_bridgeout" behind it by default.

    Raises:
        InvalidValueError: an argument is out of range.
        UnsupportedLayerError: the layer has no kernel to perturb, or is wrapped already.

    Example:
        >>> import keras, keras_filterprune as kfp
        >>> layer = kfp.layers.BatchBridgeout(keras.layers.Conv2D(8, 3, name="conv"), rate=0.3, norm=1.5)
        >>> layer.name
        'conv_bridgeout'
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float = 0.3,
        norm: float = 1.5,
        target_fraction: float = 1.0,
        seed: int | None = None,
        **kwargs,
    ):
        linear = linear_of(layer)
        if linear is None or linear.product is None:
            wrapped = isinstance(layer, keras.layers.Wrapper)
            kind = "is wrapped already" if wrapped else f"has no kernel to perturb{taught_by(layer)}"
            raise UnsupportedLayerError(
                f"BatchBridgeout expects a convolution or a Dense layer. Received: '{getattr(layer, 'name', layer)}' "
                f"({type(layer).__name__}), which {kind}."
            )
        self._start = {"rate": check_rate(rate), "norm": check_norm(norm)}
        self.target_fraction = float(
            check_number("target_fraction", target_fraction, "a share of the input slices", least=0, most=1)
        )
        self.seed = check_integer("seed", seed, least=0, optional=True)
        super().__init__(layer, "_bridgeout", **kwargs)
        self.rate, self.norm = (
            self.add_weight((), keras.initializers.Constant(value), trainable=False, name=name)
            for name, value in self._start.items()
        )
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool = False, **kwargs) -> Any:
        if not training:
            return self.layer(inputs, **kwargs)
        linear = known_linear(self.layer)
        axes = {id(linear.weights[name]): pair for name, pair in linear.kernels.items()}
        values = [(v, self._perturbed(v, *axes[id(v)]) if id(v) in axes else v.value) for v in self.layer.variables]
        with keras.StatelessScope(state_mapping=values):
            return self.layer(inputs, **kwargs)

    def _perturbed(self, variable: keras.Variable, channels: int, filters: int) -> Any:
        ops, kernel = keras.ops, variable.value
        keep = 1 - self.rate.value
        drawn = keras.random.uniform(kernel.shape, dtype=kernel.dtype, seed=self.generator)
        noise = ops.cast(drawn < keep, kernel.dtype) / keep - 1
        # A power as TensorFlow computes it takes five times as long on a CPU.
        spread = ops.exp(ops.log(ops.abs(kernel) + _EPSILON) * (self.norm.value / 2))
        return kernel + spread * noise * self._targets(kernel, channels, filters)

    def _targets(self, kernel: Any, channels: int, filters: int) -> Any:
        """1 where the kernel is perturbed, of a shape that broadcasts with it."""
        ops = keras.ops
        rank = math.floor(self.target_fraction * kernel.shape[channels])
        if rank == kernel.shape[channels]:
            return 1.0
        both = [axis % len(kernel.shape) for axis in (channels, filters)]
        window = [axis for axis in range(len(kernel.shape)) if axis not in both]
        norms = ops.sum(ops.square(kernel), axis=window, keepdims=True)
        threshold = ops.take(ops.sort(norms, axis=channels), [rank], axis=channels)
        return ops.cast(norms < threshold, kernel.dtype)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        # Keras does not save the state of generators; without it training would go on with other masks.
        store["generator"] = keras.ops.convert_to_numpy(self.generator.state.value)

    def load_own_variables(self, store: Any) -> None:
        own = {*store.keys()} - {"generator"}
        super().load_own_variables({key: store[key] for key in own})
        self.generator.state.assign(store["generator"])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self._start | {"target_fraction": self.target_fraction, "seed": self.seed}


register_handler(BatchBridgeout)(Transparent)


class BridgeoutSchedule(TrainingCallback):
    """Sets rate and norm of every `BatchBridgeout` of the model at the beginning of every epoch.

    Args:
        rate: function of the epoch's number (from 0) that returns the rate (None: leave it).
        norm: likewise for the norm (None: leave it).

    Example:
        >>> import keras_filterprune as kfp
        >>> schedule = kfp.callbacks.BridgeoutSchedule(rate=lambda epoch: min(0.3, 0.05 * epoch))
    """

    def __init__(self, rate: Callable[[int], float] | None = None, norm: Callable[[int], float] | None = None):
        super().__init__()
        if rate is None and norm is None:
            raise InvalidValueError("BridgeoutSchedule expects rate=, norm= or both. Received: rate=None, norm=None.")
        for name, function in (("rate", rate), ("norm", norm)):
            check_callable(name, function, "a function of the epoch", optional=True)
        self._parts = {"rate": (rate, check_rate), "norm": (norm, check_norm)}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not wrappers_of(self.model, BatchBridgeout):
            raise UnsupportedModelError(
                f"BridgeoutSchedule found no BatchBridgeout layer in model '{self.model.name}': apply_bridgeout(model)."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name, (function, check) in self._parts.items():
            if function is not None:
                value = check(function(epoch))
                for wrapper in wrappers_of(self.model, BatchBridgeout):
                    getattr(wrapper, name).assign(value)
