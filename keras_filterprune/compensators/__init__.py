"""How the surviving weights make up for the removed ones."""

from keras_filterprune.compensators.adapters import Adapters as Adapters
from keras_filterprune.compensators.base import Compensator as Compensator
from keras_filterprune.compensators.least_squares import LeastSquares as LeastSquares
from keras_filterprune.compensators.linear import Linear as Linear
from keras_filterprune.compensators.linear import Merge as Merge
from keras_filterprune.compensators.mean_shift import MeanShift as MeanShift
from keras_filterprune.compensators.recalibration import BNRecalibration as BNRecalibration
from keras_filterprune.compensators.reconstruct import Reconstruct as Reconstruct
from keras_filterprune.handlers.rebuilt import Rebuilt as Rebuilt
from keras_filterprune.probe.data import Samples as Samples
