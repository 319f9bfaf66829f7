"""Subclassed models and composite layers as graphs of plain layers."""

from keras_filterprune.opening.model import open_model as open_model
from keras_filterprune.opening.model import opened_view as opened_view
from keras_filterprune.opening.plain_layers import AddedLoss as AddedLoss
from keras_filterprune.opening.plain_layers import Constant as Constant
from keras_filterprune.opening.plain_layers import PerSample as PerSample
from keras_filterprune.opening.plain_layers import Weight as Weight
from keras_filterprune.opening.plain_layers import WeightedSum as WeightedSum
