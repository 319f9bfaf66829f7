"""How the surviving weights make up for the removed ones."""

from keras_filterprune.compensators.adapters import Adapters
from keras_filterprune.compensators.base import Compensator
from keras_filterprune.compensators.least_squares import LeastSquares
from keras_filterprune.compensators.linear import Linear, Merge
from keras_filterprune.compensators.mean_shift import MeanShift
from keras_filterprune.compensators.recalibration import BNRecalibration
from keras_filterprune.compensators.reconstruct import Reconstruct
from keras_filterprune.handlers.rebuilt import Rebuilt
from keras_filterprune.probe.data import Samples

__all__ = [
    "Adapters",
    "BNRecalibration",
    "Compensator",
    "LeastSquares",
    "Linear",
    "MeanShift",
    "Merge",
    "Rebuilt",
    "Reconstruct",
    "Samples",
]
