"""Callbacks for `model.fit`, and the schedules they follow."""

from keras_filterprune.training import BridgeoutSchedule as BridgeoutSchedule
from keras_filterprune.training import BudgetGates as BudgetGates
from keras_filterprune.training import ClusterPruning as ClusterPruning
from keras_filterprune.training import GrowAndPrune as GrowAndPrune
from keras_filterprune.training import PenaltySchedule as PenaltySchedule
from keras_filterprune.training import PruningSchedule as PruningSchedule
from keras_filterprune.training import SensitivityScorer as SensitivityScorer
from keras_filterprune.training import SoftPruning as SoftPruning
from keras_filterprune.training import exponential as exponential
from keras_filterprune.training import polynomial as polynomial
