"""Try out a choice of filters without rebuilding the model: mask, compensate in closed form, look at the outputs."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cached_property
from typing import Any

import keras
import numpy as np

from keras_filterprune.graph.kept import Kept
from keras_filterprune.graph.types import Call, ChannelGraph, ModelView
from keras_filterprune.handlers.linear import Linear
from keras_filterprune.handlers.registry import known_statistics, linear_of
from keras_filterprune.probe.consumers import Moments, Places, draw_places, rows_at
from keras_filterprune.probe.execute import Executor, MaskedWeights, Values, masked_apply, watched
from keras_filterprune.probe.inputs import Inputs
from keras_filterprune.probe.masks import factor_of, mask_of
from keras_filterprune.probe.metrics import measured
from keras_filterprune.probe.outlets import outlets
from keras_filterprune.probe.regression import mixed_by_all, refit

SAMPLES = 1024
BATCH = 256
# Columns up to which a consumer's covariance is taken over all taps, else over channels; still wider ones are only
# masked. In float32: 5 MiB each.
_MOST_COLUMNS = 1152
# Added to the covariance's diagonal, relative to its mean.
_RIDGE = 1e-4


class _Consumer:
    """A layer that reads channels: ids and moments of its input columns, and its kernel (taps, columns, outputs)."""

    def __init__(self, linear: Linear, ids: np.ndarray, places: Places):
        self.linear, self.ids, self.kernel = linear, ids, linear.slices
        taps, columns, outputs = self.kernel.shape
        if taps * columns <= _MOST_COLUMNS:
            self.ids, self.kernel = np.tile(ids, taps), self.kernel.reshape(1, -1, outputs)
        self._places, self._moments = places, Moments()

    def add(self, x: Any, samples: slice) -> None:
        """Take some samples of the layer's input into account."""
        self._moments.add(rows_at(self.linear, x, self._places.part(samples)).reshape(-1, self.kernel.shape[1]))

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance, once all samples are taken into account."""
        found = self._moments.mean, self._moments.covariance.astype(np.float32)
        del self._moments
        return found


def check_measurable(view: ModelView, data: Any, measure: Any) -> None:
    """Raise `CalibrationDataError` unless there is data, with labels that fit what is measured."""
    measured(view, data, measure, SAMPLES)


class Trial:
    """How well a model does when only some of its units are kept.

    The consumers of removed channels are refitted by least squares to what they computed from all channels, from
    covariances that are measured once; then the masked network runs on the samples.

    Args:
        graph: the channel graph.
        data: calibration data, of which the first 1 024 samples are used.
        measure: a metric, see `score_of`; "error" is closeness to the unpruned outputs.
        progress: show a progress bar.

    Raises:
        CalibrationDataError: there is no data, or it has no labels where they are needed.
    """

    def __init__(self, graph: ChannelGraph, data: Any, measure: Any, progress: bool = True):
        self._score, self._inputs, self._labels = measured(graph.view, data, measure, SAMPLES)
        self._graph = graph
        self._ids = {
            call.path: inputs[0].ids
            for call, (inputs, _) in zip(graph.view.calls, graph.tensors, strict=True)
            if inputs and inputs[0].tracked
        }
        self._outlets = outlets(graph.view)
        self._consumers: dict[str, _Consumer] = {}
        self._refits: dict[tuple[str, bytes], list[tuple[str, Any, Any]]] = {}
        self._observe(progress)
        whole = masked_outputs(Kept(graph), self._inputs)
        self._wanted = self._labels if self._score.labelled else whole
        self._score.check(self._wanted, whole)

    def digest(self) -> str:
        """SHA-256 of the samples."""
        return digest_of(self._inputs, self._labels)

    def payload(self) -> tuple:
        """What a trial like this one is made from, besides the graph."""
        return samples_of(self._inputs, self._labels), self._score, False

    def _observe(self, progress: bool) -> None:
        """Measure what every consumer reads."""
        view = self._graph.view
        calls = Counter(call.path for call in view.calls)
        readers = {bind.layer for bind in self._graph.binds if bind.role == "input"}

        def look(call: Call, args: tuple, samples: slice) -> None:
            linear = linear_of(call.op)
            if linear is None or linear.transposed or linear.kernel is None or linear.groups > 1:
                return
            if calls[call.path] > 1 or call.path not in readers or call.path not in self._ids:
                return
            if call.path not in self._consumers:
                ids = linear.read(self._ids[call.path])
                if len(ids) > _MOST_COLUMNS:
                    return
                self._consumers[call.path] = _Consumer(
                    linear, ids, draw_places(call.path, linear, args[0], len(self._inputs))
                )
            self._consumers[call.path].add(args[0], samples)

        for _ in watched(view, self._inputs, "measuring", progress, look):
            pass

    def __call__(self, kept: Kept) -> float:
        """The score of a choice, higher = better."""
        values = dict(MaskedWeights(kept))
        for path in values.keys() & self._consumers.keys():
            # Its kernel is refitted; the weights by which a recurrent layer reads itself are masked all the same.
            refitted = self._consumers[path].linear.summed
            values[path] = [pair for pair in values[path] if pair[0] is not refitted]
            for owner, variable, value in self._refit(path, kept.alive):
                values.setdefault(owner, []).append((variable, value))
        return self._score.mean(self._wanted, masked_outputs(kept, self._inputs, values))

    def _refit(self, path: str, alive: np.ndarray) -> list[tuple[str, Any, Any]]:
        """(layer, variable, value) of what makes up for the columns that are not alive."""
        c = self._consumers[path]
        kept = alive[c.ids]
        key = path, kept.tobytes()
        if key not in self._refits:
            mean, covariance = c.moments
            new, constant = refit(mean, covariance, c.kernel, kept, mixed_by_all(covariance, kept, _RIDGE))
            whole = np.zeros_like(c.kernel)
            whole[:, kept] = new
            self._refits[key] = self._values(path, c.linear, whole, constant)
        return self._refits[key]

    def _values(
        self, path: str, linear: Linear, kernel: np.ndarray, constant: np.ndarray
    ) -> list[tuple[str, Any, Any]]:
        variable, own = linear.summed, linear.weight(linear.bias)
        values = [(path, variable, keras.ops.convert_to_tensor(linear.stored(kernel), variable.dtype))]
        normalization = self._outlets[path].normalization
        if own is not None:
            bias = keras.ops.convert_to_numpy(own.value)
            # A GRU has a second row of biases, for its own state.
            row = bias if bias.ndim == 1 else bias[0]
            row += constant.astype(bias.dtype)
            values.append((path, own, keras.ops.convert_to_tensor(bias, own.dtype)))
        elif normalization is not None:
            statistics = known_statistics(normalization.op)
            mean = statistics.weights[statistics.mean]
            values.append((normalization.path, mean, mean.value - constant.astype(np.float32)))
        return values


def masked_outputs(kept: Kept, inputs: Inputs, values: Values | None = None) -> list[np.ndarray]:
    """Outputs of a network as if other units did not exist: one array `(samples, ...)` per output.

    Args:
        kept: the units that stay.
        inputs: its samples.
        values: what stands in for weights (None: zeros where a layer reads a removed channel).
    """
    apply = masked_apply(kept, dict(MaskedWeights(kept)) if values is None else values)
    batches = []
    for part in inputs.slices(BATCH):
        outputs = Executor(kept.graph.view, apply).run(inputs[part])
        batches.append([_numbers(output) for output in outputs])
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _numbers(output: Any) -> np.ndarray:
    """An output as an array, 0 where it is padding: in all networks alike, so that it tells them apart nowhere."""
    z, mask = keras.ops.cast(output, "float32"), mask_of(output)
    return keras.ops.convert_to_numpy(z if mask is None else z * factor_of(z, mask))


def digest_of(inputs: Inputs, labels: Any) -> str:
    """SHA-256 of samples."""
    arrays = [*inputs.arrays(), *(array for array in keras.tree.flatten(labels) if array is not None)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).data for array in arrays)).hexdigest()


def samples_of(inputs: Inputs, labels: Any) -> Any:
    """Samples as calibration data."""
    return inputs.arrays() if labels is None else (inputs.arrays(), labels)
