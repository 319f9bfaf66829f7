"""How the surviving weights make up for the removed ones."""

from keras_filterprune.compensators.base import Compensator as Compensator
from keras_filterprune.compensators.least_squares import LeastSquares as LeastSquares
from keras_filterprune.compensators.recalibration import BNRecalibration as BNRecalibration
