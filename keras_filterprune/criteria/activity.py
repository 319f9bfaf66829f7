"""How much of a filter's output is there at all: after the activations, on unlabelled inputs."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_filterprune.checks import check_returned
from keras_filterprune.criteria.base import Criterion
from keras_filterprune.errors import CalibrationDataError
from keras_filterprune.graph.types import Call, ChannelGraph, Group
from keras_filterprune.handlers.activation import is_activation, named, own_activation
from keras_filterprune.handlers.base import volume
from keras_filterprune.handlers.registry import keras_name
from keras_filterprune.parts import returns
from keras_filterprune.probe.execute import watched
from keras_filterprune.probe.inputs import calibration_inputs
from keras_filterprune.probe.masks import mask_of, masked, mean_over

# Share of the layer's mean below which a channel is redundant.
_EXCITED = 0.999


def _check_measured(criterion: Any, found: Any, y: Any) -> None:
    """What is measured of activations has their shape."""
    right = tuple(getattr(found, "shape", ())) == tuple(y.shape)
    expected = f"return a tensor of the shape of its input, {tuple(y.shape)}"
    check_returned(right, f"{criterion!r}.measure", expected, getattr(found, "shape", found))


class ActivationCriterion(Criterion):
    """Averages a property of activations over unlabelled samples, positions and a unit's channels.

    Looked at behind every activation that the channels pass through; groups that pass through none stay whole.
    A subclass implements `measure`.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> class Peak(kfp.criteria.ActivationCriterion):
        ...     def measure(self, y):
        ...         return keras.ops.relu(y - 1)
        ...
        >>> conv = keras.layers.Conv2D(8, 3, activation="relu", name="conv")
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), conv, keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 3))
        >>> kfp.prune_model(model, Peak(), 0.5, data=x).get_layer("conv").filters
        4
    """

    requires = frozenset({"activations"})
    watched = "activation"
    _means: np.ndarray | None = None

    @abc.abstractmethod
    @returns(_check_measured)
    def measure(self, y: Any) -> Any:
        """The property that is averaged.

        Args:
            y: activations of a batch, a tensor of Keras' backend.

        Returns:
            A float32 tensor of the shape of `y`; the higher its mean, the rather the unit stays.
        """

    def observe(
        self, graph: ChannelGraph, weights: Mapping[tuple[str, str], np.ndarray], data: Any, progress: bool
    ) -> Criterion:
        inputs = calibration_inputs(data, graph.view)
        units = graph.unit_of_id.max(initial=-1) + 1
        total, seen = np.zeros(units), np.zeros(units)
        for number, (y, *_) in watched(graph.view, inputs, "observing", progress):
            tensor, *_ = graph.tensors[number][1]
            if tensor.tracked and self.watches(graph.view.calls[number]):
                others = [axis for axis in range(len(y.shape)) if axis != tensor.axis]
                mean, values = mean_over(masked(self.measure(y), mask_of(y)), others)
                found = keras.ops.convert_to_numpy(mean)
                path = graph.view.calls[number].path
                expected = f"return numbers; some that it makes of the activations of '{path}' are NaN"
                check_returned(not np.isnan(found).any(), f"{self!r}.measure", expected, found)
                count = values / math.prod(y.shape[axis] for axis in others[1:])
                total += np.bincount(graph.unit_of_id[tensor.ids], count * found.astype(np.float64), units)
                seen += count * np.bincount(graph.unit_of_id[tensor.ids], minlength=units)
        observed = copy.copy(self)
        observed._means = np.divide(total, seen, out=np.full(units, np.nan), where=seen > 0)
        return observed

    def scores(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        if self._means is None:
            raise CalibrationDataError(f"{self!r} needs calibration inputs: pass data=. A few hundred are enough.")
        return self._means[group.units]

    def refuses(self, group: Group) -> str | None:
        unseen = self._means is not None and np.isnan(self._means[group.units]).any()
        return f"passes through no {self.watched}" if unseen else None

    def watches(self, call: Call) -> bool:
        """Whether the outputs of a call are looked at: those of activations."""
        return is_activation(call.op)


class APoZ(ActivationCriterion):
    """One minus the average percentage of zeros (Hu et al. 2016, "Network Trimming"): how often a filter fires.

    Example:
        >>> import keras_filterprune as kfp
        >>> sorted(kfp.criteria.APoZ().requires)
        ['activations']
    """

    def measure(self, y: Any) -> Any:
        return keras.ops.cast(keras.ops.not_equal(y, 0), "float32")


class MeanActivation(ActivationCriterion):
    """Mean of the activations of a filter (Molchanov et al. 2017, "Pruning Convolutional Neural Networks").

    Example:
        >>> import keras_filterprune as kfp
        >>> sorted(kfp.criteria.MeanActivation().requires)
        ['activations']
    """

    def measure(self, y: Any) -> Any:
        return keras.ops.cast(y, "float32")


class Excitation(ActivationCriterion):
    """Mean over samples of the sigmoid with which a squeeze-and-excitation gate multiplies a channel.

    The statistic of Chang et al. 2020, "UCP: Uniform Channel Pruning", who insert such gates and train them for it,
    drop the channels below 0.999 of their layer's mean (here with `RedundancyBudget`), and train what is left from
    scratch, `keras.models.clone_model(small)`. This looks at networks that have gates; other groups stay whole.

    Example:
        >>> import keras_filterprune as kfp
        >>> sorted(kfp.criteria.Excitation().requires)
        ['activations']
    """

    watched = "gate of a whole channel, a sigmoid"

    def measure(self, y: Any) -> Any:
        return keras.ops.cast(y, "float32")

    def watches(self, call: Call) -> bool:
        function = named(own_activation(call.op)) if isinstance(call.op, keras.layers.Layer) else keras_name(call.op)
        gate = str(function).lower().replace("_", "") in ("sigmoid", "hardsigmoid")
        return gate and volume(call.output_shapes[0][1:-1]) == 1

    def redundant(self, group: Group, weights: Mapping[tuple[str, str], np.ndarray]) -> int:
        scores = self.scores(group, weights)
        return int((scores < _EXCITED * scores.mean()).sum())
