"""Batch normalization statistics of the pruned network, measured anew."""

from __future__ import annotations

from typing import Any

from keras_filterprune.compensators.base import Compensator
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.probe.inputs import calibration_inputs
from keras_filterprune.probe.normalization import recalibrate


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
        # The positions of one image are samples enough.
        inputs = calibration_inputs(data, rebuilt.graph.view, least=1)
        count = recalibrate(rebuilt.model, inputs, progress)
        if not count:
            return "the model has no batch normalization to recalibrate"
        return f"statistics of {count} batch normalization layers measured on {len(inputs)} samples"
