"""Batch normalization statistics of the pruned network, measured anew."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_filterprune.compensators.base import Compensator
from keras_filterprune.graph.keras_view import view_model
from keras_filterprune.graph.types import Call
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.handlers.registry import known_statistics, statistics_of
from keras_filterprune.probe.execute import Executor
from keras_filterprune.probe.inputs import calibration_inputs
from keras_filterprune.progress import track

ops = keras.ops
# Samples that are normalised together, as in training; fewer where they do not fit into memory.
_BATCH = 128


class BNRecalibration(Compensator):
    """Replace every moving mean and variance by those of calibration data in the pruned network.

    Removed channels change the statistics of all layers after them; a few hundred unlabelled inputs, no training,
    put the remaining ones right. Batches are normalised by their own statistics on the way, as in training, but
    dropout stays off; mean and variance are pooled over all batches in float64.

    Example:
        >>> import keras, numpy as np, keras_filterprune as kfp
        >>> layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.Conv2D(2, 1)]
        >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 3))
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        >>> settings = {"data": x, "compensate": kfp.compensators.BNRecalibration(), "return_report": True}
        >>> kfp.prune_model(model, "l2", 0.5, **settings)[1].compensation
        'statistics of 1 batch normalization layers measured on 32 samples'
    """

    requires = frozenset({"activations"})

    def apply(self, rebuilt: Rebuilt, data: Any, progress: bool = True) -> str:
        view = view_model(rebuilt.model)
        sums: dict[str, list[np.ndarray]] = {}

        def measure(call: Call, args: tuple, kwargs: dict) -> Any:
            op, statistics = call.op, statistics_of(call.op)
            if statistics is None:
                return op(*args, **kwargs)
            x = args[0]
            axis = statistics.axis % len(x.shape)
            mean, variance = ops.moments(ops.cast(x, "float32"), [a for a in range(len(x.shape)) if a != axis])
            first, second = (ops.convert_to_numpy(v).astype(np.float64) for v in (mean, variance))
            count = float(np.prod(x.shape) / x.shape[axis])
            total = sums.setdefault(call.path, [np.zeros(()), np.zeros_like(first), np.zeros_like(first)])
            for value, term in zip(total, (count, count * first, count * (second + first**2)), strict=True):
                value += term
            offset, scale = (statistics.weight(name) for name in (statistics.offset, statistics.scale))
            y = ops.batch_normalization(ops.cast(x, "float32"), mean, variance, axis, offset, scale, statistics.epsilon)
            return ops.cast(y, op.compute_dtype)

        # The positions of one image are samples enough.
        inputs = calibration_inputs(data, view, least=1)
        slices = inputs.slices(_BATCH)
        for part in track(slices, "recalibrating batch normalization", len(slices), progress):
            Executor(view, measure, check=True).run(inputs[part])
        layers = {call.path: call.op for call in view.calls if call.inputs}
        for path, (count, first, second) in sums.items():
            statistics, mean = known_statistics(layers[path]), first / count
            statistics.weights[statistics.mean].assign(mean)
            statistics.weights[statistics.variance].assign(np.maximum(second / count - mean**2, 0))
        if not sums:
            return "the model has no batch normalization to recalibrate"
        return f"statistics of {len(sums)} batch normalization layers measured on {len(inputs)} samples"
